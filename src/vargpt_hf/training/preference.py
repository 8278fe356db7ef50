"""Preference tuning of text and images together (DPO, arXiv 2305.18290), on TRL's trainer.

Shapes: N pairs of a batch, whose 2N rows are all chosen answers, then all rejected ones; L codes of one image.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn
from trl import DPOConfig, DPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from ..modeling.image_tokenizer_vargpt import code_log_probs
from ..modeling.scales_vargpt import position_weights
from ..modeling.visual_decoder_vargpt import GENERATE_CONDITION
from .collator import VargptDataCollator, listed
from .compiling import compile_layers
from .guards import TrainingGuard
from .optimizer import MuonOption
from .packing import IGNORE_INDEX
from .readers import PREFERENCE_CODES_FEATURES, PREFERENCE_FEATURES, for_trainer, to_pairs
from .targets import number_of_drawings
from .trainer import AnyMachineDefaults

if TYPE_CHECKING:
    from ..processing.processing_vargpt import VargptProcessor

_SIDES = ("chosen", "rejected")
_COLUMNS = tuple({**PREFERENCE_FEATURES, **PREFERENCE_CODES_FEATURES})


class VargptPreferenceCollator:
    """Makes model inputs with labels of pairs of answers, on top of a [`VargptDataCollator`].

    A row has `prompt`, `chosen` and `rejected`, each a list of messages, or a text. `images` are the prompt's images to read (parts of
    type "image"). The images to draw of either answer (parts of type "output_image") are in `chosen_images` and `rejected_images`, or as
    codes in `chosen_codes` and `rejected_codes`, then with the `image_tokenizer_fingerprint` of the image tokenizer that made them. A
    column that is missing, None or empty has none.

    Of N pairs come 2N rows, the chosen answers first. Labels are the tokens of the answer alone, also where the assistant has spoken before.

    Args:
        processor: makes the tensors.
        max_length: most tokens of a prompt with an answer; a longer one is refused, since what is cut is no longer what was preferred.
            None: no limit.

    Raises:
        ValueError: pairs without prompt or answers, with prompts that draw, too long, or with rows that [`VargptDataCollator`] refuses.
    """

    def __init__(self, processor: "VargptProcessor", max_length: int | None = None):
        self.collator = VargptDataCollator(processor)
        self.max_length = max_length

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        prompts = [self._prompt(index, pair) for index, pair in enumerate(pairs)]
        rows = [self._row(index, pair, prompt, side) for side in _SIDES for index, (pair, prompt) in enumerate(zip(pairs, prompts))]
        try:
            inputs = self.collator(rows)
        except ValueError as error:
            raise ValueError(
                f"{error} (Of the {len(rows)} rows, the first half has the chosen answers, the second the rejected ones.)"
            ) from error
        self._check_lengths(inputs["attention_mask"].sum(1).tolist())
        spoken = torch.tensor([self._labels_of(pair, prompt) for pair, prompt in zip(pairs, prompts)] * 2)
        labels = inputs["labels"]
        before = (labels != IGNORE_INDEX).cumsum(1) <= spoken[:, None]
        inputs["labels"] = labels.masked_fill(before, IGNORE_INDEX)
        return inputs

    def _prompt(self, index: int, pair: dict[str, Any]) -> list[dict[str, Any]]:
        prompt = _messages(index, pair, "prompt", "user")
        kinds = {part["type"] for message in prompt if not isinstance(message["content"], str) for part in message["content"] or ()}
        if "output_image" in kinds:
            raise ValueError(
                f"The prompt of pair {index} of the batch has parts of type 'output_image'; only answers may draw. Let it show such images "
                "as images to read (type 'image', column 'images')."
            )
        return prompt

    def _row(self, index: int, pair: dict[str, Any], prompt: list[dict[str, Any]], side: str) -> dict[str, Any]:
        columns = {
            "images": "images",
            "output_images": f"{side}_images",
            "output_image_codes": f"{side}_codes",
            "image_tokenizer_fingerprint": "image_tokenizer_fingerprint",
        }
        # Those alone that the dataset has: by them the collator tells whether images are drawn from pixels or from codes.
        given = {name: pair[column] for name, column in columns.items() if column in pair}
        return {"messages": prompt + _messages(index, pair, side, "assistant"), **given}

    def _check_lengths(self, lengths: list[int]) -> None:
        for row, length in enumerate(lengths):
            side, index = divmod(row, len(lengths) // 2)
            if self.max_length is not None and length > self.max_length:
                raise ValueError(
                    f"Pair {index} of the batch has {length} tokens with its {_SIDES[side]} answer, more than max_length={self.max_length}: "
                    "raise `max_length`, or leave out such pairs."
                )

    def _labels_of(self, pair: dict[str, Any], prompt: list[dict[str, Any]]) -> int:
        """How many tokens the assistant has said in the prompt."""
        if all(message["role"] != "assistant" for message in prompt):
            return 0
        alone = self.collator([{"messages": prompt, "images": listed(pair, "images")}])
        return int((alone["labels"] != IGNORE_INDEX).sum())


def _messages(index: int, pair: dict[str, Any], column: str, role: str) -> list[dict[str, Any]]:
    """The messages of a column; a text is one message of `role`."""
    given = pair.get(column)
    if not given:
        raise ValueError(f"Pair {index} of the batch needs a column {column!r} that is not empty; it has {sorted(pair)}.")
    return [{"role": role, "content": given}] if isinstance(given, str) else list(given)


@dataclass
class VargptDPOConfig(AnyMachineDefaults, DPOConfig):
    """TRL's `DPOConfig` with [`AnyMachineDefaults`]; `max_length` refuses longer rows, it never cuts.

    Args:
        image_scale_power: weighs the log-probability of each code by (area of the last scale / area of its own) to this power, scaled so
            that the mean over an image is 1. 0 weighs all codes alike: the true log-probability of the image.

    Raises:
        ValueError: a negative `image_scale_power`.
    """

    image_scale_power: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.image_scale_power < 0:
            raise ValueError(f"`image_scale_power` must not be negative, got {self.image_scale_power}; 0 weighs all codes alike.")


@dataclass(frozen=True)
class AnswerLogProbs:
    """Log-probabilities of the 2N answers of a batch, in nats, and how many tokens and codes each has; all (2N,), float32."""

    text: torch.Tensor
    images: torch.Tensor
    num_targets: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        return self.text + self.images


@dataclass(frozen=True)
class Pairs:
    """What losses are made of, each (N,): log-ratios of policy to reference, the policy's own log-probabilities, numbers of targets."""

    beta: float
    chosen_ratios: torch.Tensor
    rejected_ratios: torch.Tensor
    chosen_log_probs: torch.Tensor
    chosen_targets: torch.Tensor
    rejected_targets: torch.Tensor

    @property
    def margins(self) -> torch.Tensor:
        """How much more the policy has raised the chosen answer than the rejected one, times β."""
        return self.beta * (self.chosen_ratios - self.rejected_ratios)

    @property
    def mean_ratio_gaps(self) -> torch.Tensor:
        """Differences of the log-ratios for each target, as IPO needs for answers of different lengths."""
        return self.chosen_ratios / self.chosen_targets - self.rejected_ratios / self.rejected_targets


