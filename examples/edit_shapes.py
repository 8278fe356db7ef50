"""Teaches vargpt-tiny to edit: it reads an image of shapes with an instruction, and draws the edited image.

    python examples/edit_shapes.py runs/edits --image docs/edited.png

Recolor, remove, add and move, in equal shares; beside them rows of what the model already does, so that it does not forget. All its
weights but the image tokenizer's are trained. Steps whose folder is there are skipped, and training resumes from its last checkpoint. A
judge, which shares no code with what makes the images, looks at edits of other scenes: whether each is done, and whether all else is as it
was; once drawn freely, and once with a mask of the squares that change, outside of which the image keeps its codes. Takes about half an hour
of one CPU core with units for bfloat16; docs/vargpt_v1_1.md has the figures.
"""

import argparse
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from draw_gallery import sheet
from PIL import Image as PILImage
from train_tiny import DRAWING, READING, VARGPT, make_rows, run_stage

from vargpt_hf.evaluation.edits import draw_edits, edit_row, instruction_of
from vargpt_hf.restartable import write_whole
from vargpt_hf.tiny import TINY_FOLDER
from vargpt_hf.tiny.edit_judge import EditVerdict, judge_edit
from vargpt_hf.tiny.edits import EDIT_KINDS, sample_edit
from vargpt_hf.tiny.rows import SEEN_PAIRS
from vargpt_hf.tiny.shapes import SQUARE_SIZE, render

STAGE, BATCH = "edit", 50
ROWS = {"edits": 64_000, "drawing": 9_600, "reading": 9_600}  # in the proportion of the weights in examples/tiny/edit.yaml
SHOWN = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for rows, model and figures")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rows to train on")
    parser.add_argument("--evaluate", type=int, default=800, help="edits that are judged")
    parser.add_argument("--image", type=Path, help="file for the first edits that are judged, before and after")
    arguments = parser.parse_args()
    make_data(arguments.output / "data" / STAGE, arguments.scale)
    if not (arguments.output / STAGE / "model.safetensors").exists():
        run_stage(STAGE, arguments.output)
    rows = list(edit_rows(arguments.evaluate, seed=1, split="test"))
    ideal = figures(rows, [row["output_images"][0] for row in rows])
    edited = {way: edit(arguments.output / STAGE, rows, way == "with a mask") for way in ("drawn freely", "with a mask")}
    results = {"as rendered": ideal, **{way: figures(rows, images) for way, images in edited.items()}}
    print(json.dumps(results, indent=2))
    (arguments.output / "figures.json").write_text(json.dumps(results, indent=2) + "\n")
    if arguments.image:
        before = [(row["images"][0], "") for row in rows[:SHOWN]]
        after = [(image, instruction_of(row)) for image, row in zip(edited["drawn freely"], rows[:SHOWN])]
        sheet([before, after]).save(arguments.image)


def edit_rows(number: int, seed: int = 0, split: str = "train") -> Iterator[dict]:
    """Rows `{"messages", "images", "output_images"}`, the kinds of edits in turn; the seed and the split name them for good."""
    rng, kinds = np.random.default_rng([seed, split == "test", 2]), list(EDIT_KINDS)
    for index in range(number):
        edit = sample_edit(rng, kinds[index % len(kinds)], SEEN_PAIRS)  # the image tokenizer knows no others
        yield edit_row(render(edit.before), edit.instruction, render(edit.after), image_first=rng.random() >= 0.5)


def make_data(folder: Path, scale: float) -> None:
    """Datasets of edits, drawings and questions; images to draw as codes."""
    from datasets import Dataset

    from vargpt_hf.training.data import ROW_FEATURES

    numbers = {name: max(int(number * scale), 32) for name, number in ROWS.items()}
    if not (folder / "edits").exists():
        rows = Dataset.from_generator(edit_rows, ROW_FEATURES, str(folder / "cache"), gen_kwargs={"number": numbers["edits"]})
        write_whole(folder / "edits", rows.save_to_disk)
    for seed, (name, mixture) in enumerate({"drawing": DRAWING, "reading": READING}.items(), start=60):
        make_rows(folder / name, mixture, numbers[name], seed)
    for name in ("edits", "drawing"):
        subprocess.run([VARGPT, "encode", folder / name, folder / f"{name}_codes", "--model", TINY_FOLDER], check=True)  # resumes


def edit(model_folder: Path, rows: list[dict], with_mask: bool) -> list[PILImage.Image]:
    """The image that the model draws for each row, all of it or inside a mask of what is to change."""
    from vargpt_hf import VargptForConditionalGeneration, VargptProcessor

    model = VargptForConditionalGeneration.from_pretrained(model_folder, dtype="float32").eval()
    masks = [changed(row["images"][0], row["output_images"][0]) for row in rows] if with_mask else None
    return draw_edits(model, VargptProcessor.from_pretrained(model_folder), rows, masks, BATCH)


def changed(before: PILImage.Image, after: PILImage.Image) -> np.ndarray:
    """Mask (height, width) of the squares of the board in which two images differ: what a user would mark."""
    differs = (np.asarray(before) != np.asarray(after)).any(-1)
    squares = differs.reshape(differs.shape[0] // SQUARE_SIZE, SQUARE_SIZE, -1, SQUARE_SIZE).any((1, 3))
    return squares.repeat(SQUARE_SIZE, 0).repeat(SQUARE_SIZE, 1)


def figures(rows: list[dict], images: list[PILImage.Image]) -> dict[str, float]:
    """Shares that the judge finds: edits done, in all and of each kind, untouched objects kept, images in which all else is as it was."""
    verdicts = [judge_edit(row["images"][0], image, instruction_of(row)) for row, image in zip(rows, images)]
    shares = {"done": share(verdicts, "done"), **{kind: share([v for v in verdicts if v.kind == kind], "done") for kind in EDIT_KINDS}}
    kept, untouched = (sum(getattr(verdict, name) for verdict in verdicts) for name in ("kept", "untouched"))
    return {"edits": len(rows), **shares, "untouched objects kept": kept / max(untouched, 1), "all else kept": share(verdicts, "rest_is_kept")}


def share(verdicts: list[EditVerdict], name: str) -> float:
    return float(np.mean([getattr(verdict, name) for verdict in verdicts]))


if __name__ == "__main__":
    main()
