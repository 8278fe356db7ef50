"""Conversations about things, shapes and digits: rows of training and test in the form that `training` reads.

A row is as in `vargpt_hf.tiny.rows`: `{"messages", "images", "output_images", "truth"}`. `truth` is JSON: of a drawing
`{"task", "wordings", "cells": [{"box", "codes", "look"}], "ordered"}` (a cell is right with any of its codes; "look" is null where none was
said; cells that are not ordered may change places), of one of shapes or digits what `vargpt_hf.tiny.rows` has, of a question
`{"task", "wordings", "asks", "answer"}`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..tiny.rows import DRAWING, IMAGE, Part, Row
from ..tiny.shapes import Scene as ShapeScene
from ..tiny.shapes import choice
from . import scenes, shape_rows
from .more_shapes import varied_scene
from .pictures import read_pictures
from .scenes import ONE, PLACED, RELATIONS, THREE, Scene, jittered
from .sentences import (
    Asked,
    Source,
    about_one,
    about_places,
    about_relation,
    about_scene,
    any_look,
    by_words,
    conclusion,
    description,
    first_step,
    in_look,
    of_scene,
    sample_scene,
    to_draw,
)
from .wordings import question, spoken

WORDINGS = ("trained", "held out")
_ONLY_IN_TESTS = "What is kept out of training is for the test split alone."
_LAYOUTS = (*RELATIONS, *RELATIONS, "beside", "beside", THREE, THREE)  # of scenes, all alike likely
_QUESTIONS_IN_TRAINING = 5  # about one image: with them a row is about as long as a drawing's, beside which it is padded
_COMPARING = ("is it", "is there", "where", "what is", "yes or no")  # kinds of questions that are slowest to learn: names have to be compared
_TIMES = 3  # that these are asked in place of once, each time of other things or in other words
_SMALL_TALK = (
    ("hello", "hello, i can draw things, shapes and digits and answer questions about pictures"),
    ("hi", "hello, i can draw things, shapes and digits and answer questions about pictures"),
    ("what can you do", "i can draw things, shapes and digits and answer questions about pictures"),
    ("who are you", "i am vargpt-emoji"),
    ("which looks do you know", "cartoon, flat and 3d"),
    ("thank you", "you are welcome"),
)


class Writer:
    """Writes the rows of one split: chance, what there is to show, and which wordings.

    Args:
        source: things.
        rng: where all chance comes from.
        split: "train" or "test".
        wordings: one of `WORDINGS`.
    """

    def __init__(self, source: Source, rng: np.random.Generator, split: str, wordings: str):
        self.source, self.rng, self.split, self.wordings = source, rng, split, wordings
        self.held_out, self.test = wordings == "held out", split == "test"

    # Drawings.

    def draw_pair(self, code: str, look: str) -> Row:
        """One thing in any look of the source's pictures, also in one that was added to them."""
        return self._drawing(in_look(self.rng, self.source, code, look, self.held_out), Scene((code,), look), look)

    def draw(self) -> Row:
        """One thing in a look of training."""
        return self.draw_pair(*self.source.pair(self.rng))

    def draw_unseen(self) -> Row:
        """One thing in a look that training does not show."""
        self._only_in_tests()
        return self.draw_pair(*self.source.pair(self.rng, unseen=True))

    def draw_plain(self) -> Row:
        """One thing of which no look is said: it is drawn in its default look."""
        code = self.source.concepts[int(self.rng.integers(len(self.source.concepts)))].code
        return self._drawing(any_look(self.rng, self.source, code), Scene((code,), self.source.default_look(code)), look=None)

    def draw_by_words(self) -> Row:
        """One thing that is not called by its name, but by a shorter one, its kind, its use or its tags."""
        words, codes, (code, look), told = by_words(self.rng, self.source, self.held_out)
        return self._drawing(words, Scene((code,), look), told, codes)

    def draw_placed(self) -> Row:
        """One thing in a cell of the picture, which is said."""
        return self._draw_scene(PLACED)

    def draw_scene(self) -> Row:
        """Two or three things in one picture."""
        return self._draw_scene(_LAYOUTS)

    def draw_scene_unseen(self) -> Row:
        """The same, one of the things in a look in which training does not show it."""
        self._only_in_tests()
        return self._draw_scene(_LAYOUTS, unseen=True)

    def draw_and_say(self) -> Row:
        """One thing or two, drawn and named."""
        scene = sample_scene(self.rng, self.source, choice(self.rng, (ONE, *RELATIONS)))
        thing = in_look(self.rng, self.source, scene.codes[0], scene.look) if scene.layout == ONE else of_scene(self.rng, self.source, scene)
        return self._drawing(thing, scene, look=scene.look, says=description(self.source, scene))

    def draw_shapes(self) -> Row:
        """Shapes, as vargpt-tiny draws them."""
        return self._draw_shapes(*shape_rows.shapes_to_draw(self.rng))

    def draw_varied_shapes(self) -> Row:
        """Shapes in more colors and of more forms, so that a model learns both apart."""
        return self._draw_shapes(*varied_scene(self.rng))

    def draw_shapes_unseen(self) -> Row:
        """A shape of a color in which training does not draw it."""
        self._only_in_tests()
        return self._draw_shapes(*shape_rows.shapes_to_draw(self.rng, unseen=True))

    def draw_digit(self) -> Row:
        """A handwritten digit."""
        image, number, words = shape_rows.digit_to_write(self.rng, self.split, self.held_out)
        return self._row([_text(words)], [DRAWING], {"task": "draw_digit", "digit": number}, drawings=[image])

    # Questions.

    def read(self) -> Row:
        """Questions about one thing in a look of training."""
        return self._read_pair(*self.source.pair(self.rng))

    def read_unseen(self) -> Row:
        """Questions about one thing in a look that training does not show."""
        self._only_in_tests()
        return self._read_pair(*self.source.pair(self.rng, unseen=True))

    def read_name(self) -> Row:
        """What one thing is: the one question with a thousand answers."""
        code, look = self.source.pair(self.rng)
        return self._asked("read_name", self._shown(Scene((code,), look)), lambda: [self._name_of(code)])

    def read_name_unseen(self) -> Row:
        """The same of a thing in a look that training does not show."""
        self._only_in_tests()
        code, look = self.source.pair(self.rng, unseen=True)
        return self._asked("read_name_unseen", self._shown(Scene((code,), look)), lambda: [self._name_of(code)])

    def read_scene(self) -> Row:
        """Questions about two or three things in one picture."""
        scene = sample_scene(self.rng, self.source, choice(self.rng, _LAYOUTS))
        return self._asked("read_scene", self._shown(scene), lambda: about_scene(self.rng, self.source, scene, self.held_out))

    def read_relation(self) -> Row:
        """What stands where of two things, and yes-or-no questions of it: slower to learn than all else about a scene."""
        scene = sample_scene(self.rng, self.source, choice(self.rng, RELATIONS))
        told = self.rng, self.source, scene, self.held_out
        return self._asked("read_relation", self._shown(scene), lambda: [*about_places(*told), *about_relation(*told)])

    def read_shapes(self) -> Row:
        """Questions about shapes."""
        return self._read_shapes("read_shapes", look_up=False)

    def look_up_shapes(self) -> Row:
        """Questions about one of several shapes, which has to be found first."""
        return self._read_shapes("look_up_shapes", look_up=True)

    def read_digit(self) -> Row:
        """Which digit is written."""
        image, number = shape_rows.digit(self.rng, self.split)
        return self._asked("read_digit", image, lambda: [("digit", question(self.rng, "digit", self.held_out), str(number))])

    def talk(self) -> Row:
        """Words without a picture."""
        asks, (asked, answer) = "text", choice(self.rng, _SMALL_TALK)
        kind, code = self.rng.random(), self.source.pair(self.rng)[0]
        if kind < 0.5:
            answer = description(self.source, sample_scene(self.rng, self.source, choice(self.rng, (ONE, *RELATIONS, THREE))))
            asked = f"repeat: {answer}"
        elif kind < 0.8:
            _, asked, answer = next(one for one in about_one(self.rng, self.source, code, self.source.default_look(code)) if one[0] == "group")
            name = self.source.name(code)
            asked = f"which group does the {name} belong to" if self.rng.random() < 0.5 else f"what group is the {name} in"
        truth = {"task": "talk", "asks": asks, "answer": answer}
        return self._row([_text(spoken(self.rng, asked, "."))], [_text(answer)], truth)

    # What they share.

    def _only_in_tests(self) -> None:
        if not self.test:
            raise ValueError(_ONLY_IN_TESTS)

    def _row(
        self, user: list[Part], assistant: list[Part], truth: dict, images: Sequence[Image.Image] = (), drawings: Sequence[Image.Image] = ()
    ) -> Row:
        messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        truth = json.dumps({**truth, "wordings": self.wordings})
        return {"messages": messages, "images": list(images), "output_images": list(drawings), "truth": truth}

    def _draw_scene(self, layouts: Sequence[str], unseen: bool = False) -> Row:
        scene = sample_scene(self.rng, self.source, choice(self.rng, layouts), unseen)
        return self._drawing(of_scene(self.rng, self.source, scene, self.held_out), scene, scene.look)

    def _drawing(self, thing: str, scene: Scene, look: str | None, codes: Sequence[str] = (), says: str | None = None) -> Row:
        """A request and what is drawn for it.

        Args:
            thing: what is asked for.
            scene: what is drawn.
            look: that was asked for, or None.
            codes: all concepts that would do, where it is not only the scene's.
            says: what is said after it is drawn.
        """
        cells = [{"box": box, "codes": list(codes or [code]), "look": look} for code, box in zip(scene.codes, scene.boxes)]
        truth = {"task": scene.layout, "cells": cells, "ordered": scene.layout in (ONE, *RELATIONS)}
        words = to_draw(self.rng, thing, self.held_out, say=says is not None)
        answer = [DRAWING] if says is None else [DRAWING, _text(says)]
        return self._row([_text(words)], answer, truth, drawings=[scenes.render(self.source.pictures, scene)])

    def _draw_shapes(self, scene: ShapeScene, words: str) -> Row:
        objects = [{"shape": item.shape, "colour": item.colour, "size": item.size} for item in scene.objects]
        truth = {"kind": scene.kind, "relation": scene.relation, "background": scene.background, "objects": objects}
        user = _text(to_draw(self.rng, words, self.held_out))
        return self._row([user], [DRAWING], {"task": "draw_shapes", **truth}, drawings=[shape_rows.render(scene)])

    def _read_pair(self, code: str, look: str) -> Row:
        return self._asked("read", self._shown(Scene((code,), look)), lambda: about_one(self.rng, self.source, code, look, self.held_out))

    def _name_of(self, code: str) -> Asked:
        return "name", question(self.rng, "name", self.held_out), self.source.name(code)

    def _read_shapes(self, task: str, look_up: bool) -> Row:
        scene, asked = shape_rows.asked_about_shapes(self.rng, self.held_out, look_up)
        return self._asked(task, shape_rows.render(scene), lambda: [(kind, word(), answer) for kind, word, answer in asked])

    def _shown(self, scene: Scene) -> Image.Image:
        image = scenes.render(self.source.pictures, scene)
        return image if self.test or scene.layout != ONE else jittered(image, self.rng)

    def _asked(self, task: str, image: Image.Image, asks: Callable[[], Sequence[Asked]]) -> Row:
        """Some of the questions about an image: one in tests, several in training, where what is seen is said once.

        Args:
            asks: makes everything that can be asked, each time anew.
        """
        asked = list(asks())
        if not self.test:
            asked += [one for _ in range(_TIMES - 1) for one in asks() if one[0] in _COMPARING]
        chosen = [asked[index] for index in self.rng.permutation(len(asked))[: 1 if self.test else _QUESTIONS_IN_TRAINING]]
        messages, said = [], set()
        for _, words, answer in chosen:
            seen, rest = first_step(answer)
            messages += [
                {"role": "user", "content": [_text(words)]},
                {"role": "assistant", "content": [_text(rest if seen in said else answer)]},
            ]
            said.add(seen)
        messages[0]["content"].insert(0, IMAGE)
        last = {"asks": chosen[-1][0], "answer": conclusion(answer)}
        truth = json.dumps({"task": task, "wordings": self.wordings, **last})
        return {"messages": messages, "images": [image], "output_images": [], "truth": truth}


