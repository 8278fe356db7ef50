"""Metrics of a model: accuracy of what it draws, as seen by the judges, and of what it answers."""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from tqdm import tqdm

from ..inference.drawing import answer
from ..tiny.judges import Detection, DigitJudge, background, detect

if TYPE_CHECKING:
    from ..modeling.modeling_vargpt import VargptForConditionalGeneration
    from ..processing.processing_vargpt import VargptProcessor

Row = dict[str, Any]


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


def answer_rows(model: "VargptForConditionalGeneration", processor: "VargptProcessor", rows: Sequence[Row], batch_size: int) -> list[str]:
    """The likeliest answer to the question of each row, about its image where it has one."""
    answers = []
    for start in tqdm(range(0, len(rows), batch_size), desc="Answering", leave=False):
        batch = rows[start : start + batch_size]
        images = [row["images"] for row in batch]
        chats = [row["messages"][:1] for row in batch]
        settings = {"images": images if any(images) else None, "do_sample": False, "max_new_tokens": 32}
        answers += answer(model, processor, chats, "text", **settings).texts
    return answers


def evaluate(
    model: "VargptForConditionalGeneration",
    processor: "VargptProcessor",
    drawings: dict[str, Sequence[Row]],
    questions: Sequence[Row],
    digit_judge: DigitJudge,
    seed: int = 0,
    batch_size: int = 50,
    **settings,
) -> dict[str, float]:
    """Shares of what is right, by name.

    Args:
        drawings: rows with prompts of drawings and their truth, under a name for each group, such as "seen" and "unseen".
        questions: rows with questions and their truth.
        settings: of `generate`, for drawing.

    Returns:
        `{"group: metric": share}` for drawings, `{"answers: kind": share}` and "answers" for questions; each in [0, 1].
    """
    results = defaultdict(list)
    for group, rows in drawings.items():
        for row, image in zip(rows, draw_rows(model, processor, rows, seed, batch_size, **settings)):
            for name, right in drawing_figures(image, json.loads(row["truth"]), digit_judge).items():
                results[f"{group}: {name}"].append(right)
    for row, given in zip(questions, answer_rows(model, processor, questions, batch_size)):
        truth = json.loads(row["truth"])
        right = same_answer(given, truth["answer"])
        results[f"answers: {truth['asks']}"].append(right)
        results["answers"].append(right)
    return {name: sum(values) / len(values) for name, values in results.items()}
