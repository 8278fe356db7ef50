"""Judges: models that look at images and answer a question about them. Scores move with the judge, so that every report names it.

A chat model behind an OpenAI-compatible server (`ChatJudge`), or a model here (`LocalJudge`): a VARGPT or any image-text-to-text model.
"""

import base64
import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm.auto import tqdm

from .image_files import read_image

KEY_VARIABLE = "OPENAI_API_KEY"
_LATER = (429, 500, 502, 503, 504)  # statuses after which asking again may help


class Judge(Protocol):
    """Who answers questions about images.

    Attributes:
        name: as reports have it.
        at_once: questions that it takes at the same time.
    """

    name: str
    at_once: int

    def ask(self, text: str, images: Sequence[Path]) -> str:
        """The answer to a question about images, in their order."""
        ...


class ChatJudge:
    """A chat model behind an OpenAI-compatible server; the environment variable OPENAI_API_KEY holds its key, where it wants one.

    Args:
        url: of the server, with its version: `https://host/v1`.
        model: its name there; by default the only one that the server lists.
        max_tokens: of an answer.
        timeout: seconds that an answer may take.
        tries: how often to ask a server that is overloaded.
        at_once: questions that are asked at the same time.

    Raises:
        ValueError: a URL that is none, or a server with several models where none was chosen.
        OSError: a server that cannot be reached, or refuses.
    """

    def __init__(self, url: str, model: str | None = None, *, max_tokens: int = 512, timeout: float = 180, tries: int = 4, at_once: int = 8):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"The judge {url!r} is no URL: give that of an OpenAI-compatible server, such as http://localhost:8000/v1.")
        self.url, self.max_tokens, self.timeout, self.tries, self.at_once = url.rstrip("/"), max_tokens, timeout, tries, at_once
        self.model = model or self._only_model()
        self.name = self.model

    def ask(self, text: str, images: Sequence[Path]) -> str:
        """See `Judge`."""
        urls = [f"data:image/png;base64,{base64.b64encode(_as_png(image)).decode()}" for image in images]
        content = [{"type": "text", "text": text}, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]
        asked = {"model": self.model, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": self.max_tokens}
        answered = self._request("chat/completions", asked)
        try:
            said = answered["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError) as error:
            raise ConnectionError(f"The judge at {self.url} answered without a message: {json.dumps(answered)[:200]}.") from error
        return said or ""

    def _only_model(self) -> str:
        listed = self._request("models")
        try:
            names = [model["id"] for model in listed["data"]]
        except (KeyError, TypeError) as error:
            raise ConnectionError(f"{self.url} lists no models: {json.dumps(listed)[:200]}.") from error
        if len(names) != 1:
            raise ValueError(f"The server at {self.url} has the models {', '.join(names) or 'none'}: choose one of them as the judge's model.")
        return names[0]

    def _request(self, path: str, content: dict[str, Any] | None = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {os.environ[KEY_VARIABLE]}"
        request = urllib.request.Request(f"{self.url}/{path}", None if content is None else json.dumps(content).encode(), headers)
        for number in range(self.tries):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return json.loads(response.read())
            except urllib.error.HTTPError as error:
                if error.code not in _LATER or number + 1 == self.tries:
                    said = error.read()[:200].decode(errors="replace")
                    raise ConnectionError(f"The judge at {self.url} refused ({error.code}): {said or error.reason}") from error
                time.sleep(2**number)
            except (OSError, ValueError) as error:
                raise ConnectionError(f"The judge at {self.url} cannot be asked: {error}") from error


class LocalJudge:
    """A model here: a VARGPT, or any model of Transformers for images and text.

    Args:
        folder: of the model, or its Hub id.
        device: that it answers on.
        max_new_tokens: of an answer.

    Raises:
        ValueError: a model of another kind.
        OSError: a folder or Hub id that cannot be read.
    """

    at_once = 1

    def __init__(self, folder: str | Path, device: str = "cpu", max_new_tokens: int = 128):
        from transformers import AutoConfig

        from ..inference.prompts import model_fingerprint

        self.max_new_tokens = max_new_tokens
        self.is_vargpt = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type == "vargpt"
        self.name = f"{Path(folder).name}, fingerprint {model_fingerprint(folder)}"
        if self.is_vargpt:
            from ..modeling.modeling_vargpt import VargptForConditionalGeneration as model_class
            from ..processing.processing_vargpt import VargptProcessor as processor_class
        else:
            from transformers import AutoModelForImageTextToText as model_class
            from transformers import AutoProcessor as processor_class
        self.model = model_class.from_pretrained(folder, dtype="auto").to(device).eval()
        self.processor = processor_class.from_pretrained(folder)

    def ask(self, text: str, images: Sequence[Path]) -> str:
        """See `Judge`."""
        from ..inference.drawing import answer, prompt_inputs

        content = [*({"type": "image", "image": read_image(image)} for image in images), {"type": "text", "text": text}]
        chat, settings = [{"role": "user", "content": content}], {"do_sample": False, "max_new_tokens": self.max_new_tokens}
        if self.is_vargpt:
            return answer(self.model, self.processor, [chat], "text", **settings).texts[0].strip()
        inputs = prompt_inputs(self.processor, [chat]).to(self.model.device)
        sequences = self.model.generate(**inputs, **settings)
        return self.processor.batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()


def make_judge(judge: str, model: str | None = None, device: str = "cpu") -> Judge:
    """A judge by its URL, or by the folder or Hub id of a model that judges here.

    Args:
        judge: URL, folder or Hub id.
        model: name on the server, for a URL.
        device: for a model here.

    Raises:
        ValueError, OSError: as of `ChatJudge` and `LocalJudge`.
    """
    return ChatJudge(judge, model) if judge.startswith(("http://", "https://")) else LocalJudge(judge, device)


@dataclass(frozen=True)
class Question:
    """What a judge is asked: an id, a text, and the files of the images."""

    id: str
    text: str
    images: tuple[Path, ...]

    @property
    def fingerprint(self) -> str:
        """Tells questions apart, images by their content."""
        digest = hashlib.sha256(self.text.encode())
        for image in self.images:
            digest.update(image.read_bytes())
        return digest.hexdigest()


def ask_all(judge: Judge, questions: Sequence[Question], file: Path | None = None) -> dict[str, str]:
    """The answers to questions, by their ids.

    Args:
        file: that answers are kept in, one a line, so that a run which was interrupted does not ask again.

    Raises:
        OSError: a judge that cannot be asked; what it answered before stays in the file.
    """
    known = _kept(judge, file)
    keys = {question.id: question.fingerprint for question in questions}
    answers = {question.id: known[keys[question.id]] for question in questions if keys[question.id] in known}
    missing = [question for question in questions if question.id not in answers]
    with ThreadPoolExecutor(judge.at_once) as pool, tqdm(total=len(missing), desc="Judging", leave=False) as progress:
        try:
            for question, said in zip(missing, pool.map(lambda one: judge.ask(one.text, one.images), missing)):
                answers[question.id] = said
                if file is not None:
                    with file.open("a", encoding="utf-8") as lines:
                        lines.write(json.dumps({"judge": judge.name, "question": keys[question.id], "id": question.id, "answer": said}) + "\n")
                progress.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return answers


def _kept(judge: Judge, file: Path | None) -> dict[str, str]:
    """Answers that this judge gave before, by the questions' fingerprints."""
    if file is None or not file.exists():
        return {}
    known = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
            if row["judge"] == judge.name:
                known[row["question"]] = row["answer"]
        except (ValueError, KeyError, TypeError):  # a line that an interrupted run did not finish
            continue
    return known


def _as_png(file: Path) -> bytes:
    import io

    content = file.read_bytes()
    if content.startswith(b"\x89PNG"):
        return content
    buffer = io.BytesIO()
    read_image(file).save(buffer, format="PNG")
    return buffer.getvalue()


__all__ = ["ChatJudge", "Judge", "LocalJudge", "Question", "ask_all", "make_judge"]
