"""Conversations about scenes and digits: rows of training and test in the form that `training` reads.

A row is `{"messages", "images", "output_images", "truth"}`: parts of type "image" stand for `images` (to read), parts of
type "output_image" for `output_images` (to draw), both in reading order; `truth` is what a judge needs, as JSON.
"""

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from .digits import sample_digit
from .shapes import ALL_PAIRS, HELD_OUT_PAIRS, KINDS, PLACES, RELATIONS, SIZES, Pair, Scene, SceneObject, choice, render, sample_scene

Row = dict[str, Any]
Part = dict[str, str]

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SEEN_PAIRS = ALL_PAIRS - HELD_OUT_PAIRS
IMAGE, DRAWING = {"type": "image"}, {"type": "output_image"}

_DRAW_WORDINGS = (
    "draw {}",
    "{}",
    "paint {}",
    "draw {} please",
    "a picture of {}",
    "make a picture of {}",
    "show me {}",
)
_DIGIT_WORDINGS = ("write the digit {}", "a handwritten {}", "draw a {}", "write {}", "the digit {}", "a handwritten digit {}")
_READ_WORDINGS = ("which digit is this", "what number is this", "read the digit")
_SMALL_TALK = (
    ("hello", "hello, i can draw shapes and digits and answer questions about pictures"),
    ("what can you do", "i can draw shapes and digits and answer questions about pictures"),
    ("who are you", "i am vargpt-tiny"),
    ("thank you", "you are welcome"),
)
_SHARE_SIZE_SAID, _SHARE_BACKGROUND_SAID, _SHARE_PLACE_SAID = 0.3, 0.2, 0.4
_QUESTIONS_IN_TRAINING = 2
ABOUT_THE_WHOLE = ("count", "background", "describe")  # kinds of questions
_DRAWN_BACKGROUNDS = ("white", "black")


def describe(scene: Scene, size: bool = False, background: bool = False, place: bool = False) -> str:
    """The scene in words: "a red circle above a blue square", with sizes, background or the first object's place where asked."""
    names = [_name(item, size) for item in scene.objects]
    if scene.kind == "count":
        item = scene.objects[0]
        text = f"{NUMBERS[len(names)]} {item.size + ' ' if size else ''}{item.colour} {plural(item.shape)}"
    elif scene.kind == "relation":
        text = f"{names[0]} {scene.relation} {names[1]}"
    else:
        text = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    text = f"{text} {PLACES[scene.objects[0].place]}" if place else text
    return f"{text} on {_article(scene.background)} background" if background else text


def plural(shape: str) -> str:
    """The plural of a shape's name."""
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _name(item: SceneObject, size: bool = False) -> str:
    return _article(f"{item.size + ' ' if size else ''}{item.colour} {item.shape}")


def _truth(scene: Scene) -> dict[str, Any]:
    objects = [{"shape": item.shape, "colour": item.colour, "size": item.size} for item in scene.objects]
    return {"kind": scene.kind, "relation": scene.relation, "background": scene.background, "objects": objects}


def _row(user: list[Part], assistant: list[Part], truth: Any, images: list[Image.Image] = (), drawings: list[Image.Image] = ()) -> Row:
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return {"messages": messages, "images": list(images), "output_images": list(drawings), "truth": json.dumps(truth)}


def _text(text: str) -> Part:
    return {"type": "text", "text": text}


def scene_to_draw(
    rng: np.random.Generator, must_show: frozenset = frozenset(), kind: str | None = None, pairs: Collection[Pair] = SEEN_PAIRS
) -> tuple[Scene, str]:
    """A scene and its words; what they do not say is drawn in one way: large, on white, placed by `ARRANGEMENTS`."""
    kind = choice(rng, KINDS) if kind is None else kind
    says_background, says_size = rng.random() < _SHARE_BACKGROUND_SAID, rng.random() < _SHARE_SIZE_SAID
    says_place = kind == "single" and rng.random() < _SHARE_PLACE_SAID
    scene = sample_scene(
        rng,
        kind,
        pairs=pairs,
        must_show=must_show,
        background=choice(rng, _DRAWN_BACKGROUNDS) if says_background else "white",
        sizes=tuple(SIZES) if says_size else ("large",),
        arranged=not says_place,
    )
    return scene, describe(scene, size=says_size, background=says_background, place=says_place)


