"""Which (concept, look) pairs are kept out of training: `split.json`, made once from the packages by

    python -m vargpt_hf.emoji.split FOLDER

Of things and of the other concepts, and of each look, the same share is kept out; every concept is seen in at least one look.
"""

import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .pictures import LOOKS, Pair, Pictures, read_pictures

SPLIT_FILE = Path(__file__).with_name("split.json")
SEED, SHARE = 2026, 0.15


def make_split(things: Sequence[str], others: Sequence[str], share: float = SHARE, seed: int = SEED) -> dict[str, Any]:
    """The content of `split.json`.

    Args:
        things, others: codes of concepts, in order.
        share: of the pairs, to keep out.
        seed: of the choice.

    Raises:
        ValueError: a share of which no concept would be left, or one that is negative.
    """
    if not 0 <= share <= 1 - 1 / len(LOOKS):
        raise ValueError(f"`share` must be from 0 to {1 - 1 / len(LOOKS):.2f}, so that each concept is seen in one look, got {share}.")
    rng = np.random.default_rng(seed)
    kept_out = {look: [] for look in LOOKS}
    for codes in (list(things), list(others)):
        left = dict.fromkeys(codes, len(LOOKS) - 1)  # looks that may still be kept out
        for look in LOOKS:
            free = [code for code in codes if left[code]]
            chosen = rng.permutation(len(free))[: round(share * len(codes))]
            for index in sorted(chosen):
                left[free[index]] -= 1
                kept_out[look].append(free[index])
    return {"seed": seed, "share": share, "things": list(things), "others": list(others), "held_out": kept_out}


@cache
def held_out_pairs() -> frozenset[Pair]:
    """The (code, look) pairs that no training row shows."""
    split = json.loads(SPLIT_FILE.read_text(encoding="utf-8"))
    return frozenset((code, look) for look, codes in split["held_out"].items() for code in codes)


def training_pairs(pictures: Pictures, which: str = "all") -> list[Pair]:
    """The (code, look) pairs of training, in order.

    Args:
        pictures: whose concepts are meant.
        which: "things" or "all" of them.
    """
    return [pair for pair in _pairs(pictures, which) if pair not in held_out_pairs()]


def kept_out_pairs(pictures: Pictures, which: str = "all") -> list[Pair]:
    """The (code, look) pairs that are kept out, in order; see `training_pairs`."""
    return [pair for pair in _pairs(pictures, which) if pair in held_out_pairs()]


def _pairs(pictures: Pictures, which: str) -> list[Pair]:
    return [(concept.code, look) for concept in pictures.of(which) for look in LOOKS]


def to_text(split: dict[str, Any]) -> str:
    """The split as JSON, a list a line."""
    lines = [f'"{name}": {json.dumps(split[name])}' for name in ("seed", "share", "things", "others")]
    held_out = ",\n".join(f'"{look}": {json.dumps(codes)}' for look, codes in split["held_out"].items())
    return "{\n" + ",\n".join(lines) + ',\n"held_out": {\n' + held_out + "\n}}\n"


def main(folder: str) -> None:
    """Writes `split.json` for the packages of a folder."""
    concepts = read_pictures(folder).concepts
    things, others = ([concept.code for concept in concepts if concept.thing is thing] for thing in (True, False))
    SPLIT_FILE.write_text(to_text(make_split(things, others)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