LOSSES: dict[str, Callable[[Pairs], torch.Tensor]] = {
    "sigmoid": lambda pairs: -F.logsigmoid(pairs.margins),
    "hinge": lambda pairs: F.relu(1 - pairs.margins),
    "ipo": lambda pairs: (pairs.mean_ratio_gaps - 1 / (2 * pairs.beta)) ** 2,
    "apo_zero": lambda pairs: 1 - torch.sigmoid(pairs.beta * pairs.chosen_ratios) + torch.sigmoid(pairs.beta * pairs.rejected_ratios),
    "sft": lambda pairs: -pairs.chosen_log_probs / pairs.chosen_targets,
}


class VargptDPOTrainer(TrainingGuard, MuonOption, DPOTrainer):
    """TRL's `DPOTrainer` for answers with text, images to draw, or both, on either side of a pair.

    TRL scores text tokens alone. Here the log-probability of an answer is that of its tokens plus that of its images' codes, each given
    the coarser scales; all images are conditioned as in `generate`, and nothing is dropped, neither in the policy nor in the reference. Where
    the image tokenizer corrects itself, both see the same inverted bits, in training alone.

    The reference is the model without adapters where `peft_config` makes these; a frozen copy of the adapters where the model comes with
    some; else `ref_model`, or a frozen copy of the model.

    | `loss_type` | loss of a pair; Δ is β times the difference of the log-ratios |
    |---|---|
    | "sigmoid" | −log σ(Δ) |
    | "hinge" | max(0, 1 − Δ) |
    | "ipo" | (difference of the log-ratios for each target − 1 / 2β)² |
    | "apo_zero" | 1 − σ(β · chosen log-ratio) + σ(β · rejected log-ratio) |
    | "sft" | −log-probability of the chosen answer, for each target |

    Logged are TRL's `rewards/chosen`, `rewards/rejected`, `rewards/accuracies`, `rewards/margins`, `logps/chosen`, `logps/rejected`, and of
    the latter two what is text and what is images (`logps/chosen_text`, `logps/chosen_images`, ...), each the mean over all pairs since the
    last log; `num_tokens`.

    Takes the arguments of `DPOTrainer`, with a model that is loaded, not its name. The processor is needed as `processing_class`, and
    `data_collator` is a [`VargptPreferenceCollator`] by default.

    Raises:
        ValueError: a model's name, no processor, or settings of `DPOConfig` that this loss does not know.
        TrainingStopped: see [`TrainingGuard`].
    """

    def __init__(
        self,
        model,
        ref_model=None,
        args=None,
        data_collator=None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        peft_config=None,
        **kwargs,
    ):
        args = VargptDPOConfig("trainer_output") if args is None else args
        _check_settings(args)
        if isinstance(model, str):
            raise ValueError(f"`model` is the name {model!r}; give VargptForConditionalGeneration.from_pretrained({model!r}).")
        if processing_class is None:
            raise ValueError("Preference tuning needs the model's processor: give it as `processing_class`.")
        if ref_model is None and peft_config is None and not isinstance(model, PeftModel):
            ref_model = copy.deepcopy(model).eval().requires_grad_(False)  # TRL would load what may not be saved anywhere
        super().__init__(
            model,
            ref_model=ref_model,
            args=args,
            data_collator=data_collator or VargptPreferenceCollator(processing_class, args.max_length),
            train_dataset=for_trainer(train_dataset, to_pairs),
            eval_dataset=for_trainer(eval_dataset, to_pairs),
            processing_class=processing_class,
            peft_config=peft_config,
            **kwargs,
        )
        self.model.register_forward_hook(keep_in_graph)
        if isinstance(args, AnyMachineDefaults) and args.compile_layers:
            for one in filter(None, (self.model, self.ref_model)):
                compile_layers(one)
        if isinstance(self.data_collator, VargptPreferenceCollator):
            self.data_collator.collator.bind(self.model, sharded=self.is_fsdp_enabled or self.is_deepspeed_enabled)
        if args.disable_dropout:
            for layer in [*self.model.modules(), *(() if self.ref_model is None else self.ref_model.modules())]:
                if hasattr(layer, "drop_path_rate"):
                    layer.drop_path_rate = 0.0
        self._scale_power = args.image_scale_power if isinstance(args, VargptDPOConfig) else 0.0

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        """The dataset as it is: the collator makes tokens of it."""
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            self._signature_columns = list(_COLUMNS)

    def answer_log_probs(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[AnswerLogProbs, Any]:
        """Log-probabilities of the answers of a batch from the collator, and the model's output.

        The output's logits are those of the columns alone in which some answer has a token.
        """
        inputs = dict(inputs)
        targets, ids = inputs.pop("labels")[:, 1:], inputs["input_ids"]
        columns = (targets != IGNORE_INDEX).any(0).nonzero().squeeze(1)
        targets = targets[:, columns]
        if num_drawings := number_of_drawings(inputs):
            inputs["output_image_condition_ids"] = torch.full((num_drawings,), GENERATE_CONDITION, device=ids.device)
        outputs = model(**inputs, use_cache=False, logits_to_keep=columns)
        losses = F.cross_entropy(outputs.logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="none")
        text = -losses.view_as(targets).sum(1)
        images = torch.zeros_like(text)
        num_codes = (ids == self.model.config.output_image_token_id).sum(1)
        if (codes := outputs.output_image_codes) is not None:
            schedules, schedule_ids = self.model.config.schedules, inputs.get("output_image_schedule_ids")
            schedule_ids = codes.new_zeros(len(codes)) if schedule_ids is None else schedule_ids
            log_probs = code_log_probs(outputs.output_image_logits, codes).sum(-1)
            weighted = (log_probs * position_weights(schedules, schedule_ids, self._scale_power)).sum(1)
            ends = torch.tensor([schedules[index].num_positions for index in schedule_ids.tolist()], device=ids.device).cumsum(0)
            images = images.index_add(0, torch.searchsorted(num_codes.cumsum(0), ends), weighted)
        return AnswerLogProbs(text, images, (targets != IGNORE_INDEX).sum(1) + num_codes), outputs

    def compute_ref_log_probs(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The reference's log-probabilities of the chosen and of the rejected answers, (N,) each.

        Args:
            model: the reference; without one, the policy, whose adapters are then switched off, or to their frozen copy.
            inputs: a batch from the collator.
        """
        with torch.no_grad(), self._as_reference(), self.accelerator.autocast():
            chosen, rejected = self.answer_log_probs(model, inputs)[0].total.chunk(2)
        return chosen, rejected

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        policy, adapters = self.accelerator.unwrap_model(self.model), nullcontext()
        if self.ref_model is None:
            adapters = use_adapter(policy, "ref" if "ref" in policy.peft_config else None)
        with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs), keep_requires_grad(policy), adapters:
            yield

    def _compute_loss(self, model: nn.Module, inputs: dict[str, torch.Tensor], return_outputs: bool) -> torch.Tensor | tuple[torch.Tensor, Any]:
        answers, outputs = self.answer_log_probs(model, inputs)
        if "output_pixel_values" in inputs:  # the image tokenizer runs once
            inputs = {name: value for name, value in inputs.items() if name != "output_pixel_values"}
            # The reference sees what the policy saw, bits that self-correction has inverted among them.
            inputs |= {name: outputs[name] for name in ("output_image_codes", "output_image_inputs")}
        reference = self.model if self.ref_model is None else self.ref_model
        ratios = answers.total - torch.cat(self.compute_ref_log_probs(reference, inputs))
        pairs = Pairs(self.beta, *ratios.chunk(2), answers.total.chunk(2)[0], *answers.num_targets.chunk(2))
        loss = sum(weight * LOSSES[name](pairs).mean() for name, weight in zip(self.loss_types, self.loss_weights, strict=True))
        self._note(pairs, answers, inputs["attention_mask"].sum())
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _note(self, pairs: Pairs, answers: AnswerLogProbs, num_tokens: torch.Tensor) -> None:
        """Keeps the metrics of every pair of all ranks for the next log."""
        mode = "train" if self.model.training else "eval"
        figures = {
            "rewards/chosen": pairs.beta * pairs.chosen_ratios,
            "rewards/rejected": pairs.beta * pairs.rejected_ratios,
            "rewards/accuracies": (pairs.margins > 0).float(),
            "rewards/margins": pairs.margins,
        }
        for suffix, log_probs in (("", answers.total), ("_text", answers.text), ("_images", answers.images)):
            figures |= {f"logps/{side}{suffix}": half for side, half in zip(_SIDES, log_probs.chunk(2))}
        values = self.accelerator.gather_for_metrics(torch.stack(list(figures.values()), dim=1)).T.tolist()
        for name, of_pairs in zip(figures, values):
            self._metrics[mode][name].extend(of_pairs)
        if mode == "train":
            self._total_train_tokens += int(self.accelerator.gather(num_tokens).sum())
        self._metrics[mode]["num_tokens"] = [self._counted()["num_tokens"]]

    def _counted(self) -> dict[str, int]:
        return {"num_tokens": self.counts_of_run.before.get("num_tokens", 0) + self._total_train_tokens}


@contextmanager
def keep_requires_grad(model: nn.Module) -> Iterator[None]:
    """Gives all parameters that are there now their `requires_grad` back: PEFT trains a whole adapter once it is switched on again."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def keep_in_graph(module: nn.Module, args: tuple, outputs: Any) -> Any:
    """Forward hook: ties logits to the trained parameters, with gradients of zero, where a batch does not reach any.

    Such is a batch without drawings where the drawing side alone is trained.
    """
    if (
        not torch.is_grad_enabled()
        or outputs.logits.requires_grad
        or (outputs.output_image_logits is not None and outputs.output_image_logits.requires_grad)
    ):
        return outputs
    outputs.logits = outputs.logits + sum(0.0 * p.sum() for p in module.parameters() if p.requires_grad)
    return outputs


def _check_settings(args: DPOConfig) -> None:
    """Raises a ValueError for settings of TRL that are about text tokens, or about losses that are not made of log-ratios alone."""
    if unknown := [name for name in args.loss_type if name not in LOSSES]:
        raise ValueError(f"There is no loss_type {', '.join(map(repr, unknown))} for drawings; there are {', '.join(LOSSES)}.")
    known = {
        "padding_free": False,
        "precompute_ref_log_probs": False,
        "use_weighting": False,
        "ld_alpha": None,
        "label_smoothing": 0.0,
        "f_divergence_type": "reverse_kl",
    }
    if others := [f"{name}={getattr(args, name)!r}" for name, default in known.items() if getattr(args, name) != default]:
        raise ValueError(f"{', '.join(others)}: not supported where answers may draw; leave it out.")


__all__ = [
    "LOSSES",
    "PREFERENCE_CODES_FEATURES",
    "PREFERENCE_FEATURES",
    "AnswerLogProbs",
    "Pairs",
    "VargptDPOConfig",
    "VargptDPOTrainer",
    "VargptPreferenceCollator",
]