def _draw(rng: np.random.Generator, split: str) -> Row:
    scene, words = scene_to_draw(rng)
    return _row([_text(choice(rng, _DRAW_WORDINGS).format(words))], [DRAWING], _truth(scene), drawings=[render(scene)])


def _draw_unseen(rng: np.random.Generator, split: str) -> Row:
    if split != "test":
        raise ValueError("The held-out pairs of colour and shape are for the test split alone.")
    scene, words = scene_to_draw(rng, HELD_OUT_PAIRS, kind="single")
    return _row([_text(choice(rng, _DRAW_WORDINGS).format(words))], [DRAWING], _truth(scene), drawings=[render(scene)])


def _draw_digit(rng: np.random.Generator, split: str) -> Row:
    image, digit = sample_digit(rng, split, augment=split == "train")
    words = choice(rng, _DIGIT_WORDINGS).format(choice(rng, (str(digit), NUMBERS[digit])))
    return _row([_text(words)], [DRAWING], {"digit": digit}, drawings=[image.convert("RGB")])


def _draw_and_say(rng: np.random.Generator, split: str) -> Row:
    scene, words = scene_to_draw(rng)
    user = _text(f"draw {words} and say what you drew")
    return _row([user], [DRAWING, _text(words)], {**_truth(scene), "answer": words}, drawings=[render(scene)])


def _draw_two(rng: np.random.Generator, split: str) -> Row:
    single = {"kind": "single", "pairs": SEEN_PAIRS, "background": "white", "sizes": ("large",), "arranged": True}
    scenes = [sample_scene(rng, **single) for _ in range(2)]
    user = _text("draw {} and then {}".format(*map(describe, scenes)))
    return _row([user], [DRAWING, DRAWING], [_truth(scene) for scene in scenes], drawings=[render(scene) for scene in scenes])


def _read_digit(rng: np.random.Generator, split: str) -> Row:
    image, digit = sample_digit(rng, split, augment=split == "train")
    truth = {"asks": "digit", "answer": str(digit)}
    return _row([IMAGE, _text(choice(rng, _READ_WORDINGS))], [_text(str(digit))], truth, images=[image.convert("RGB")])


def _ask(rng: np.random.Generator, split: str) -> Row:
    """One question about an image; in training several, since each further one costs little beside the image."""
    scene = sample_scene(rng, choice(rng, KINDS))
    questions = questions_about(rng, scene)
    chosen = [questions[index] for index in rng.permutation(len(questions))[: 1 if split == "test" else _QUESTIONS_IN_TRAINING]]
    messages = []
    for _, question, answer in chosen:
        messages += [{"role": "user", "content": [_text(question)]}, {"role": "assistant", "content": [_text(answer)]}]
    messages[0]["content"].insert(0, IMAGE)
    asks, _, answer = chosen[-1]
    return {"messages": messages, "images": [render(scene)], "output_images": [], "truth": json.dumps({"asks": asks, "answer": answer})}


def _look_up(rng: np.random.Generator, split: str) -> Row:
    """A question about one of several things: it has to be found first, which is slower to learn than all else that `_ask` asks."""
    scene = sample_scene(rng, choice(rng, ("list", "relation")))
    asks, question, answer = choice(rng, [asked for asked in questions_about(rng, scene) if asked[0] not in ABOUT_THE_WHOLE])
    return _row([IMAGE, _text(question)], [_text(answer)], {"asks": asks, "answer": answer}, images=[render(scene)])


def questions_about(rng: np.random.Generator, scene: Scene) -> list[tuple[str, str, str]]:
    """Everything that can be asked about a scene and has one right answer: (kind, question, answer)."""
    objects = scene.objects
    questions = [
        ("count", "how many objects are there", NUMBERS[len(objects)]),
        ("background", "what colour is the background", scene.background),
    ]
    if scene.kind != "list":  # the order of a list cannot be seen
        questions.append(("describe", "describe the picture", describe(_as_seen(scene))))
    if scene.kind == "count":
        item = objects[0]
        questions += [("colour", f"what colour are the {plural(item.shape)}", item.colour), ("shape", "what shape are they", item.shape)]
        return questions
    shapes, colours = [item.shape for item in objects], [item.colour for item in objects]
    for item in objects:
        if shapes.count(item.shape) == 1:
            questions.append(("colour", f"what colour is the {item.shape}", item.colour))
        if colours.count(item.colour) == 1:
            questions.append(("shape", f"what shape is the {item.colour} object", item.shape))
        questions.append(("place", f"where is the {item.colour} {item.shape}", PLACES[item.place]))
    if scene.kind == "relation":
        first, second = (f"{item.colour} {item.shape}" for item in objects)
        questions += 2 * [("relation", f"what is {scene.relation} the {second}", _article(first))]
        # Only the opposite relation is surely wrong: "left of" may or may not hold of a thing that is above.
        asked = choice(rng, (scene.relation, _opposite(scene.relation)))
        questions += 2 * [("yes or no", f"is the {first} {asked} the {second}", "yes" if asked == scene.relation else "no")]
    return questions


