"""What is true of concepts: their kind in plain words, things one can do with them, articles, and the color of a picture."""

from collections.abc import Iterable

import numpy as np
from PIL import Image

from .pictures import Concept

GROUP_WORDS = {
    "smileys-emotion": "smileys and emotion",
    "people-body": "people and body",
    "animals-nature": "animals and nature",
    "food-drink": "food and drink",
    "travel-places": "travel and places",
    "activities": "activities",
    "objects": "objects",
    "symbols": "symbols",
    "flags": "flags",
}
# Of subgroups whose members are all of one kind that has a plain name, that name.
KIND_WORDS = {
    "animal-mammal": "mammal",
    "animal-bird": "bird",
    "animal-amphibian": "amphibian",
    "animal-reptile": "reptile",
    "animal-marine": "sea animal",
    "animal-bug": "bug",
    "plant-flower": "flower",
    "plant-other": "plant",
    "food-fruit": "fruit",
    "food-vegetable": "vegetable",
    "food-prepared": "meal",
    "food-asian": "asian food",
    "food-sweet": "sweet",
    "drink": "drink",
    "dishware": "dishware",
    "place-geographic": "landscape",
    "place-building": "building",
    "place-religious": "religious place",
    "transport-ground": "road and rail",
    "transport-water": "water transport",
    "transport-air": "air transport",
    "time": "time",
    "sky-weather": "sky and weather",
    "event": "event",
    "award-medal": "award",
    "sport": "sport",
    "game": "game",
    "arts-crafts": "art and craft",
    "clothing": "clothing",
    "sound": "sound",
    "music": "music",
    "musical-instrument": "musical instrument",
    "phone": "phone",
    "computer": "computer",
    "light-video": "light and video",
    "book-paper": "book and paper",
    "money": "money",
    "mail": "mail",
    "writing": "writing",
    "office": "office",
    "lock": "lock",
    "tool": "tool",
    "science": "science",
    "medical": "medicine",
    "household": "household",
    "face-smiling": "smiling face",
    "face-concerned": "worried face",
    "cat-face": "cat face",
    "heart": "heart",
    "zodiac": "zodiac sign",
    "arrow": "arrow",
    "currency": "currency",
}
# Kinds that one can ask to be drawn: "draw a bird".
_DRAWN_KINDS = (
    "animal-mammal", "animal-bird", "animal-reptile", "animal-marine", "animal-bug", "plant-flower", "plant-other", "food-fruit",
    "food-vegetable", "food-sweet", "drink", "place-building", "musical-instrument", "tool",
)  # fmt: skip
# Things by what one does with them, by name; subgroups stand for all of their members.
SOMETHING: dict[str, tuple[str, ...]] = {
    "something you ride": (
        "horse", "camel", "two-hump camel", "donkey", "elephant", "bicycle", "kick scooter", "motor scooter", "motorcycle", "skateboard",
        "bus", "trolleybus", "minibus", "tram", "train", "metro", "auto rickshaw", "sled",
    ),
    "something with an engine": (
        "automobile", "oncoming automobile", "taxi", "oncoming taxi", "police car", "oncoming police car", "sport utility vehicle",
        "pickup truck", "delivery truck", "articulated lorry", "tractor", "racing car", "motorcycle", "motor scooter", "bus", "oncoming bus",
        "ambulance", "fire engine", "motor boat", "speedboat", "airplane", "helicopter",
    ),
    "something to eat": ("food-fruit", "food-vegetable", "food-asian", "food-sweet", "bread", "croissant", "pizza", "hamburger", "sandwich"),
    "something to drink": (
        "glass of milk", "hot beverage", "teacup without handle", "sake", "wine glass", "cocktail glass", "tropical drink", "beer mug",
        "tumbler glass", "cup with straw", "bubble tea", "beverage box", "mate",
    ),
    "something to wear": (
        "glasses", "sunglasses", "goggles", "lab coat", "safety vest", "necktie", "t-shirt", "jeans", "scarf", "gloves", "coat", "socks",
        "dress", "kimono", "sari", "one-piece swimsuit", "briefs", "shorts", "bikini", "thong sandal", "man's shoe", "running shoe",
        "hiking boot", "flat shoe", "high-heeled shoe", "woman's sandal", "ballet shoes", "woman's boot", "crown", "woman's hat", "top hat",
        "graduation cap", "billed cap", "military helmet", "rescue worker's helmet", "running shirt",
    ),
    "something for the head": (
        "crown", "woman's hat", "top hat", "graduation cap", "billed cap", "military helmet", "rescue worker's helmet",
    ),
    "something to make music with": ("musical-instrument",),
    "something that flies": (
        "airplane", "small airplane", "helicopter", "rocket", "flying saucer", "butterfly", "honeybee", "bat", "dove", "eagle", "owl",
        "parrot", "bird", "duck", "swan", "goose", "mosquito", "fly", "kite", "balloon",
    ),
    "something that swims": (
        "whale", "spouting whale", "dolphin", "seal", "fish", "tropical fish", "blowfish", "shark", "octopus", "squid", "jellyfish", "turtle",
        "penguin", "duck", "swan", "otter", "frog", "crocodile",
    ),
    "something that floats": ("sailboat", "canoe", "speedboat", "passenger ship", "ferry", "motor boat", "ship", "ring buoy"),
    "something to read": (
        "closed book", "open book", "green book", "blue book", "orange book", "books", "newspaper", "rolled-up newspaper", "scroll", "notebook",
    ),
    "something to write with": ("pencil", "pen", "fountain pen", "black nib", "crayon", "paintbrush"),
    "something to sit on": ("chair", "couch and lamp", "toilet", "seat"),
    "something that tells the time": ("watch", "alarm clock", "mantelpiece clock", "hourglass done", "hourglass not done", "stopwatch"),
    "something to take pictures with": ("camera", "camera with flash", "video camera", "movie camera"),
    "something to cut with": ("scissors", "kitchen knife", "axe", "carpentry saw", "dagger"),
    "something in the night sky": (
        "crescent moon", "full moon", "new moon", "star", "glowing star", "shooting star", "ringed planet", "comet", "milky way",
    ),
    "something that grows": ("plant-flower", "seedling", "evergreen tree", "deciduous tree", "palm tree", "cactus", "mushroom"),
    "something with a shell": ("turtle", "snail", "crab", "lobster", "oyster", "spiral shell"),
    "something sour": ("lemon",),
    "a ball": ("soccer ball", "baseball", "softball", "basketball", "volleyball", "tennis", "american football", "rugby football"),
    "a boat": ("sailboat", "canoe", "speedboat", "passenger ship", "ferry", "motor boat", "ship"),
    "a train": ("locomotive", "railway car", "high-speed train", "bullet train", "train", "metro", "light rail", "mountain railway"),
    "a car": ("automobile", "oncoming automobile", "taxi", "oncoming taxi", "police car", "oncoming police car", "sport utility vehicle"),
    "a tree": ("evergreen tree", "deciduous tree", "palm tree", "christmas tree"),
    "a pet": ("dog", "cat", "hamster", "rabbit", "parrot", "tropical fish", "poodle", "black cat"),
    "a farm animal": ("cow", "pig", "horse", "goat", "ewe", "ram", "chicken", "rooster", "donkey", "duck", "goose", "turkey"),
    "a big cat": ("lion", "tiger", "leopard"),
    "a bear": ("bear", "polar bear", "panda"),
}  # fmt: skip