def _text(text: str) -> Part:
    return {"type": "text", "text": text}


TASKS: dict[str, Callable[[Writer], Row]] = {
    task.__name__: task
    for task in (
        Writer.draw,
        Writer.draw_unseen,
        Writer.draw_plain,
        Writer.draw_by_words,
        Writer.draw_placed,
        Writer.draw_scene,
        Writer.draw_scene_unseen,
        Writer.draw_and_say,
        Writer.draw_shapes,
        Writer.draw_varied_shapes,
        Writer.draw_shapes_unseen,
        Writer.draw_digit,
        Writer.read,
        Writer.read_unseen,
        Writer.read_name,
        Writer.read_name_unseen,
        Writer.read_scene,
        Writer.read_relation,
        Writer.read_shapes,
        Writer.look_up_shapes,
        Writer.read_digit,
        Writer.talk,
    )
}
TEST_TASKS = tuple(task for task in TASKS if task.endswith("_unseen"))


def rows(
    mixture: dict[str, float],
    count: int,
    seed: int,
    split: str = "train",
    *,
    folder: str | Path,
    which: str = "things",
    wordings: str = "trained",
) -> Iterator[Row]:
    """Rows of several tasks, drawn by weight.

    Args:
        mixture: weight of each task of `TASKS`; those of `TEST_TASKS` are for tests alone.
        count: how many rows.
        seed: names the rows for good.
        split: "train" or "test"; no seed serves both. Rows of test show other digits, and single things as they are.
        folder: of the packages, see `packages.fetch`.
        which: "things", or "all" concepts, with faces, people and symbols.
        wordings: "trained", or "held out" ones, for tests.

    Raises:
        ValueError: an unknown task, split or set of wordings, no positive weight, a negative count, or wordings of tests in training.
        OSError: packages that cannot be read.
    """
    if unknown := set(mixture) - set(TASKS):
        raise ValueError(f"There is no task {', '.join(sorted(unknown))}; the tasks are {', '.join(TASKS)}.")
    check_split(split, wordings)
    names, weights = list(mixture), np.array(list(mixture.values()), dtype=np.float64)
    if not 0 < weights.sum() < np.inf or (weights < 0).any():
        raise ValueError(f"Weights must be finite and not negative, and one must be positive, got {mixture}.")
    if count < 0:
        raise ValueError(f"`count` must not be negative, got {count}.")
    rng = np.random.default_rng([seed, split == "test", WORDINGS.index(wordings)])
    writer = Writer(source_of(folder, which), rng, split, wordings)
    for index in rng.choice(len(names), size=count, p=weights / weights.sum()):
        yield TASKS[names[index]](writer)