def _as_seen(scene: Scene) -> Scene:
    """The scene said in one way: an image with one thing below another shows that other one above."""
    if scene.relation in (None, "above", "left of"):
        return scene
    return replace(scene, objects=scene.objects[::-1], relation=_opposite(scene.relation))


def _opposite(relation: str) -> str:
    return RELATIONS[RELATIONS.index(relation) ^ 1]


def _talk(rng: np.random.Generator, split: str) -> Row:
    kind = rng.random()
    if kind < 0.2:
        question, answer = choice(rng, _SMALL_TALK)
    elif kind < 0.3:
        number = int(rng.integers(len(NUMBERS) - 1))
        question, answer = f"what comes after {NUMBERS[number]}", NUMBERS[number + 1]
    else:
        answer = describe(sample_scene(rng), size=rng.random() < 0.4, background=rng.random() < 0.3)
        question = f"repeat: {answer}"
    return _row([_text(question)], [_text(answer)], {"asks": "text", "answer": answer})


TASKS: dict[str, Callable[[np.random.Generator, str], Row]] = {
    "draw": _draw,
    "draw_unseen": _draw_unseen,
    "draw_digit": _draw_digit,
    "draw_and_say": _draw_and_say,
    "draw_two": _draw_two,
    "ask": _ask,
    "look_up": _look_up,
    "read_digit": _read_digit,
    "talk": _talk,
}


def rows(mixture: dict[str, float], count: int, seed: int, split: str = "train") -> Iterator[Row]:
    """Rows of several tasks, drawn by weight.

    Args:
        mixture: weight of each task of `TASKS`.
        count: how many rows.
        seed: names the rows for good.
        split: "train" or "test"; the test rows of digits show other digits, and no seed serves both.

    Raises:
        ValueError: an unknown task or split, or no positive weight.
    """
    if unknown := set(mixture) - set(TASKS):
        raise ValueError(f"There is no task {', '.join(sorted(unknown))}; the tasks are {', '.join(TASKS)}.")
    if split not in ("train", "test"):
        raise ValueError(f'`split` must be "train" or "test", got {split!r}.')
    names, weights = list(mixture), np.array(list(mixture.values()), dtype=np.float64)
    if not weights.sum() > 0 or (weights < 0).any():
        raise ValueError(f"Weights must not be negative and one must be positive, got {mixture}.")
    rng = np.random.default_rng([seed, split == "test"])
    for _ in range(count):
        yield TASKS[names[rng.choice(len(names), p=weights / weights.sum())]](rng, split)


def captioned_images(count: int, seed: int, split: str = "train", pairs: Collection[Pair] = ALL_PAIRS) -> Iterator[dict[str, Any]]:
    """Images with captions that say all of them, `{"image", "text"}`, for image tokenizer and CLIP; a fifth are digits.

    Args:
        count: how many images.
        seed: names the images for good.
        split: "train" or "test".
        pairs: the (colour, shape) pairs that may be shown.
    """
    rng = np.random.default_rng([seed, split == "test", 1])
    for _ in range(count):
        if rng.random() < 0.2:
            image, digit = sample_digit(rng, split, augment=split == "train")
            yield {"image": image.convert("RGB"), "text": f"a handwritten {NUMBERS[digit]}"}
        else:
            scene = sample_scene(rng, choice(rng, KINDS), pairs=pairs)
            words = describe(scene, size=rng.random() < 0.7, background=rng.random() < 0.7)
            yield {"image": render(scene), "text": words}


def texts(count: int, seed: int) -> Iterator[str]:
    """What is said in rows of all training tasks, with the roles' names, for the tokenizer."""
    for row in rows({name: 1.0 for name in TASKS if name != "draw_unseen"}, count, seed):
        for message in row["messages"]:
            said = "".join(part.get("text", "") for part in message["content"])
            yield f"{message['role'].upper()}: {said}"
