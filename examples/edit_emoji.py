"""Teaches vargpt-emoji to edit: it reads a picture with an instruction ("make it flat", "add a turtle on the left") and draws it edited.

    python examples/edit_emoji.py runs/edits --packages data/emoji --image docs/edited_emoji.png

Another look, a thing added, removed or replaced, in equal shares; beside them rows of what the model already does. All its weights but the
image tokenizer's are trained. The judge looks at edits whose result training showed, at edits to pairs of concept and look that are kept out of
it, and at held-out wordings: drawn freely, and with a mask of the cells that change; beside what the wanted pictures themselves get after the
image tokenizer, and what those get of which nothing was changed. Steps whose result is there are skipped, and training resumes from its last
checkpoint. Laid out for an hour of 2 cores of an Intel Xeon with AMX, by estimate; docs/emoji.md.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from train_emoji import DRAWING, READING, make_dataset, rows_of_seeds, train

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.cli.options import check_device
from vargpt_hf.emoji.edit_judge import boxes_mask, judge_edits
from vargpt_hf.emoji.edits import EDIT_KINDS, edit_rows
from vargpt_hf.emoji.judge import ThingJudge, network_features, reconstructed
from vargpt_hf.emoji.packages import fetch
from vargpt_hf.emoji.pictures import read_pictures
from vargpt_hf.emoji.rows import Row
from vargpt_hf.emoji.sheets import Tile, sheet
from vargpt_hf.evaluation.edits import draw_edits, instruction_of
from vargpt_hf.shipped import EMOJI_NAME, folder_of
from vargpt_hf.training.image_tokenizer.networks import SmallNetwork

ROWS = {"edits": 32_000, "drawing": 8_000, "reading": 8_000}  # in the proportion of the weights in examples/emoji/edit.yaml
SEEDS = 100  # from here on, of rows that vargpt-emoji's training did not see
GROUPS = {"edits": {}, "edits to what is kept out": {"unseen": True}, "edits, other wordings": {"wordings": "held out"}}
SHOWN = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for rows, model and figures")
    parser.add_argument("--packages", type=Path, help="folder of the npm packages; OUTPUT/packages by default")
    parser.add_argument("--model", default=EMOJI_NAME, help="what is taught: a folder, or the name of a model of the package")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rows to train on")
    parser.add_argument("--evaluate", type=int, default=400, help="edits of each group that are judged")
    parser.add_argument("--image", type=Path, help="file for edits that are judged: before, drawn, and wanted")
    arguments = parser.parse_args()
    packages = arguments.packages or arguments.output / "packages"
    fetch(packages)
    make_data(arguments.output / "data", packages, arguments.scale)
    if not (arguments.output / "edit" / "model.safetensors").exists():
        train("train", "emoji/edit", arguments.output, "--model_name_or_path", folder_of(arguments.model))
    asked = {name: list(edit_rows(arguments.evaluate, 1, "test", folder=packages, **options)) for name, options in GROUPS.items()}
    results, drawn = judged(arguments.output / "edit", asked, packages)
    print(json.dumps(results, indent=2))
    (arguments.output / "figures.json").write_text(json.dumps(results, indent=2) + "\n")
    if arguments.image:
        shown = [(row, image) for name in list(GROUPS)[:2] for row, image in list(zip(asked[name], drawn[name]))[: SHOWN // 2]]
        sheet([Tile([row["images"][0], image, row["output_images"][0]], instruction_of(row)) for row, image in shown], 4).save(arguments.image)


def make_data(data: Path, packages: Path, scale: float) -> None:
    """Datasets of edits, drawings and questions."""
    from datasets import Features, Value

    from vargpt_hf.training.data import ROW_FEATURES

    features = Features({**ROW_FEATURES, "truth": Value("string")})
    numbers = {name: max(int(number * scale), 32) for name, number in ROWS.items()}
    make_dataset(data / "edits", edits_of_seeds, features, numbers["edits"], SEEDS, packages=packages)
    for number, (name, mixture) in enumerate({"drawing": DRAWING, "reading": READING}.items(), start=SEEDS + 1):
        make_dataset(data / name, rows_of_seeds, features, numbers[name], number, packages=packages, mixture=mixture)


def edits_of_seeds(packages: Path, count: int, seeds: Sequence[int]) -> Iterator[Row]:
    """`count` edits of each seed; a process takes some of the seeds."""
    for seed in seeds:
        yield from edit_rows(count, seed, folder=packages)


def judged(folder: Path, asked: dict[str, list[Row]], packages: Path) -> tuple[dict, dict[str, list[Image.Image]]]:
    """Shares of each group of edits by the way in which they were drawn, and what was drawn freely."""
    device = check_device("auto")
    model = VargptForConditionalGeneration.from_pretrained(folder, dtype="float32").to(device).eval()
    processor = VargptProcessor.from_pretrained(folder)
    judge, results, free = ThingJudge(read_pictures(packages), network_features(SmallNetwork(), device)), {}, {}
    for name, rows in asked.items():
        before, wanted = (reconstructed(model, processor, [row[column][0] for row in rows]) for column in ("images", "output_images"))
        free[name] = draw_edits(model, processor, rows)
        masks = [resized(boxes_mask(row), processor) for row in rows]
        ways = {"wanted pictures": wanted, "nothing changed": before, "drawn freely": free[name]}
        ways["with a mask"] = draw_edits(model, processor, rows, masks)
        results[name] = {way: shares(rows, judge_edits(judge, rows, images, wanted)) for way, images in ways.items()}
    return results, free


def resized(mask: np.ndarray, processor: VargptProcessor) -> np.ndarray:
    """A mask as large as what the model draws."""
    height, width = processor.output_image_processor.sizes[0]
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


def shares(rows: Sequence[Row], verdicts: Sequence[dict[str, bool]]) -> dict[str, float]:
    """Of all verdicts, and of "both" by kind of edit."""
    kinds = [json.loads(row["truth"])["kind"] for row in rows]
    values = {name: [verdict[name] for verdict in verdicts if name in verdict] for name in ("done", "all else kept", "both")}
    values |= {kind: [verdict["both"] for verdict, one in zip(verdicts, kinds) if one == kind] for kind in EDIT_KINDS}
    return {name: float(np.mean(found)) for name, found in values.items() if found}


if __name__ == "__main__":
    main()