# Names that have no article though they do not end like a plural.
_BARE = frozenset((
    "bread", "baguette bread", "flatbread", "stuffed flatbread", "cooked rice", "curry rice", "sushi", "spaghetti", "oden", "popcorn",
    "butter", "salt", "bacon", "broccoli", "garlic", "ginger root", "leafy green", "custard", "canned food", "green salad",
    "soft ice cream", "ice cream", "shaved ice", "ice", "sake", "mate", "glass of milk", "tennis", "badminton", "ping pong", "bowling",
    "american football", "rugby football", "field hockey", "ice hockey", "lacrosse", "baseball", "softball", "basketball", "volleyball",
    "camping", "cooking", "construction", "fog", "foggy", "fire", "soap", "wood", "yarn", "thread", "dna", "lipstick", "coral", "e-mail",
    "money with wings", "mount fuji", "tokyo tower", "santa claus", "mrs. claus", "performing arts", "skis", "maracas",
    "night with stars", "wind face",
))  # fmt: skip
# Last words that say too little, or of which more is true than concepts end with them.
_NO_SHORT_NAMES = frozenset((
    "left", "right", "done", "up", "way", "ground", "stop", "increasing", "decreasing", "departure", "arrival", "volume", "americas", "fuji",
    "index", "tabs", "green", "light", "snow", "leg", "car", "ball", "tree", "boat", "cockroach", "mug", "prints", "pong", "root", "hole",
    "game", "drink", "food", "fruit", "vehicle", "plant", "flower", "building", "liquid", "handle", "voltage", "beverage", "button", "symbol",
    "sign",
))  # fmt: skip
_JOINING = frozenset(("with", "without", "of", "over", "in", "into", "on", "at", "and", "not", "behind", "showing", "facing", "from", "to"))
_MOST_OF_A_SHORT_NAME = 6  # concepts
_LEAST_SHARE = 0.7  # of a picture's own pixels, that its color must have
# Hues in degrees up to which a name is undisputed; None lies between two names.
_HUES = ((10, "red"), (20, None), (34, "orange"), (46, None), (66, "yellow"), (80, None), (165, "green"), (190, None), (250, "blue"),
         (262, None), (300, "purple"), (345, None), (361, "red"))  # fmt: skip