def check_split(split: str, wordings: str, unseen: bool = False) -> None:
    """Refuses, by a ValueError, an unknown split or set of wordings, and in training what is kept out of it."""
    if split not in ("train", "test"):
        raise ValueError(f'`split` must be "train" or "test", got {split!r}.')
    if wordings not in WORDINGS or (wordings == "held out" and split == "train"):
        raise ValueError(f'`wordings` must be "trained", or "held out", which is for the test split alone, got {wordings!r} in {split!r}.')
    if unseen and split == "train":
        raise ValueError(_ONLY_IN_TESTS)


@lru_cache(maxsize=4)
def source_of(folder: str | Path, which: str) -> Source:
    """What sentences are made of, from the packages in a folder."""
    return Source(read_pictures(folder), which)


def distinct_drawings(mixture: dict[str, float], folder: str | Path, which: str = "things") -> int | None:
    """How many different pictures the drawings of a mixture can show in training; None where there is no end to them, as of scenes."""
    source, found = source_of(folder, which), set()
    for task in (task for task, weight in mixture.items() if weight and task.startswith("draw")):
        if task in ("draw", "draw_by_words"):
            found.update((code, look) for look, codes in source.seen.items() for code in codes)
        elif task == "draw_plain":
            found.update((concept.code, source.default_look(concept.code)) for concept in source.concepts)
        else:
            return None
    return len(found)


