"""The suite of vargpt-tiny: accuracy of what a model draws, as seen by the judges, and of what it answers."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from tqdm import tqdm

from ..inference.drawing import answer
from ..tiny.digits import load_split
from ..tiny.judges import Detection, DigitJudge, background, detect
from ..tiny.rows import rows
from .intervals import share
from .suites import Example, SuiteResult, data_hash, values_by_metric

if TYPE_CHECKING:
    from ..modeling.modeling_vargpt import VargptForConditionalGeneration
    from ..processing.processing_vargpt import VargptProcessor

Row = dict[str, Any]
DRAWING_GROUPS = {
    "seen": {"draw": 1.0},
    "unseen": {"draw_unseen": 1.0},
    "written": {"draw_digit": 1.0},
}
QUESTIONS = {"ask": 3.0, "read_digit": 1.0}
_GUESSED_DRAWINGS = 1 / 24  # one shape of 4 in one of 6 colours
_EXAMPLES = 4  # images of each group that a report shows


def drawing_figures(image: Image.Image, truth: dict[str, Any], digit_judge: DigitJudge) -> dict[str, bool]:
    """What is right about one drawing: names of metrics and whether each holds.

    Args:
        truth: `{"digit"}`, or `{"kind", "objects": [{"shape", "colour"}], "relation", "background"}`.
    """
    if "digit" in truth:
        return {"digit": digit_judge.read(image) == truth["digit"]}
    found, wanted = detect(image), truth["objects"]
    figures = {
        "shape and colour": _names(found) == sorted((item["colour"], item["shape"]) for item in wanted),
        "background": background(image) == truth["background"],
    }
    if truth["kind"] == "count":
        figures["count"] = len(found) == len(wanted)
    if truth["kind"] == "relation":
        figures["relation"] = _relation_holds(found, wanted, truth["relation"])
    return figures


def _names(found: Sequence[Detection]) -> list[tuple[str, str]]:
    return sorted((detection.colour, detection.shape) for detection in found)


def _relation_holds(found: Sequence[Detection], wanted: Sequence[dict[str, str]], relation: str) -> bool:
    """Whether the first of the two objects lies as said from the second, both being there."""
    places = {(detection.colour, detection.shape): detection.centre for detection in found}
    first, second = (places.get((item["colour"], item["shape"])) for item in wanted)
    if first is None or second is None:
        return False
    right, down = first[0] - second[0], first[1] - second[1]
    apart = {"left of": -right, "right of": right, "above": -down, "below": down}
    return apart[relation] == max(apart.values()) and apart[relation] > 0


def same_answer(given: str, right: str) -> bool:
    """Whether two answers agree, but for case, outer spaces and a closing full stop."""
    return given.strip().rstrip(".").lower() == right.lower()


def draw_rows(
    model: "VargptForConditionalGeneration", processor: "VargptProcessor", rows: Sequence[Row], seed: int, batch_size: int, **settings
) -> list[Image.Image]:
    """One image for the prompt of each row."""
    images, generator = [], torch.Generator(model.device).manual_seed(seed)
    for start in tqdm(range(0, len(rows), batch_size), desc="Drawing", leave=False):
        chats = [row["messages"][:1] for row in rows[start : start + batch_size]]
        images += answer(model, processor, chats, "image", max_new_tokens=2, generator=generator, **settings).images
    return images


def answer_rows(
    model: "VargptForConditionalGeneration", processor: "VargptProcessor", rows: Sequence[Row], batch_size: int, max_new_tokens: int = 32
) -> list[str]:
    """The likeliest answer to the question of each row, about its image where it has one."""
    answers = []
    for start in tqdm(range(0, len(rows), batch_size), desc="Answering", leave=False):
        batch = rows[start : start + batch_size]
        images = [row["images"] for row in batch]
        chats = [row["messages"][:1] for row in batch]
        settings = {"images": images if any(images) else None, "do_sample": False, "max_new_tokens": max_new_tokens}
        answers += answer(model, processor, chats, "text", **settings).texts
    return answers


def evaluate(
    model: "VargptForConditionalGeneration",
    processor: "VargptProcessor",
    number: int = 400,
    seed: int = 0,
    batch_size: int = 50,
    **settings,
) -> SuiteResult:
    """The suite of vargpt-tiny: shares of what is right about drawings, by the judges, and about answers.

    Args:
        number: rows of each group of drawings; twice as many questions.
        seed: of the rows and of the drawings.
        settings: of `generate`, for drawing.
    """
    judge = DigitJudge(*load_split("train"))
    drawings = {group: list(rows(mixture, number, seed, "test")) for group, mixture in DRAWING_GROUPS.items()}
    questions = list(rows(QUESTIONS, 2 * number, seed, "test"))
    samples, examples = [], []
    for group, of_group in drawings.items():
        images = draw_rows(model, processor, of_group, seed, batch_size, **settings)
        for index, (row, image) in enumerate(zip(of_group, images)):
            figures = drawing_figures(image, json.loads(row["truth"]), judge)
            prompt = row["messages"][0]["content"][-1]["text"]
            values = {f"{group}: {name}": right for name, right in figures.items()}
            samples.append({"id": f"{group}/{index:05}", "prompt": prompt, "metrics": values})
            if index < _EXAMPLES:
                examples.append(Example(f"{group}-{index}", image, prompt))
    for index, (row, given) in enumerate(zip(questions, answer_rows(model, processor, questions, batch_size))):
        truth = json.loads(row["truth"])
        right = same_answer(given, truth["answer"])
        question = row["messages"][0]["content"][-1]["text"]
        values = {f"answers: {truth['asks']}": right, "answers": right}
        samples.append({"id": f"answers/{index:05}", "prompt": question, "answer": given.strip(), "metrics": values})
    data = {"name": "shapes and digits", "split": "test", "rows": sum(map(len, drawings.values())) + len(questions)}
    notes = []
    if knows_nothing(samples, questions):
        notes.append(
            "This model draws and answers no better than a guess: it was not trained on these shapes and digits, and the metrics say nothing "
            "of what it was trained on."
        )
    return SuiteResult(
        metrics={name: share(values) for name, values in sorted(values_by_metric(samples).items())},
        samples=samples,
        examples=examples,
        data={**data, "sha256": data_hash([*(row for of_group in drawings.values() for row in of_group), *questions])},
        seeds={"rows": seed, "drawings": seed},
        settings={"number": number, "batch_size": batch_size, "drawing": dict(settings)},
        notes=notes,
    )


def knows_nothing(samples: Sequence[dict[str, Any]], questions: Sequence[Row]) -> bool:
    """Whether neither drawings nor answers are better than guesses, as of a model that was trained on other data.

    Args:
        samples: of a `SuiteResult`.
        questions: rows whose `truth` holds the right answer; who always gives the most frequent one guesses.
    """
    shares = {name: sum(values) / len(values) for name, values in values_by_metric(samples).items()}
    answers = Counter(json.loads(row["truth"])["answer"] for row in questions)
    guessed = answers.most_common(1)[0][1] / answers.total()
    return shares["seen: shape and colour"] < _GUESSED_DRAWINGS and shares["answers"] <= guessed
