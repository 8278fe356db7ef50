"""Suites that a judge scores: WISE, ImgEdit and GEdit-Bench, on images in their official layouts.

Texts for the judge are our own; the suites' own texts, where their users have them, are given by file. Scores of other texts, as of other
judges, do not compare with published ones, which the report says.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .benchmarks import Item, read_official
from .image_files import read_image
from .intervals import CONFIDENCE, RESAMPLES, Estimate, library, mean
from .judges import Judge, Question, ask_all
from .suites import Example, SuiteResult, data_hash

WISE_TEXT = """You see an image that was drawn from a prompt. Grade it in whole numbers from 0 (fails) over 1 (in part) to 2 (without fault).

Prompt: {prompt}
What has to be seen: {explanation}

Consistency: does the image show what has to be seen, completely and correctly?
Realism: could it be a photograph; are light, matter and space right?
Aesthetic Quality: are composition, color and style pleasing?

When in doubt, give the lower grade. Answer with exactly these three lines:
Consistency: <number>
Realism: <number>
Aesthetic Quality: <number>"""
EDIT_TEXT = """The first image was edited by an instruction; the second is the result. Grade it in whole numbers from 1 (worst) to 5 (best).

Instruction: {prompt}

Compliance: was done what the instruction asks for, and nothing else?
Seamlessness: does the result look as if it had never been edited?
Preservation: is everything that the instruction does not name as it was?

Answer with exactly these three lines:
Compliance: <number>
Seamlessness: <number>
Preservation: <number>"""
GEDIT_TEXT = """The first image was edited by an instruction; the second is the result. Grade it in whole numbers from 0 (worst) to 10 (best).

Instruction: {prompt}

Success: was done what the instruction asks for?
Restraint: is everything that the instruction does not name as it was?
Naturalness: does the result look like an image that was not edited?
Cleanness: is it free of artifacts, such as distorted faces or smeared texture?

