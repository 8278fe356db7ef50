"""A quick look at a checkpoint: a few seen and kept-out pairs, drawn and judged.

python -m vargpt_hf.emoji.quick runs/emoji/stage2 data/emoji --number 60
"""

import argparse
import json
from typing import TYPE_CHECKING

from .judge import Features, ThingJudge, network_features, reconstructed
from .pictures import read_pictures
from .rows import rows

if TYPE_CHECKING:
    from ..modeling.modeling_vargpt import VargptForConditionalGeneration
    from ..processing.processing_vargpt import VargptProcessor


def quick_look(
    model: "VargptForConditionalGeneration",
    processor: "VargptProcessor",
    folder: str,
    number: int = 60,
    seed: int = 0,
    which: str = "things",
    features: Features | None = None,
    **settings,
) -> dict[str, dict[str, tuple[float, float]]]:
    """Of seen and of kept-out pairs the shares of drawings of which concept, look and both are right, each with its ceiling.

    Args:
        folder: of the packages.
        number: drawings of each kind.
        seed: of rows and drawings.
        which: "things" or "all" concepts.
        features: of the judge; EfficientNet-Lite0's by default.
        settings: of `generate`.

    Raises:
        ValueError: no drawings, or packages that are missing.
        OSError: packages that cannot be read.
    """
    if number < 1:
        raise ValueError(f"`number` must be at least 1, got {number}.")
    from ..evaluation.shapes_and_digits import draw_rows
    from ..training.image_tokenizer.networks import SmallNetwork

    judge = ThingJudge(read_pictures(folder), network_features(SmallNetwork(), str(model.device)) if features is None else features)
    found = {}
    for group, task in (("seen", "draw"), ("kept out", "draw_unseen")):
        asked = list(rows({task: 1.0}, number, seed, "test", folder=folder, which=which))
        truths = [json.loads(row["truth"]) for row in asked]
        drawn = judge.verdicts(draw_rows(model, processor, asked, seed, 50, **settings), truths)
        ceiling = judge.verdicts(reconstructed(model, processor, [row["output_images"][0] for row in asked]), truths)
        found[group] = {what: tuple(sum(one[what] for one in verdicts) / number for verdicts in (drawn, ceiling)) for what in drawn[0]}
    return found


def main() -> None:
    """Prints the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of the checkpoint")
    parser.add_argument("folder", help="folder of the packages")
    parser.add_argument("--number", type=int, default=60, help="drawings of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--concepts", default="things", help='"things" or "all"')
    arguments = parser.parse_args()
    from ..cli.options import load

    found = quick_look(*load(arguments.model), arguments.folder, arguments.number, arguments.seed, arguments.concepts)
    for group, shares in found.items():
        for what, (drawn, ceiling) in shares.items():
            print(f"{group:10}{what:18}{drawn:8.1%}   ceiling {ceiling:7.1%}")


if __name__ == "__main__":
    main()