def captioned_images(count: int, seed: int, split: str = "train", *, folder: str | Path, which: str = "things") -> Iterator[dict[str, Any]]:
    """Images with captions that say all of them, `{"image", "text"}`, for image tokenizer and CLIP.

    Of ten, five are single things, two scenes, two shapes and one a digit; none shows what is kept out of training.

    Args:
        count: how many images.
        seed: names the images for good.
        split: "train" or "test".
        folder: of the packages.
        which: "things" or "all" concepts.
    """
    mixture = {"draw": 5.0, "draw_scene": 2.0, "draw_shapes": 1.0, "draw_varied_shapes": 1.0, "draw_digit": 1.0}
    for row in rows(mixture, count, seed + (1 << 32), split, folder=folder, which=which):
        yield {"image": row["output_images"][0], "text": row["messages"][0]["content"][0]["text"]}


def texts(count: int, seed: int, *, folder: str | Path, which: str = "things") -> Iterator[str]:
    """What is said in rows of all training tasks, with the roles' names, for the tokenizer."""
    for row in rows({name: 1.0 for name in TASKS if name not in TEST_TASKS}, count, seed, folder=folder, which=which):
        for message in row["messages"]:
            said = "".join(part.get("text", "") for part in message["content"])
            yield f"{message['role'].upper()}: {said}"


__all__ = [
    "TASKS",
    "TEST_TASKS",
    "WORDINGS",
    "Row",
    "Writer",
    "captioned_images",
    "check_split",
    "distinct_drawings",
    "rows",
    "source_of",
    "texts",
]
