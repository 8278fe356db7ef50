"""Shapes and digits of vargpt-tiny at 64 pixels, asked for and about in many wordings."""

import re
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image

from ..tiny.digits import sample_digit
from ..tiny.rows import ABOUT_THE_WHOLE, NUMBERS, questions_about, scene_to_draw
from ..tiny.shapes import HELD_OUT_PAIRS, KINDS, PLACES, Scene, sample_scene
from ..tiny.shapes import render as render_at
from .kinds import article
from .more_shapes import ALL_COLORS, ALL_FORMS
from .pictures import PICTURE_SIZE
from .sentences import in_steps
from .wordings import WRITE_DIGIT, question, spoken

# How vargpt-tiny asks → the kind of question here, with the names in it in order.
_FORMS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (r"how many objects are there", "count", ()),
    (r"what colour is the background", "background", ()),
    (r"describe the picture", "describe", ()),
    (r"what colour are the (\w+)", "colors of", ("a",)),
    (r"what colour is the (\w+)", "color of", ("a",)),
    (r"what shape are they", "shapes", ()),
    (r"what shape is the (\w+ object)", "shape of", ("a",)),
    (r"where is the (\w+ \w+)", "where", ("a",)),
    (r"what is (above|below|left of|right of) the (\w+ \w+)", "what is", ("relation", "b")),
    (r"is the (\w+ \w+) (above|below|left of|right of) the (\w+ \w+)", "yes or no", ("a", "relation", "b")),
)


def reworded(rng: np.random.Generator, asked: str, held_out: bool = False) -> str:
    """A question of vargpt-tiny in another wording.

    Raises:
        ValueError: a question that vargpt-tiny does not ask.
    """
    for form, kind, names in _FORMS:
        if found := re.fullmatch(form, asked):
            return question(rng, kind, held_out, **dict(zip(names, found.groups())))
    raise ValueError(f"vargpt-tiny does not ask {asked!r}.")


def render(scene: Scene) -> Image.Image:
    """A scene of shapes at 64 pixels, in all colors and of all forms."""
    return render_at(scene, PICTURE_SIZE, ALL_COLORS, ALL_FORMS)


def digit(rng: np.random.Generator, split: str) -> tuple[Image.Image, int]:
    """A handwritten digit at 64 pixels, in training moved a little, and which it is."""
    image, number = sample_digit(rng, split, augment=split == "train")
    return image.convert("RGB").resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.BICUBIC), number


def digit_to_write(rng: np.random.Generator, split: str, held_out: bool = False) -> tuple[Image.Image, int, str]:
    """A digit and the words that ask for it, as a figure or as a word."""
    image, number = digit(rng, split)
    said = (str(number), NUMBERS[number])[int(rng.integers(2))]
    return image, number, spoken(rng, WRITE_DIGIT.choose(rng, held_out).format(digit=said), ".")


def shapes_to_draw(rng: np.random.Generator, unseen: bool = False) -> tuple[Scene, str]:
    """A scene of shapes and its words; of a pair of color and shape that training does not draw where `unseen`."""
    return scene_to_draw(rng, HELD_OUT_PAIRS, kind="single") if unseen else scene_to_draw(rng)


def asked_about_shapes(
    rng: np.random.Generator, held_out: bool = False, look_up: bool = False
) -> tuple[Scene, list[tuple[str, Callable[[], str], str]]]:
    """A scene of shapes and its questions: kind, a function that words it, answer.

    Args:
        rng: where all chance comes from.
        held_out: in wordings that training does not see.
        look_up: only what is asked about one of several shapes, which is slower to learn.
    """
    scene = sample_scene(rng, (("list", "relation") if look_up else KINDS)[int(rng.integers(2 if look_up else len(KINDS)))])
    asked = questions_about(rng, scene)
    if look_up:
        asked = [one for one in asked if one[0] not in ABOUT_THE_WHOLE]
    return scene, [
        (f"shapes: {kind}", lambda words=words: reworded(rng, words, held_out), _answered(scene, kind, words, answer))
        for kind, words, answer in asked
    ]


def _answered(scene: Scene, kind: str, asked: str, answer: str) -> str:
    """The answer; of a question about one of several shapes after where all of them are, and where those that it names are."""
    if scene.kind not in ("list", "relation") or kind in ABOUT_THE_WHOLE:
        return answer
    places = {f"{item.colour} {item.shape}": PLACES[item.place] for item in sorted(scene.objects, key=lambda item: item.place[::-1])}
    seen = _placed(places, places)
    if kind == "place":
        return in_steps(seen, article(*_named(places, asked)), answer)
    if kind == "yes or no":
        return in_steps(seen, _placed(_named(places, asked), places), answer)
    return in_steps(seen, answer)


def _named(names: Iterable[str], asked: str) -> list[str]:
    """Those that a question names, in its order."""
    return sorted((name for name in names if name in asked), key=asked.index)


def _placed(names: Iterable[str], places: dict[str, str]) -> str:
    return ", ".join(f"{article(name)} {places[name]}" for name in names)


__all__ = ["asked_about_shapes", "digit", "digit_to_write", "render", "reworded", "shapes_to_draw"]
