"""Concepts (a turtle, a kick scooter, …) with their words, and a picture of each in three looks: 64×64 RGB on white.

A concept is here when all three packages draw it. Left out are the flags of countries and regions; plain shapes ("red circle"), which scenes
of shapes draw otherwise; and people that are told apart only by parts joined to them (gender, profession, family). Skin tones are never
concepts of their own.
"""

import io
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from .packages import CARTOON, FLAT, ROUND, WORDS, code_of, read_files

if TYPE_CHECKING:
    from datasets import Dataset

PICTURE_SIZE = 64
LOOKS = ("cartoon", "flat", "3d")
THING_GROUPS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")
WHICH = ("things", "all")
_SOURCES = {"cartoon": (CARTOON, "img/google/64/", ".png"), "flat": (FLAT, "img/twitter/64/", ".png"), "3d": (ROUND, "assets/", ".webp")}
_NAMES, _GROUPS = "en/data.json", "meta/groups.json"
_LEFT_OUT = ("country-flag", "subdivision-flag", "geometric")
_JOINER = "200d"
_DECODED = 8192  # pictures that are kept: all of them

Pair = tuple[str, str]


@dataclass(frozen=True)
class Concept:
    """What a picture shows.

    Attributes:
        code: its code points, such as "1f422" or "1f43b-200d-2744".
        name: in lower case: "turtle".
        tags: other words for it: ("terrapin", "tortoise").
        group, subgroup: as Unicode has them: "animals-nature", "animal-reptile".
    """

    code: str
    name: str
    tags: tuple[str, ...]
    group: str
    subgroup: str

    @property
    def thing(self) -> bool:
        """Whether this is an animal, food, a place, a vehicle, an activity or an object, not a face, a person or a symbol."""
        return self.group in THING_GROUPS


class Pictures:
    """All concepts, in Unicode's order, and their pictures.

    Args:
        concepts: with names that differ.
        files: of each look the encoded picture of each concept, by its code.

    Raises:
        ValueError: two concepts of one name or one code.
    """

    def __init__(self, concepts: Iterable[Concept], files: dict[str, dict[str, bytes]]):
        self.concepts = tuple(concepts)
        self.by_code = {concept.code: concept for concept in self.concepts}
        self.by_name = {concept.name: concept for concept in self.concepts}
        if min(len(self.by_code), len(self.by_name)) < len(self.concepts):
            raise ValueError("Two concepts have one name or one code; each must have its own.")
        self._files = files
        self._decoded = lru_cache(maxsize=_DECODED)(self._decode)

    @property
    def looks(self) -> tuple[str, ...]:
        """The looks of which there are pictures: `LOOKS`, and what was added."""
        return tuple(self._files)

    def with_look(self, look: str, files: dict[str, bytes]) -> "Pictures":
        """The same concepts in one look more, less those that it does not draw.

        Args:
            look: its name, as sentences say it.
            files: the encoded picture of each concept, by its code.

        Raises:
            ValueError: a look that is there already, or one that draws none of the concepts.
        """
        if look in self._files:
            raise ValueError(f"There is a look {look!r} already: give the new one another name.")
        concepts = [concept for concept in self.concepts if concept.code in files]
        if not concepts:
            raise ValueError(f"The look {look!r} draws none of the {len(self.concepts)} concepts; it has {len(files)} pictures.")
        return Pictures(concepts, {**self._files, look: files})

    def of(self, which: str) -> tuple[Concept, ...]:
        """The concepts that are "things", or "all".

        Raises:
            ValueError: another word.
        """
        if which not in WHICH:
            raise ValueError(f"There are the concepts {' and '.join(WHICH)}, not {which!r}.")
        return tuple(concept for concept in self.concepts if concept.thing or which == "all")

    def picture(self, code: str, look: str) -> Image.Image:
        """The picture of a concept in a look, 64×64 RGB; not to be changed, since it is kept.

        Raises:
            ValueError: an unknown concept or look, or a file that is no image.
        """
        if code not in self.by_code:
            raise ValueError(f"There is no concept {code!r} among the {len(self.concepts)} that were read.")
        if look not in self._files:
            raise ValueError(f"There is no look {look!r}; the looks are {', '.join(self.looks)}.")
        return self._decoded(code, look)

    def _decode(self, code: str, look: str) -> Image.Image:
        try:
            drawn = Image.open(io.BytesIO(self._files[look][code])).convert("RGBA")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"The file of {code} in the {look} look is no image that Pillow reads: {error}.") from error
        white = Image.new("RGBA", drawn.size, "white")
        whole = Image.alpha_composite(white, drawn).convert("RGB")
        return whole if whole.width == whole.height == PICTURE_SIZE else whole.resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.LANCZOS)


