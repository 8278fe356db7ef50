"""How one asks: wordings that training sees, and some that it does not, made of words that it sees elsewhere.

`{thing}` is something to draw, `{a}` and `{b}` are two things, `{name}` is one that is asked about. A test asserts that every word of a
held-out wording occurs in a trained one: what is measured is another sentence, not another language.
"""

from dataclasses import dataclass

import numpy as np

from ..tiny.shapes import choice


@dataclass(frozen=True)
class Wordings:
    """Sentences of one meaning.

    Attributes:
        trained: of training; the first is the plainest.
        held_out: of tests alone; where there are none, tests have the trained ones, too.
    """

    trained: tuple[str, ...]
    held_out: tuple[str, ...] = ()

    def choose(self, rng: np.random.Generator, held_out: bool = False) -> str:
        """One of them at random."""
        options = self.held_out if held_out and self.held_out else self.trained
        return choice(rng, options)


DRAW = Wordings(
    (
        "draw {thing}", "{thing}", "paint {thing}", "show me {thing}", "a picture of {thing}", "make a picture of {thing}",
        "draw {thing} please", "please draw {thing}", "can you draw {thing}", "could you paint {thing}", "i want to see {thing}",
        "i want a picture of {thing}", "give me {thing}", "an image of {thing}", "create an image of {thing}", "make an image with {thing}",
        "generate {thing}", "draw me {thing}", "show {thing} to me", "please make {thing} for me", "picture: {thing}", "{thing} please",
    ),
    (
        "please show me {thing}", "can you make a picture of {thing}", "could you draw {thing} please", "paint {thing} for me",
        "i want to see an image of {thing}", "create {thing}",
    ),
)  # fmt: skip
IN_A_LOOK = Wordings(
    (
        "{a} in the {look} look", "{a}, {look} look", "{a} in {look} style", "{a}, {look} style", "{a} in the {look} style", "{a}, {look}",
        "{a} with the {look} look", "{adjective}", "{look} look: {a}", "{a} ({look})", "the {look} look of {a}",
    ),
    ("{a} ({look} look)", "{a} with the {look} style", "{look} style: {a}", "the {look} style of {a}"),
)  # fmt: skip
BY_TAGS = Wordings(
    (
        "something about {tags}", "a thing that goes with {tags}", "something for the words {tags}", "what one calls {tags}",
        "a thing about {tags}",
    ),
    ("something that goes with {tags}", "a thing for the words {tags}"),
)  # fmt: skip

PAIRED: dict[str, Wordings] = {
    "left of": Wordings(
        (
            "{a} left of {b}", "{a} to the left of {b}", "{a} on the left and {b} on the right", "on the left {a}, on the right {b}",
            "left of {b} there is {a}", "{b} with {a} to the left of it", "on the left of the picture {a}, on the right {b}",
        ),
        ("{a} on the left of {b}", "{a} on the left, {b} on the right", "to the left of {b} there is {a}"),
    ),
    "right of": Wordings(
        (
            "{a} right of {b}", "{a} to the right of {b}", "{a} on the right and {b} on the left", "on the right {a}, on the left {b}",
            "right of {b} there is {a}", "{b} with {a} to the right of it", "on the right of the picture {a}, on the left {b}",
        ),
        ("{a} on the right of {b}", "{a} on the right, {b} on the left", "to the right of {b} there is {a}"),
    ),
    "above": Wordings(
        (
            "{a} above {b}", "{a} over {b}", "{a} at the top and {b} at the bottom", "at the top {a}, at the bottom {b}",
            "above {b} there is {a}", "{b} with {a} above it",
        ),
        ("{a} at the top, {b} at the bottom", "over {b} there is {a}", "{b} with {a} over it"),
    ),
    "below": Wordings(
        (
            "{a} below {b}", "{a} under {b}", "{a} at the bottom and {b} at the top", "at the bottom {a}, at the top {b}",
            "below {b} there is {a}", "{b} with {a} below it",
        ),
        ("{a} at the bottom, {b} at the top", "under {b} there is {a}", "{b} with {a} under it"),
    ),
    "beside": Wordings(
        (
            "{a} beside {b}", "{a} next to {b}", "{a} and {b}", "{a} with {b}", "{a} together with {b}", "{a} and {b} together",
            "side by side {a} and {b}", "both {a} and {b}",
        ),
        ("{a} and {b} side by side", "{a} with {b} beside it", "{a} and next to it {b}"),
    ),
}  # fmt: skip
PLACED = Wordings(
    ("{a} {place}", "{place} {a}", "{a} {place} of the picture", "{place} there is {a}", "a picture with {a} {place}"),
    ("{place} of the picture {a}", "{a}, {place}"),
)
THREE = Wordings(
    ("{a}, {b} and {c}", "{a} and {b} and {c}", "{a} with {b} and {c}", "{a}, {b} and {c} together", "{a} and {b} with {c}"),
    ("{a} together with {b} and {c}", "{a} beside {b} and {c}", "{a}, {b}, {c}"),
)
SAY = Wordings(
    ("draw {thing} and say what you drew", "draw {thing} and tell me what it is", "show me {thing} and say what it is"),
    ("paint {thing} and tell me what you drew",),
)
WRITE_DIGIT = Wordings(
    (
        "write the digit {digit}", "a handwritten {digit}", "draw a {digit}", "write {digit}", "the digit {digit}",
        "a handwritten digit {digit}",
        "please write a {digit}", "can you write the number {digit}", "draw the number {digit}", "write the number {digit} for me",
        "show me the digit {digit}", "a picture of the digit {digit}",
    ),
    ("please draw the digit {digit}", "write me a {digit}", "show me a handwritten {digit}", "the handwritten number {digit}"),
)  # fmt: skip

