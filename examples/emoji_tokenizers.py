"""Trains both kinds of image tokenizer on vargpt-emoji's images for as many steps, and measures them alike: a codebook, and bits.

    python examples/emoji_tokenizers.py runs/tokenizers --packages data/emoji --images runs/emoji/data

Prints PSNR and SSIM, with 95 % intervals, of things that training showed, of things in looks that it did not, and of scenes with such a thing;
how many codes an image has, and what share of their values occurs. Both are trained by the files of examples/tokenizer that
examples/train_emoji.py takes. Trainings resume from their last checkpoint. Laid out for two hours of 2 cores of an Intel Xeon with AMX, by
estimate.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train_emoji import IMAGE_TOKENIZER_STEPS, make_images, train

from vargpt_hf.emoji.packages import fetch
from vargpt_hf.emoji.rows import rows
from vargpt_hf.training.image_tokenizer.images import ImageSource
from vargpt_hf.training.image_tokenizer.loading import load_image_tokenizer
from vargpt_hf.training.image_tokenizer.report import evaluate_on

KINDS = ("vq", "bsq")
GROUPS = {"seen": "draw", "kept out": "draw_unseen", "scenes, one kept out": "draw_scene_unseen"}
HEADER = ("image tokenizer", "codes", "values of a code", "in use", *(f"{group}: {what}" for group in GROUPS for what in ("PSNR (dB)", "SSIM")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for images, image tokenizers and metrics")
    parser.add_argument("--packages", type=Path, help="folder of the npm packages; OUTPUT/packages by default")
    parser.add_argument("--images", type=Path, help="folder `data` of a run of train_emoji.py, in place of images made anew")
    parser.add_argument("--steps", type=int, default=IMAGE_TOKENIZER_STEPS, help="of either training")
    parser.add_argument("--seed", type=int, default=0, help="of both trainings")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the images to train on, where they are made anew")
    parser.add_argument("--evaluate", type=int, default=250, help="images of each group")
    arguments = parser.parse_args()
    folder, packages = arguments.output, arguments.packages or arguments.output / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    fetch(packages)
    if arguments.images and not (folder / "data").exists():
        (folder / "data").symlink_to(arguments.images.resolve(strict=True))
    make_images(folder / "data", packages, arguments.scale)
    save_groups(folder / "evaluated", packages, arguments.evaluate)
    for kind in KINDS:
        if not (folder / kind / "model.safetensors").exists():
            options = ["--output_dir", folder / kind, "--max_steps", arguments.steps, "--seed", arguments.seed]
            train("tokenizer train", f"tokenizer/emoji_{kind}", folder, *options)
    results = {kind: measured(folder / kind, folder / "evaluated") for kind in KINDS}
    (folder / "metrics.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


def save_groups(place: Path, packages: Path, number: int) -> None:
    """Datasets of images that are measured."""
    from datasets import Dataset, Features, Image

    from vargpt_hf.restartable import write_whole

    for task in GROUPS.values():
        if not (place / task).exists():
            drawn: Iterator[Any] = (row["output_images"][0] for row in rows({task: 1.0}, number, 7, "test", folder=packages))
            images = Dataset.from_list([{"image": image} for image in drawn], Features({"image": Image()}))
            write_whole(place / task, images.save_to_disk)


def measured(model: Path, images: Path) -> dict[str, Any]:
    """What `vargpt tokenizer evaluate` prints for each group of images, and the number of codes."""
    tokenizer = load_image_tokenizer(model)
    sizes = {"codes": tokenizer.default_schedule.num_positions, "values": tokenizer.config.num_classes**tokenizer.config.num_symbols}
    return sizes | {name: evaluate_on(model, ImageSource(str(images / task)), batch_size=50) for name, task in GROUPS.items()}


def table(results: dict[str, dict[str, Any]]) -> str:
    """All of it in Markdown."""
    lines = [HEADER, ["---"] * len(HEADER)]
    for kind, found in results.items():
        values = [
            f"{found[group][what]['value']:{form}} ± {half(found[group][what]):{form}}" for group in GROUPS for what, form in FORMS.items()
        ]
        lines.append([kind, str(found["codes"]), f"{found['values']:,}", f"{found['kept out']['codes']['use']:.1%}", *values])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


FORMS = {"psnr": ".2f", "ssim": ".3f"}


def half(metric: dict[str, float]) -> float:
    """Half of the width of an interval."""
    return (metric["high"] - metric["low"]) / 2


if __name__ == "__main__":
    main()
