"""What is said about things and scenes: what to draw, and questions with the one right answer of each."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from ..tiny.rows import NUMBERS
from ..tiny.shapes import choice
from .kinds import GROUP_WORDS, KIND_WORDS, article, by_tags, color_of, drawable, short_names
from .pictures import LOOKS, Concept, Pair, Pictures
from .scenes import LAYOUTS, PLACES, THREE, Scene, opposite
from .split import held_out_pairs
from .wordings import BY_TAGS, DRAW, IN_A_LOOK, PAIRED, PLACED, SAY, question, spoken
from .wordings import THREE as THREE_WORDINGS

DEFAULT_LOOKS = ("flat", "cartoon", "3d")  # in the first of these that training shows, a thing is drawn where no look is said
_SHARE_LOOK_SAID = 0.5  # of what is not called by its name
_SHARE_COLOR_SAID = 0.3  # where it has one
_CAPITALS = 0.4  # share of "3D" among "3d"
_MOST_OF_TAGS = 4  # concepts that tags in a sentence may stand for
_BARE, _DEFINITE = 0.2, 0.15  # shares of things said as "turtle" and "the turtle"
_SAME_GROUP = 0.5  # share of wrong things in a question that are of the same group as the right one

Asked = tuple[str, str, str]  # kind of question, question, answer
_STEP = ": "  # between what is seen, what is looked up in it, and what follows from that
_NOWHERE = "nowhere"


@dataclass(frozen=True)
class Source:
    """What rows are made of.

    Args:
        pictures: all of them.
        which: concepts that are shown: "things" or "all".
    """

    pictures: Pictures
    which: str = "things"
    concepts: tuple[Concept, ...] = field(init=False)
    seen: dict[str, tuple[str, ...]] = field(init=False)
    unseen: dict[str, tuple[str, ...]] = field(init=False)
    drawable: dict[str, tuple[str, ...]] = field(init=False)
    short: dict[str, tuple[str, ...]] = field(init=False)
    tagged: dict[str, frozenset[str]] = field(init=False)

    def __post_init__(self):
        concepts, held_out = self.pictures.of(self.which), held_out_pairs()
        kept_out, seen = (
            {look: tuple(c.code for c in concepts if ((c.code, look) in held_out) is kept) for look in LOOKS} for kept in (True, False)
        )
        if not all(len(codes) >= 3 for codes in seen.values()):
            raise ValueError(f"The packages have too few concepts that training may show: {len(concepts)}; three in each look are needed.")
        made = {
            "concepts": concepts,
            "seen": seen,
            "unseen": kept_out,
            "drawable": drawable(concepts),
            "short": short_names(concepts),
            "tagged": by_tags(concepts),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)

    def default_look(self, code: str) -> str:
        """The look in which a thing is drawn where none is said."""
        return next(look for look in DEFAULT_LOOKS if (code, look) not in held_out_pairs())

    def pair(self, rng: np.random.Generator, unseen: bool = False) -> Pair:
        """Any (code, look) of training, or any that is kept out, all alike likely.

        Raises:
            ValueError: none is kept out.
        """
        codes = self.unseen if unseen else self.seen
        total = sum(map(len, codes.values()))
        if not total:
            raise ValueError("The packages have no pair that is kept out of training.")
        index = int(rng.integers(total))
        for look in LOOKS:
            if index < len(codes[look]):
                return codes[look][index], look
            index -= len(codes[look])
        raise AssertionError

    def name(self, code: str) -> str:
        """Of a concept."""
        return self.pictures.by_code[code].name


@lru_cache(maxsize=8192)
def _color(pictures: Pictures, code: str, look: str) -> str | None:
    return color_of(pictures.picture(code, look))


def said(rng: np.random.Generator, name: str) -> str:
    """A name as it stands in a sentence: "a turtle", "the turtle", "turtle"."""
    kind = rng.random()
    return name if kind < _BARE else f"the {name}" if kind < _BARE + _DEFINITE else article(name)


def in_look(rng: np.random.Generator, source: Source, code: str, look: str, held_out: bool = False) -> str:
    """A thing in a look: "a turtle in the flat look", "a flat turtle", "a green turtle, flat style"."""
    name = _with_color(rng, source, code, look)
    return _looking(rng, said(rng, name), look, held_out, article(f"{_look_word(rng, look)} {name}"))


def _looking(rng: np.random.Generator, things: str, look: str, held_out: bool = False, adjective: str | None = None) -> str:
    """Things with their look; `adjective` says both in one, where that can be said."""
    template = IN_A_LOOK.choose(rng, held_out)
    while "{adjective}" in template and adjective is None:
        template = IN_A_LOOK.choose(rng, held_out)
    return template.format(a=things, look=_look_word(rng, look), adjective=adjective)


def _look_word(rng: np.random.Generator, look: str) -> str:
    return look.upper() if look == "3d" and rng.random() < _CAPITALS else look


def _with_color(rng: np.random.Generator, source: Source, code: str, look: str) -> str:
    color, name = _color(source.pictures, code, look), source.name(code)
    return f"{color} {name}" if color and color not in name.split() and rng.random() < _SHARE_COLOR_SAID else name


def any_look(rng: np.random.Generator, source: Source, code: str) -> str:
    """A thing with nothing said of its look; of its color, what is true in the look in which it is then drawn."""
    return said(rng, _with_color(rng, source, code, source.default_look(code)))


def by_words(rng: np.random.Generator, source: Source, held_out: bool = False) -> tuple[str, tuple[str, ...], Pair, str | None]:
    """Something that is not called by its name, but by a shorter one, its kind, its use or its tags.

    Returns:
        What is said of it; the codes of all that it may be; the (code, look) to draw; the look, where it is said.
    """
    kind = rng.random()
    if kind < 0.35:
        words, codes = _one_of(rng, source.drawable)
    elif kind < 0.65 and source.short:
        return _by_short_name(rng, source, held_out)
    else:
        words, codes = _by_tags(rng, source, held_out)
    code, look, told = _drawn_as(rng, source, codes)
    return (words if told is None else _looking(rng, words, look, held_out)), codes, (code, look), told


def _one_of(rng: np.random.Generator, named: dict[str, tuple[str, ...]]) -> tuple[str, tuple[str, ...]]:
    words = choice(rng, list(named))
    return words, named[words]


def _drawn_as(rng: np.random.Generator, source: Source, codes: Sequence[str]) -> tuple[str, str, str | None]:
    """One of the concepts, the look to draw it in, and that look once more where it is to be said."""
    code = choice(rng, codes)
    if rng.random() < _SHARE_LOOK_SAID:
        looks = [look for look in LOOKS if (code, look) not in held_out_pairs()]
        look = choice(rng, looks)
        return code, look, look
    return code, source.default_look(code), None


def _by_short_name(rng: np.random.Generator, source: Source, held_out: bool) -> tuple[str, tuple[str, ...], Pair, str | None]:
    """ "a scooter", "a red scooter": of a color only what has it in the look in which it is drawn."""
    word, codes = _one_of(rng, source.short)
    code, look, told = _drawn_as(rng, source, codes)
    color = _color(source.pictures, code, look)
    if color is not None and rng.random() < _SHARE_COLOR_SAID:
        word = f"{color} {word}"
        codes = tuple(other for other in codes if _color(source.pictures, other, told or source.default_look(other)) == color)
    thing = said(rng, word)
    return (thing if told is None else _looking(rng, thing, look, held_out)), codes, (code, look), told


def _by_tags(rng: np.random.Generator, source: Source, held_out: bool) -> tuple[str, tuple[str, ...]]:
    while True:
        concept = choice(rng, source.concepts)
        tags = [concept.tags[index] for index in rng.permutation(len(concept.tags))[: int(rng.integers(1, 4))]]
        codes = frozenset.intersection(*(source.tagged[tag] for tag in tags)) if tags else frozenset()
        if 0 < len(codes) <= _MOST_OF_TAGS:
            return BY_TAGS.choose(rng, held_out).format(tags=_listed(tags)), tuple(sorted(codes))


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def of_scene(rng: np.random.Generator, source: Source, scene: Scene, held_out: bool = False) -> str:
    """What a scene of things in cells shows, with its look: "a turtle left of a frog in the flat look", "a turtle at the top, flat style"."""
    names = [said(rng, source.name(code)) for code in scene.codes]
    wordings = THREE_WORDINGS if scene.layout == THREE else PAIRED.get(scene.layout, PLACED)
    words = wordings.choose(rng, held_out).format(**dict(zip("abc", names)), place=scene.layout)
    return _looking(rng, words, scene.look, held_out)


def to_draw(rng: np.random.Generator, thing: str, held_out: bool = False, say: bool = False) -> str:
    """A request to draw something, and with `say` to say what it is."""
    return spoken(rng, (SAY if say else DRAW).choose(rng, held_out).format(thing=thing), ".")


def description(source: Source, scene: Scene) -> str:
    """A scene in the one way in which answers say it: "a turtle left of a frog", "a turtle, a frog and a bus"."""
    names = [article(source.name(code)) for code in scene.codes]
    if scene.relation is None:
        return _listed(names)
    first, second, relation = *names, scene.relation
    if relation in ("right of", "below"):
        first, second, relation = second, first, opposite(relation)
    return f"{first} {relation} {second}"


def about_one(rng: np.random.Generator, source: Source, code: str, look: str, held_out: bool = False) -> list[Asked]:
    """What can be asked about a picture of one thing."""
    concept = source.pictures.by_code[code]
    seen = article(concept.name)
    asked = [
        ("name", question(rng, "name", held_out), concept.name),
        ("look", question(rng, "look", held_out), look),
        ("group", question(rng, "group", held_out), in_steps(seen, GROUP_WORDS[concept.group])),
        ("describe", question(rng, "describe", held_out), seen),
        ("count", question(rng, "count", held_out), NUMBERS[1]),
        _is_it(rng, source, code, held_out),
    ]
    if concept.subgroup in KIND_WORDS:
        asked.append(("kind", question(rng, "kind", held_out), in_steps(seen, KIND_WORDS[concept.subgroup])))
    if (color := _color(source.pictures, code, look)) is not None:
        asked.append(("color", question(rng, "color", held_out), color))
    return asked


def _is_it(rng: np.random.Generator, source: Source, code: str, held_out: bool) -> Asked:
    asked = _shown_or_not(rng, source, (code,))
    seen, named = (article(source.name(one)) for one in (code, asked))
    return "is it", question(rng, "is it", held_out, a=named), in_steps(seen, named, "yes" if asked == code else "no")


def _shown_or_not(rng: np.random.Generator, source: Source, shown: Sequence[str]) -> str:
    """What to ask for: half of the times something that is shown."""
    code = choice(rng, shown)
    if rng.random() < 0.5:
        return code
    group, same = source.pictures.by_code[code].group, rng.random() < _SAME_GROUP
    others = [c.code for c in source.concepts if c.code not in shown]
    near = [other for other in others if source.pictures.by_code[other].group == group] if same else []
    return choice(rng, near or others)


def about_scene(rng: np.random.Generator, source: Source, scene: Scene, held_out: bool = False) -> list[Asked]:
    """What can be asked about a picture of two or three things."""
    asked = [
        ("count", question(rng, "count", held_out), NUMBERS[len(scene.codes)]),
        ("look", question(rng, "look", held_out), scene.look),
        ("describe", question(rng, "describe", held_out), description(source, scene)),
        _is_there(rng, source, scene, held_out),
        *about_places(rng, source, scene, held_out),
    ]
    return asked if scene.relation is None else asked + about_relation(rng, source, scene, held_out)


def _is_there(rng: np.random.Generator, source: Source, scene: Scene, held_out: bool) -> Asked:
    code, places = _shown_or_not(rng, source, scene.codes), _places(scene)
    named, there = article(source.name(code)), code in places
    answer = in_steps(_where_things_are(source, scene), named, places.get(code, _NOWHERE), "yes" if there else "no")
    return "is there", question(rng, "is there", held_out, a=named), answer


def about_places(rng: np.random.Generator, source: Source, scene: Scene, held_out: bool = False) -> list[Asked]:
    """Where each thing of a scene stands."""
    seen, asked = _where_things_are(source, scene), []
    for code, place in _places(scene).items():
        name = source.name(code)
        asked.append(("where", question(rng, "where", held_out, a=name), in_steps(seen, article(name), place)))
    return asked


def about_relation(rng: np.random.Generator, source: Source, scene: Scene, held_out: bool = False) -> list[Asked]:
    """What stands there, and whether something stands so: half of the times it does, whichever thing is named first."""
    codes, relation, seen = scene.codes, scene.relation, _where_things_are(source, scene)
    if rng.random() < 0.5:
        codes, relation = codes[::-1], opposite(relation)
    first, second = map(source.name, codes)
    right = rng.random() < 0.5
    told, concluded = relation if right else opposite(relation), "yes" if right else "no"
    looked_up = in_steps(seen, article(first), _places(scene)[codes[0]], concluded)
    return [
        ("what is", question(rng, "what is", held_out, relation, b=second), in_steps(seen, article(first))),
        ("yes or no", question(rng, "yes or no", held_out, told, a=first, b=second), looked_up),
    ]


def _places(scene: Scene) -> dict[str, str]:
    """Where each thing stands, in the order in which one reads."""
    return {code: PLACES[box] for box, code in sorted(zip(scene.boxes, scene.codes), key=lambda one: (one[0][1], one[0][0]))}


def _where_things_are(source: Source, scene: Scene) -> str:
    """What answers say first of a scene: "a bat at the top, a robe at the bottom"."""
    return ", ".join(f"{article(source.name(code))} {place}" for code, place in _places(scene).items())


def in_steps(*steps: str) -> str:
    """An answer that says first what is seen, then what is looked up in it, then what follows: "a turtle: a bus: no"."""
    return _STEP.join(steps)


def conclusion(answer: str) -> str:
    """What an answer comes to, whatever it says first: "no" of "a turtle: a bus: no"."""
    return answer.rpartition(_STEP)[2]


def first_step(answer: str) -> tuple[str, str]:
    """What an answer in steps says of what is seen, "" where it has one step alone, and the rest of it."""
    seen, step, rest = answer.partition(_STEP)
    return (seen, rest) if step else ("", answer)


def sample_scene(rng: np.random.Generator, source: Source, layout: str, unseen: bool = False) -> Scene:
    """A scene of different things in one look, all of training, or one of them (`unseen`) of a pair that is kept out.

    Raises:
        ValueError: no pair is kept out.
    """
    code, look = source.pair(rng, unseen)
    codes, number = [code], len(LAYOUTS[layout])
    while len(codes) < number:
        other = choice(rng, source.seen[look])
        if other not in codes:
            codes.append(other)
    return Scene(tuple(codes[index] for index in rng.permutation(number)), look, layout)


__all__ = [
    "DEFAULT_LOOKS",
    "Asked",
    "Source",
    "about_one",
    "about_places",
    "about_relation",
    "about_scene",
    "any_look",
    "by_words",
    "conclusion",
    "description",
    "first_step",
    "in_look",
    "in_steps",
    "of_scene",
    "said",
    "sample_scene",
    "to_draw",
]