EDITS: dict[str, Wordings] = {
    "look": Wordings(
        (
            "make it {look}", "make it in the {look} look", "draw it in the {look} look", "change it to the {look} style",
            "the same in the {look} look", "show it in {look} style", "please make it {look}",
        ),
        ("change it to the {look} look", "please draw it in {look} style", "the same in {look} style"),
    ),
    "looks": Wordings(
        (
            "make them {look}", "make both {look}", "draw them in the {look} look", "change both to the {look} style",
            "the same in the {look} look", "please make them {look}",
        ),
        ("change them to the {look} look", "please draw both in {look} style"),
    ),
    "add": Wordings(
        ("add {thing} {place}", "put {thing} {place}", "draw {thing} {place}", "please add {thing} {place}", "{place}, add {thing}"),
        ("please put {thing} {place}", "{place}, draw {thing}"),
    ),
    "remove": Wordings(
        ("remove {old}", "take {old} away", "delete {old}", "please remove {old}", "i do not want to see {old}"),
        ("please take {old} away", "please delete {old}"),
    ),
    "replace": Wordings(
        (
            "replace {old} with {thing}", "put {thing} in place of {old}", "make {old} {thing}", "change {old} to {thing}",
            "i want {thing} in place of {old}", "please replace {old} with {thing}",
        ),
        ("please change {old} to {thing}", "draw {thing} in place of {old}"),
    ),
}  # fmt: skip

