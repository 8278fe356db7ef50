"""A judge of edits of images with colored shapes: was done what the instruction asks for, and is the rest as it was?

It shares no code with what made the images: it reads the instruction and looks at both images by `judges.detect`.
"""

import math
import re
from dataclasses import dataclass, replace

from PIL import Image

from .judges import Detection, background, detect

_FORMS = {
    "recolor": r"make the (?P<colour>\w+) (?P<shape>\w+) (?P<new_colour>\w+)",
    "remove": r"remove the (?P<colour>\w+) (?P<shape>\w+)",
    "add": r"add a (?:(?P<size>small|large) )?(?P<new_colour>\w+) (?P<shape>\w+) (?P<place>(?:at|on|in) the [\w ]+)",
    "move": r"put the (?P<colour>\w+) (?P<shape>\w+) (?P<place>(?:at|on|in) the [\w ]+)",
}
_MOST_SHIFT = 0.06  # of the image's width, by which an object that stays may shift
_MOST_GROWTH = 1.5  # between the areas of an object that stays
_LARGE = 0.25  # of the image's width: the side from which an object is large
_COLUMNS, _ROWS = {"left": 0, "right": 2}, {"top": 0, "bottom": 2}


@dataclass(frozen=True)
class EditVerdict:
    """What the judge found.

    Args:
        kind: of the edit: "recolor", "remove", "add" or "move".
        done: whether the object is as the instruction wants it, and no longer as it was.
        untouched: objects before that the instruction does not name.
        kept: how many of them are in the image after, with color, shape, place and size.
        surplus: objects after that neither were there nor were asked for.
        same_background: whether the background is the same.
    """

    kind: str
    done: bool
    untouched: int
    kept: int
    surplus: int
    same_background: bool

    @property
    def rest_is_kept(self) -> bool:
        """Whether nothing changed that was not asked for."""
        return self.kept == self.untouched and self.surplus == 0 and self.same_background


def judge_edit(before: Image.Image, after: Image.Image, instruction: str) -> EditVerdict:
    """The verdict on an edited image.

    Raises:
        ValueError: an instruction of no known form, or one that names an object which the image before does not show exactly once.
    """
    kind, words = _read(instruction)
    objects, remaining = detect(before), detect(after)
    target = None
    if kind != "add":
        named = [item for item in objects if (item.colour, item.shape) == (words["colour"], words["shape"])]
        if len(named) != 1:
            raise ValueError(f"{instruction!r} names an object that the image before shows {len(named)} times.")
        target = named[0]
    kept = 0
    rest = [item for item in objects if item is not target]
    for item in rest:
        found = next((other for other in remaining if _is_same(item, other, before.width, after.width)), None)
        if found is not None:
            remaining.remove(found)
            kept += 1
    wanted = next((item for item in remaining if _is_wanted(item, kind, words, target, before, after)), None)
    if wanted is not None:
        remaining.remove(wanted)
    was_left = target is not None and any(_is_same(target, other, before.width, after.width) for other in remaining)
    done = not was_left and (kind == "remove" or wanted is not None)
    surplus = len(remaining) - was_left
    return EditVerdict(kind, done, len(rest), kept, surplus, background(before) == background(after))


def _read(instruction: str) -> tuple[str, dict[str, str]]:
    for kind, form in _FORMS.items():
        if match := re.fullmatch(form, instruction.strip().lower().rstrip(".")):
            return kind, match.groupdict()
    raise ValueError(f"{instruction!r} has none of the forms of an edit: make …, remove …, add …, put ….")


def _is_same(first: Detection, second: Detection, first_width: int, second_width: int) -> bool:
    """Whether two images show the same object at the same place, as large."""
    shift = math.dist(*([side / width for side in item.centre] for item, width in ((first, first_width), (second, second_width))))
    alike = (first.colour, first.shape) == (second.colour, second.shape)
    return alike and shift <= _MOST_SHIFT and _as_large(first, second, first_width, second_width)


def _as_large(first: Detection, second: Detection, first_width: int, second_width: int) -> bool:
    growth = (second.area / second_width**2) / (first.area / first_width**2)
    return 1 / _MOST_GROWTH <= growth <= _MOST_GROWTH


def _is_wanted(item: Detection, kind: str, words: dict[str, str], target: Detection | None, before: Image.Image, after: Image.Image) -> bool:
    """Whether an object after is the one that the instruction asks for."""
    if kind == "remove" or item.shape != words["shape"] or item.colour != words.get("new_colour", words.get("colour")):
        return False
    if kind == "recolor":
        unchanged = replace(target, colour=item.colour)
        return _is_same(unchanged, item, before.width, after.width)
    if kind == "move" and not _as_large(target, item, before.width, after.width):
        return False
    if words.get("size") and (words["size"] == "large") != (item.side / after.width >= _LARGE):
        return False
    return _cell(item.centre, after) == _cell_of(words["place"])


def _cell(centre: tuple[float, float], image: Image.Image) -> tuple[int, int]:
    """The third of the width and of the height in which a point lies."""
    return int(3 * centre[0] / image.width), int(3 * centre[1] / image.height)


def _cell_of(place: str) -> tuple[int, int]:
    """The same, of words such as "at the bottom left"."""
    words = place.split()
    column = next((_COLUMNS[word] for word in words if word in _COLUMNS), 1)
    return column, next((_ROWS[word] for word in words if word in _ROWS), 1)


__all__ = ["EditVerdict", "judge_edit"]