COLORS = ("red", "orange", "yellow", "green", "blue", "purple")
_PAPER = 0.95  # what is lighter and paler is no part of what is drawn
_LEAST = {"red": (0.45, 0.5), "orange": (0.7, 0.85)}  # saturation and value: below, red and orange are brown
_LEAST_OTHERWISE = (0.45, 0.3)


def article(words: str) -> str:
    """Words with "a" or "an" in front, where English has one: "an eagle", "socks", "bread"."""
    head = words.partition(" with ")[0].partition(" over ")[0]
    plural = head.endswith("s") and not head.endswith(("ss", "us", "is", "as", "os"))
    if words in _BARE or plural or words.endswith(("o'clock", "-thirty")):
        return words
    return f"{'an' if words[0] in 'aeiou' and not words.startswith(('uni', 'eu', 'one-')) or words == 'x-ray' else 'a'} {words}"


def drawable(concepts: Iterable[Concept]) -> dict[str, tuple[str, ...]]:
    """What can be asked for by kind or use, with the codes of all concepts of which it is true: "a bird", "something you ride"."""
    concepts = tuple(concepts)
    asked = {article(KIND_WORDS[subgroup]): (subgroup,) for subgroup in _DRAWN_KINDS} | SOMETHING
    found = {words: tuple(c.code for c in concepts if c.name in members or c.subgroup in members) for words, members in asked.items()}
    return {words: codes for words, codes in found.items() if codes}


def short_names(concepts: Iterable[Concept]) -> dict[str, tuple[str, ...]]:
    """Last words of longer names that name nothing by themselves, with the codes of all that they may mean: "scooter" of "kick scooter"."""
    concepts = tuple(concepts)
    names, found = {concept.name for concept in concepts}, {}
    for concept in concepts:
        word = concept.name.rpartition(" ")[2]
        if word not in names and word not in _NO_SHORT_NAMES and word.isalpha() and not _JOINING & set(concept.name.split()):
            found.setdefault(word, []).append(concept.code)
    return {word: tuple(codes) for word, codes in found.items() if len(codes) <= _MOST_OF_A_SHORT_NAME}


def by_tags(concepts: Iterable[Concept]) -> dict[str, frozenset[str]]:
    """Codes of the concepts that have a tag, by tag."""
    found: dict[str, set[str]] = {}
    for concept in concepts:
        for tag in concept.tags:
            found.setdefault(tag, set()).add(concept.code)
    return {tag: frozenset(codes) for tag, codes in found.items()}


def color_of(picture: Image.Image) -> str | None:
    """The one color of `COLORS` that a picture on white has beside white, gray and black, or None where that could be disputed.

    A color counts where seven tenths of what is drawn have it, and have it clearly: hues between two names have none.
    """
    hue, saturation, value = np.moveaxis(np.asarray(picture.convert("HSV"), dtype=np.float32) / 255, -1, 0)
    drawn = (saturation > 1 - _PAPER) | (value < _PAPER)
    names = np.digitize(hue * 360, [bound for bound, _ in _HUES])
    for color in COLORS:
        least_saturation, least_value = _LEAST.get(color, _LEAST_OTHERWISE)
        mine = np.isin(names, [index for index, (_, name) in enumerate(_HUES) if name == color])
        mine &= drawn & (saturation > least_saturation) & (value > least_value)
        if mine.sum() >= _LEAST_SHARE * max(int(drawn.sum()), 1):
            return color
    return None


__all__ = ["COLORS", "GROUP_WORDS", "KIND_WORDS", "SOMETHING", "article", "by_tags", "color_of", "drawable", "short_names"]