QUESTIONS: dict[str, Wordings] = {
    "name": Wordings(
        (
            "what is this", "what is it", "what do you see", "name this", "what is in the picture", "what does the picture show",
            "what thing is this", "tell me what this is", "can you tell me what you see", "what can you see here", "what is shown here",
            "what is it called", "say what it is",
        ),
        ("what do you see here", "tell me what it is", "what is this called", "what is shown in the picture"),
    ),
    "look": Wordings(
        (
            "which look is this", "what look does it have", "in which look is it drawn", "what style is this", "which style is it drawn in",
            "is it flat, cartoon or 3d", "tell me the look", "name the style", "which look does this picture have",
        ),
        ("which style is this", "what look is this", "in which style is it drawn", "name the look"),
    ),
    "group": Wordings(
        (
            "what group does it belong to", "which group is this in", "what group is it in", "tell me the group",
            "to which group does this belong", "name the group of this",
        ),
        ("which group does it belong to", "what group is this in", "name the group"),
    ),
    "kind": Wordings(
        (
            "what kind of thing is it", "what kind is this", "which kind of thing is this", "tell me the kind", "of what kind is it",
            "what sort of thing is this", "which sort is it",
        ),
        ("what kind of thing is this", "which kind is it", "what sort is this"),
    ),
    "color": Wordings(
        (
            "what color is it", "what colour is it", "which color does it have", "which colour does it have", "tell me the color",
            "what is its color", "what is its colour",
        ),
        ("which color is it", "what colour does it have"),
    ),
    "is it": Wordings(
        ("is this {a}", "is it {a}", "does the picture show {a}", "do you see {a}", "is {a} shown here"),
        ("does it show {a}", "can you see {a}"),
    ),
    "is there": Wordings(
        ("is there {a}", "do you see {a}", "is {a} in the picture", "does the picture show {a}", "can you see {a} here",
        "is {a} among the things"),
        ("is there {a} in the picture", "do you see {a} here", "is {a} here"),
    ),
    "count": Wordings(
        (
            "how many things are there", "how many objects are there", "how many things do you see", "count the things",
            "how many objects are in the picture", "tell me how many things there are", "what is the number of things",
        ),
        ("how many things are in the picture", "count the objects", "how many objects do you see"),
    ),
    "what is": Wordings(
        (
            "what is {relation} the {b}", "what stands {relation} the {b}", "which thing is {relation} the {b}",
            "name the thing {relation} the {b}",
            "what do you see {relation} the {b}", "tell me what is {relation} the {b}", "{relation} the {b}, what is there",
        ),
        ("which thing stands {relation} the {b}", "what thing do you see {relation} the {b}", "say what is {relation} the {b}"),
    ),
    "yes or no": Wordings(
        (
            "is the {a} {relation} the {b}", "does the {a} stand {relation} the {b}", "can you see the {a} {relation} the {b}",
            "is it true that the {a} is {relation} the {b}", "the {a} is {relation} the {b}, is it not",
            "do you see the {a} {relation} the {b}",
            "tell me, is the {a} {relation} the {b}",
        ),
        ("is it true that the {a} stands {relation} the {b}", "the {a} stands {relation} the {b}, is it true",
        "does the picture show the {a} {relation} the {b}"),
    ),
    "where": Wordings(
        ("where is the {a}", "where do you see the {a}", "in which place is the {a}", "tell me where the {a} is", "where does the {a} stand"),
        ("where can you see the {a}", "in which place do you see the {a}", "say where the {a} is"),
    ),
    "describe": Wordings(
        (
            "describe the picture", "describe what you see", "tell me about the picture", "what does the whole picture show", "describe this",
            "describe the whole picture",
        ),
        ("describe this picture", "tell me about the whole picture"),
    ),
    "digit": Wordings(
        (
            "which digit is this", "what number is this", "read the digit", "what digit do you see", "what is written here",
            "which number is written in the picture", "tell me the digit", "what digit is it", "which number do you see",
            "what number was written", "can you read this digit", "which digit is shown here", "say which digit this is",
        ),
        ("which digit is written here", "what number do you see here", "read the number", "what digit is shown"),
    ),
    "background": Wordings(
        ("what colour is the background", "what color is the background", "which color does the background have",
        "tell me the color of the background"),
        ("which color is the background", "what is the color of the background"),
    ),
    "colors of": Wordings(
        ("what colour are the {a}", "what color are the {a}", "which color do the {a} have", "tell me the color of the {a}"),
        ("which color are the {a}", "what is the color of the {a}"),
    ),
    "color of": Wordings(
        ("what colour is the {a}", "what color is the {a}", "which color does the {a} have", "tell me the color of the {a}"),
        ("which color is the {a}", "what is the color of the {a}"),
    ),
    "shapes": Wordings(
        ("what shape are they", "which shape do they have", "what shape do you see"),
        ("which shape are they", "what shape do they have"),
    ),
    "shape of": Wordings(
        ("what shape is the {a}", "which shape does the {a} have", "what shape does the {a} have", "tell me the shape of the {a}"),
        ("which shape is the {a}", "what is the shape of the {a}"),
    ),
}  # fmt: skip
RELATION_WORDS: dict[str, Wordings] = {
    "left of": Wordings(("left of", "to the left of"), ("on the left of",)),
    "right of": Wordings(("right of", "to the right of"), ("on the right of",)),
    "above": Wordings(("above", "over")),
    "below": Wordings(("below", "under")),
}
_CAPITAL, _MARK = 0.2, 0.25  # shares of what is said with a capital letter in front, and with a mark at the end


def spoken(rng: np.random.Generator, words: str, mark: str) -> str:
    """Words as people type them: now and then with a capital letter, now and then with the mark that closes the sentence."""
    if rng.random() < _CAPITAL:
        words = words[:1].upper() + words[1:]
    return words + mark if rng.random() < _MARK else words


def question(rng: np.random.Generator, kind: str, held_out: bool = False, relation: str | None = None, **names: str) -> str:
    """A question of one kind of `QUESTIONS`, as people type it.

    Args:
        rng: chooses the wording.
        kind: of the question.
        held_out: choose among the wordings that training does not see.
        relation: one of `RELATION_WORDS`, where the kind has one.
        names: of the things in it: "a", "b".
    """
    if relation is not None:
        names["relation"] = RELATION_WORDS[relation].choose(rng, held_out)
    return spoken(rng, QUESTIONS[kind].choose(rng, held_out).format(**names), "?")


__all__ = [
    "BY_TAGS",
    "DRAW",
    "EDITS",
    "IN_A_LOOK",
    "PAIRED",
    "QUESTIONS",
    "RELATION_WORDS",
    "SAY",
    "THREE",
    "WRITE_DIGIT",
    "Wordings",
    "question",
    "spoken",
]