Answer with exactly these four lines:
Success: <number>
Restraint: <number>
Naturalness: <number>
Cleanness: <number>"""
# WISE's categories by prompt ids, from the first to the last, and their weights in the whole.
WISE_CATEGORIES = {
    "culture": (1, 400, 0.4),
    "time": (401, 567, 0.167),
    "space": (568, 700, 0.133),
    "biology": (701, 800, 0.1),
    "physics": (801, 900, 0.1),
    "chemistry": (901, 1000, 0.1),
}


def judge_wise(
    folder: Path, file: Path, judge: Judge, *, text: Path | None = None, images: Path | None = None, answers: Path | None = None
) -> SuiteResult:
    """WISE: WiScore = (0.7 consistency + 0.2 realism + 0.1 aesthetic quality) / 2, by category and as a whole.

    Args:
        folder: of the images, `1.png`, ….
        file: WISE's prompts.
        judge: who scores.
        text: file with another text for the judge, with {prompt} and {explanation}.
        images: not used.
        answers: file to keep the judge's answers in.

    Raises:
        ValueError, OSError: files that are not so, or a judge that gives no scores.
    """
    form = WISE_TEXT if text is None else _form(text, "{prompt}", "{explanation}")

    def ask(item: Item) -> str:
        return form.replace("{prompt}", item.prompt).replace("{explanation}", str(item.metadata["row"].get("Explanation", "")))

    def score(said: str, item: Item) -> dict[str, float] | None:
        found = named_scores(said, ("consistency", "realism", "aesthetic quality"), 0, 2)
        if found is None:
            return None
        wiscore = (0.7 * found["consistency"] + 0.2 * found["realism"] + 0.1 * found["aesthetic quality"]) / 2
        return {f"WiScore: {_wise_category(int(item.key))}": wiscore, **found}

    judged = _judged("wise", read_official("wise", folder, file), judge, ask, score, form, text is None, answers)
    weights = {f"WiScore: {name}": weight for name, (_, _, weight) in WISE_CATEGORIES.items()}
    if weights.keys() <= judged.metrics.keys():
        return replace(judged, metrics={**judged.metrics, "WiScore": weighted_mean(judged.samples, weights)})
    missing = [name for name in WISE_CATEGORIES if f"WiScore: {name}" not in judged.metrics]
    return replace(judged, notes=[*judged.notes, f"There is no WiScore of the whole, since no image of {', '.join(missing)} was judged."])


def judge_imgedit(
    folder: Path, file: Path, judge: Judge, *, text: Path | None = None, images: Path | None = None, answers: Path | None = None
) -> SuiteResult:
    """ImgEdit (basic): mean of three grades from 1 to 5, by kind of edit and of all.

    Args:
        folder: of the edited images, `KEY.png`.
        file: basic_edit.json.
        judge: who scores.
        text: the suite's own prompts.json, a text by kind of edit with <edit_prompt> in it.
        images: folder of the originals.
        answers: file to keep the judge's answers in.

    Raises:
        ValueError, OSError: files that are not so, or a judge that gives no scores.
    """
    if images is None:
        raise ValueError("ImgEdit compares with the originals: give their folder.")
    forms = None if text is None else _forms(text)

    def ask(item: Item) -> str:
        kind = item.metadata["edit_type"]
        if forms is not None and kind not in forms:
            raise ValueError(f"{text} has no text for edits of the kind {kind!r} ({item.key}).")
        form = EDIT_TEXT.replace("{prompt}", "<edit_prompt>") if forms is None else forms[kind]
        return form.replace("<edit_prompt>", item.prompt)

    def score(said: str, item: Item) -> dict[str, float] | None:
        grades = [int(number) for number in re.findall(r"(?m)^[^:\n]+:\W*(\d+)\W*$", said)]
        if len(grades) != 3 or not all(1 <= grade <= 5 for grade in grades):
            return None
        return {f"ImgEdit: {item.metadata['edit_type']}": sum(grades) / 3, "ImgEdit": sum(grades) / 3}

    found = read_official("imgedit", folder, file, images)
    return _judged("imgedit", found, judge, ask, score, json.dumps(forms or EDIT_TEXT, sort_keys=True), text is None, answers)


def judge_gedit(
    folder: Path, file: Path, judge: Judge, *, text: Path | None = None, images: Path | None = None, answers: Path | None = None
) -> SuiteResult:
    """GEdit-Bench: semantics and quality from 0 to 10, each the lower of two grades, and the root of their product.

    Args:
        folder: that holds `fullset/`.
        file: folder of the dataset.
        judge: who scores.
        text: file with another text for the judge, with {prompt}.
        images: not used; the originals lie beside the edited images.
        answers: file to keep the judge's answers in.

    Raises:
        ValueError, OSError: files that are not so, or a judge that gives no scores.
    """
    form = GEDIT_TEXT if text is None else _form(text, "{prompt}")

    def score(said: str, item: Item) -> dict[str, float] | None:
        found = named_scores(said, ("success", "restraint", "naturalness", "cleanness"), 0, 10)
        if found is None:
            return None
        semantics, quality = min(found["success"], found["restraint"]), min(found["naturalness"], found["cleanness"])
        language = item.metadata["row"]["instruction_language"]
        values = {"semantics": semantics, "quality": quality, "overall": (semantics * quality) ** 0.5}
        return {f"GEdit {language}: {name}": value for name, value in values.items()}

    found = read_official("gedit", folder, file)
    return _judged("gedit", found, judge, lambda item: form.replace("{prompt}", item.prompt), score, form, text is None, answers)


JUDGED: dict[str, Callable[..., SuiteResult]] = {"wise": judge_wise, "imgedit": judge_imgedit, "gedit": judge_gedit}


def named_scores(said: str, names: Sequence[str], low: int, high: int) -> dict[str, float] | None:
    """Whole numbers behind names in an answer, each name on a line of its own; None unless all are there, in range.

    Args:
        said: what the judge said.
        names: in lower case.
        low, high: the range.
    """
    found = {}
    for name in names:
        numbers = re.findall(rf"(?im)^\W*{name}\W+(\d+)(?!\d)", said)
        if len(numbers) != 1 or not low <= int(numbers[0]) <= high:
            return None
        found[name] = float(numbers[0])
    return found


def weighted_mean(samples: Sequence[Mapping[str, Any]], weights: Mapping[str, float], seed: int = 0) -> Estimate:
    """Weighted sum of the means of several metrics, with a bootstrap inside of each of them."""
    values = {name: np.array([one["metrics"][name] for one in samples if name in one["metrics"]]) for name in weights}
    rng = np.random.default_rng(seed)
    total = sum(weight * values[name].mean() for name, weight in weights.items())
    drawn = [sum(w * rng.choice(values[name], len(values[name])).mean() for name, w in weights.items()) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    how = f"percentile bootstrap inside of each category, {RESAMPLES} resamples"
    return Estimate(float(total), float(low), float(high), sum(map(len, values.values())), interval=how, library=library("numpy"))


def _judged(
    suite: str,
    found: Sequence[tuple[Item, Path]],
    judge: Judge,
    ask: Callable[[Item], str],
    score: Callable[[str, Item], dict[str, float] | None],
    form: str,
    own_words: bool,
    answers: Path | None,
) -> SuiteResult:
    """Asks the judge about all images and takes the means of what it says."""
    questions = [Question(item.key, ask(item), (*([] if item.image is None else [item.image]), path)) for item, path in found]
    said = ask_all(judge, questions, answers)
    values, samples, unread = defaultdict(list), [], []
    for item, _ in found:
        scores = score(said[item.key], item)
        if scores is None:
            unread.append(item.key)
            continue
        samples.append({"id": item.key, "prompt": item.prompt, "answer": said[item.key], "metrics": scores})
        for name, value in scores.items():
            values[name].append(value)
    if not samples:
        raise ValueError(f"The judge {judge.name} gave no scores; to {found[0][0].key} it said {said[found[0][0].key]!r}.")
    notes = []
    if own_words:
        notes.append("The judge was asked in vargpt-hf's words, not in the suite's own: these scores do not compare with published ones.")
    if unread:
        listed = ", ".join(unread[:10]) + " …" * (len(unread) > 10)
        notes.append(f"{len(unread)} of {len(found)} answers held no scores and are left out: {listed}.")
    data = [[item.key, item.prompt, hashlib.sha256(b"" if item.image is None else item.image.read_bytes()).hexdigest()] for item, _ in found]
    return SuiteResult(
        metrics={name: mean(numbers, library=library("scipy")) for name, numbers in sorted(values.items())},
        samples=samples,
        data={"name": suite, "rows": len(found), "sha256": data_hash(data)},
        seeds={"bootstrap": 0},
        settings={},
        examples=[Example(item.key.replace("/", "-"), read_image(path), item.prompt) for item, path in found[:4]],
        judge={"name": judge.name, "text_sha256": hashlib.sha256(form.encode()).hexdigest(), "own_words": own_words},
        notes=notes,
    )


def _wise_category(prompt_id: int) -> str:
    for name, (first, last, _) in WISE_CATEGORIES.items():
        if first <= prompt_id <= last:
            return name
    raise ValueError(f"WISE has the prompts 1 to 1000, not {prompt_id}.")


def _form(file: Path, *places: str) -> str:
    form = file.read_text(encoding="utf-8")
    if missing := [place for place in places if place not in form]:
        raise ValueError(f"{file} is no text for the judge: {', '.join(missing)} is not in it.")
    return form


def _forms(file: Path) -> dict[str, str]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON file: give prompts.json of ImgEdit.") from error
    if not isinstance(found, dict) or not all(isinstance(text, str) and "<edit_prompt>" in text for text in found.values()):
        raise ValueError(f"{file} must hold a text with <edit_prompt> for each kind of edit: give prompts.json of ImgEdit.")
    return found


__all__ = ["JUDGED", "judge_gedit", "judge_imgedit", "judge_wise", "named_scores", "weighted_mean"]