def read_pictures(folder: str | Path) -> Pictures:
    """The pictures of the packages in a folder; see `packages.fetch`. Pictures are decoded when they are first asked for.

    Raises:
        OSError: a package that is not there.
        ValueError: a package that is another one or is broken.
    """
    return _read(Path(folder).resolve())


@lru_cache(maxsize=2)
def _read(folder: Path) -> Pictures:
    files = {}
    for look, (package, inside, ending) in _SOURCES.items():
        read = read_files(folder, package, lambda name, start=inside, end=ending: name.startswith(start) and name.endswith(end))
        files[look] = {code_of(name): content for name, content in read.items()}
    words = read_files(folder, WORDS, (_NAMES, _GROUPS).__contains__)
    try:
        concepts = [
            concept
            for concept in _concepts(json.loads(words[_NAMES]), json.loads(words[_GROUPS]))
            if all(concept.code in files[look] for look in LOOKS)
        ]
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{WORDS.name} {WORDS.version} in {folder} is broken: {_NAMES} or {_GROUPS} is missing or of another form.") from error
    if not concepts:
        raise ValueError(f"No concept has a picture in all of the packages in {folder}: fetch them again.")
    return Pictures(concepts, files)


def _concepts(entries: list[dict[str, Any]], meta: dict[str, Any]) -> Iterator[Concept]:
    """What emojibase lists, in Unicode's order, less what is left out."""
    groups, subgroups = meta["groups"], meta["subgroups"]
    for entry in sorted((entry for entry in entries if "group" in entry), key=lambda entry: entry["order"]):
        code, group, subgroup = code_of(entry["hexcode"]), groups[str(entry["group"])], subgroups[str(entry["subgroup"])]
        if subgroup in _LEFT_OUT or (group == "people-body" and _JOINER in code.split("-")):
            continue
        name = plain(entry["label"])
        tags = tuple(dict.fromkeys(tag for tag in map(plain, entry.get("tags", ())) if tag and tag != name))
        yield Concept(code, name, tags, group, subgroup)


def plain(words: str) -> str:
    """Words in lower case, in the signs of a keyboard: "Japanese “here” button" → "japanese here button", "A button (blood type)" →
    "a button"."""
    words = words.partition(" (")[0].replace("’", "'").replace(":", "").replace("!", "")
    return " ".join("".join(sign for sign in words.lower() if sign not in '“”"').split())


def tokenizer_images(folder: str | Path, which: str = "all", pairs: Collection[Pair] | None = None) -> "Dataset":
    """The single pictures that may be trained on, as a dataset with "image" and "text", for an image tokenizer.

    Args:
        folder: see `read_pictures`.
        which: "things" or "all".
        pairs: (code, look) to take; by default those of the training split.
    """
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    from .split import training_pairs

    pictures = read_pictures(folder)
    chosen = training_pairs(pictures, which) if pairs is None else pairs
    rows = [{"image": pictures.picture(code, look), "text": f"{pictures.by_code[code].name}, {look} look"} for code, look in chosen]
    return Dataset.from_list(rows, features=Features({"image": ImageFeature(), "text": Value("string")}))


__all__ = ["LOOKS", "PICTURE_SIZE", "WHICH", "Concept", "Pair", "Pictures", "plain", "read_pictures", "tokenizer_images"]
