"""VARGPT for lmms-eval: `python -m lmms_eval --model vargpt --model_args pretrained=…`. Imported by lmms-eval alone, which it needs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms
from tqdm.auto import tqdm

from .lmms_requests import Chat, answer_drawings, answer_texts, batches, chat_of, losses, simple_chat
from .lmms_setup import Setup, load_setup


class _Vargpt(lmms):
    """What both interfaces share.

    Args:
        batch_size, device: of lmms-eval's command line.
        max_batch_size: not used.
        model_args: see `lmms_setup.load_setup`.
    """

    def __init__(self, batch_size: int | str = 1, device: str | None = None, max_batch_size: Any = None, **model_args: Any):
        super().__init__()
        from accelerate import Accelerator

        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        where = str(self.accelerator.device) if self._world_size > 1 or device is None else device
        self.setup: Setup = load_setup(batch_size=batch_size, device=where, **model_args)

    @property
    def device(self) -> Any:
        """Where the model is; lmms-eval gathers numbers of requests there."""
        return self.setup.model.device

    def _doc(self, task: str, split: str, doc_id: int) -> Any:
        return self.task_dict[task][split][doc_id]

    def _answer(self, chats: Sequence[Chat], asked: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
        """Answers in the requests' order; `names` tell drawn images apart."""
        setup, answers = self.setup, [""] * len(chats)
        with tqdm(total=len(chats), desc="Answering", disable=self._rank > 0) as progress:
            for batch in batches(chats, asked, setup.batch_size):
                some, settings = [chats[index] for index in batch], asked[batch[0]]
                if setup.generation_mode == "text":
                    said = answer_texts(setup.model, setup.processor, some, settings, setup.max_new_tokens)
                else:
                    files = [setup.output_dir / names[index] for index in batch]
                    seeds = [setup.seed + index for index in batch]
                    said = answer_drawings(setup.model, setup.processor, some, setup.generation_mode, files, seeds, setup.max_new_tokens)
                for index, text in zip(batch, said):
                    answers[index] = text
                progress.update(len(batch))
        return answers


class VargptChat(_Vargpt):
    """The chat interface: messages of several turns with any number of images."""

    is_simple = False

    def generate_until(self, requests: list) -> list[str]:
        """Answers, or drawings as JSON, to requests of (context, doc_to_messages, settings, doc id, task, split)."""
        args = [request.args for request in requests]
        chats = [chat_of(messages(self._doc(task, split, doc)), self.setup.system_prompt) for _, messages, _, doc, task, split in args]
        names = [f"{task}/{Path(str(doc)).name}" for *_, doc, task, _ in args]
        answers = self._answer(chats, [dict(one[2]) for one in args], names)
        for one, said in zip(args, answers):
            self.cache_hook.add_partial("generate_until", (one[0], one[2]), said)
        return answers

    def generate_until_multi_round(self, requests: list) -> list[list[str]]:
        """Answers of all rounds of each request; the task makes the messages of a round from the answers before."""
        everything = []
        for request in requests:
            _, messages, asked, doc_id, task, split = request.args
            doc, rounds, information = self._doc(task, split, doc_id), [], None
            made = messages(doc)
            while made is not None:
                name = f"{task}/{doc_id}-{len(rounds)}"
                rounds += self._answer([chat_of(made, self.setup.system_prompt)], [dict(asked)], [name])
                found = messages(doc, round_idx=len(rounds), previous_output=list(rounds), previous_round_info=information)
                if not (isinstance(found, tuple) and len(found) == 4):
                    break
                made, ended, _, information = found
                if ended:
                    break
            everything.append(rounds)
        return everything

    def loglikelihood(self, requests: list) -> list[tuple[float, bool]]:
        """Not of this interface: lmms-eval asks for likelihoods by the simple one alone."""
        raise ValueError(
            "lmms-eval asks chat models for no likelihoods: give --force_simple for tasks of the types loglikelihood or multiple_choice."
        )


class VargptSimple(_Vargpt):
    """The simple interface: one text with images; also for likelihoods of continuations."""

    is_simple = True

    def generate_until(self, requests: list) -> list[str]:
        """Answers, or drawings as JSON, to requests of (context, settings, doc_to_visual, doc id, task, split)."""
        args = [request.args for request in requests]
        chats = [
            simple_chat(context, visual(self._doc(task, split, doc)) or [], self.setup.system_prompt)
            for context, _, visual, doc, task, split in args
        ]
        answers = self._answer(chats, [dict(one[1]) for one in args], [f"{task}/{doc}" for *_, doc, task, _ in args])
        for one, said in zip(args, answers):
            self.cache_hook.add_partial("generate_until", (one[0], one[1]), said)
        return answers

    def generate_until_multi_round(self, requests: list) -> list[list[str]]:
        """Not of this interface."""
        raise ValueError("Tasks of several rounds need the chat interface: leave out --force_simple.")

    def loglikelihood(self, requests: list) -> list[Any]:
        """Losses of continuations, see `lmms_requests.losses` and `_whole`; requests without an image have (context, continuation) alone."""
        chats, continuations = [], []
        for request in requests:
            context, target, *rest = request.args
            doc, images = None, []
            if rest:
                visual, doc_id, task, split = rest
                doc = self._doc(task, split, doc_id)
                images = visual(doc) or []
            chats.append(simple_chat(context, images, self.setup.system_prompt))
            continuations.append(target if isinstance(target, str) else str(target(doc)))
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for batch in batches(chats, [{}] * len(chats), self.setup.batch_size):
            some = losses(self.setup.model, self.setup.processor, [chats[index] for index in batch], [continuations[index] for index in batch])
            for index, one in zip(batch, some):
                found[index] = one
        return [_whole(pair) for pair in found]


def _whole(pair: tuple[float, bool]) -> Any:
    """A loss, and whether its tokens are the likeliest ones, so that the task gets both: lmms-eval 0.7.3 makes a text of any bare pair."""
    try:
        from lmms_eval.api.instance import GenerationResult
    except ImportError:  # older, which hands on what it is given
        return pair
    return GenerationResult(pair)


__all__ = ["VargptChat", "VargptSimple"]
