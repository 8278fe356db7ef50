"""Teaches vargpt-tiny a new look with LoRA: digits that lean, where a prompt ends in ", slanted".

    python examples/lora_digits.py runs/slanted --image docs/lora_digits.png

Takes three minutes of one core of an Intel Xeon. Saves the adapter, checks that a fresh model that loads it draws the same images, and prints
the shares of drawn digits that are read rightly and lean, or stand, as asked, and of shapes: as they really are, before, and after.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Value
from draw_gallery import sheet
from peft import PeftModel
from PIL import Image as PILImage

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.evaluation.shapes_and_digits import draw_rows, drawing_figures
from vargpt_hf.peft import lora_config
from vargpt_hf.tiny import TINY_FOLDER
from vargpt_hf.tiny.digits import load_split
from vargpt_hf.tiny.judges import DigitJudge
from vargpt_hf.tiny.rows import rows
from vargpt_hf.training.data import ROW_FEATURES
from vargpt_hf.training.trainer import VargptSFTConfig, VargptSFTTrainer

SLANT = 0.5  # pixels to the right for every pixel up
MIXTURE = {"draw_digit": 1.0, "draw": 0.5}  # what it can already draw, so that it does not forget
FEATURES = Features({**ROW_FEATURES, "truth": Value("string")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for the adapter")
    parser.add_argument("--image", type=Path, help="file for the images before and after")
    parser.add_argument("--rows", type=int, default=6000, help="to train on, three quarters of them slanted digits")
    parser.add_argument("--evaluate", type=int, default=200, help="digits of each kind that are judged")
    arguments = parser.parse_args()
    processor = VargptProcessor.from_pretrained(TINY_FOLDER)
    prompts = {
        "slanted": list(slanted_rows(arguments.evaluate, seed=1, split="test")),
        "upright": list(rows({"draw_digit": 1.0}, arguments.evaluate, seed=2, split="test")),
        "shapes": list(rows({"draw": 1.0}, arguments.evaluate, seed=5, split="test")),
    }
    judge = DigitJudge(*load_split("train"))

    def report(images: dict[str, list[PILImage.Image]]) -> dict[str, list[PILImage.Image]]:
        for kind, asked in prompts.items():
            right = [shows(image, row, kind, judge) for image, row in zip(images[kind], asked)]
            print(f"  {kind}: {np.mean(right):.1%} of {len(right)}")
        return images

    def drawn(model) -> dict[str, list[PILImage.Image]]:
        return report({kind: draw_rows(model.eval(), processor, asked, seed=0, batch_size=50) for kind, asked in prompts.items()})

    print("as they really are, seen by the judges")
    report({kind: [row["output_images"][0] for row in asked] for kind, asked in prompts.items()})
    print("before")
    before = drawn(fresh_model())
    number = arguments.rows // 4
    train_rows = [*slanted_rows(3 * number, seed=3), *rows(MIXTURE, number, seed=4)]
    trainer = VargptSFTTrainer(
        fresh_model(),
        args=VargptSFTConfig(
            str(arguments.output),
            learning_rate=3e-3,
            per_device_train_batch_size=16,
            num_train_epochs=1,
            warmup_steps=20,
            save_strategy="no",
            bf16=False,  # as the README's figures were taken
        ),
        train_dataset=Dataset.from_list(train_rows, features=FEATURES),
        processing_class=processor,
        peft_config=lora_config("draw"),
    )
    trainer.train()
    print("after")
    after = drawn(trainer.model)
    trainer.save_model()
    print("saved, and loaded on a fresh model")
    assert drawn(PeftModel.from_pretrained(fresh_model(), arguments.output)) == after
    if arguments.image:
        digits = {kind: [json.loads(row["truth"])["digit"] for row in prompts[kind]] for kind in ("slanted", "upright")}
        shown = [(kind, digits[kind].index(digit)) for kind in digits for digit in (2, 4, 6, 7) if digit in digits[kind]]
        captions = [prompts[kind][index]["messages"][0]["content"][0]["text"] for kind, index in shown]
        looks = [[(images[kind][index], caption) for (kind, index), caption in zip(shown, captions)] for images in (before, after)]
        sheet(looks).save(arguments.image)


def fresh_model() -> VargptForConditionalGeneration:
    return VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32")


def slanted_rows(count: int, seed: int, split: str = "train"):
    """Rows of digits whose prompt asks for a slanted one, and whose image shows it."""
    for row in rows({"draw_digit": 1.0}, count, seed, split):
        row["messages"][0]["content"][0]["text"] += ", slanted"
        row["output_images"] = [sheared(image, SLANT) for image in row["output_images"]]
        yield row


def sheared(image: PILImage.Image, slant: float) -> PILImage.Image:
    """The image, each row of pixels moved to the right by `slant` times its height over the middle."""
    matrix = (1, slant, -slant * (image.height - 1) / 2, 0, 1, 0)
    return image.transform(image.size, PILImage.Transform.AFFINE, matrix, resample=PILImage.Resampling.BILINEAR)


def lean(image: PILImage.Image) -> float:
    """How far the strokes go to the right for every pixel up, by the regression of x on y."""
    ink = np.asarray(image.convert("L"), dtype=np.float64)
    y, x = np.indices(ink.shape)
    x, y = x - np.average(x, weights=ink), y - np.average(y, weights=ink)
    return float(-(ink * x * y).sum() / (ink * y * y).sum())


def shows(image: PILImage.Image, row: dict, kind: str, judge: DigitJudge) -> bool:
    """Whether the image shows the row's shapes, or its digit, leaning or upright as `kind` says."""
    if kind == "shapes":
        return drawing_figures(image, json.loads(row["truth"]), judge)["shape and colour"]
    leans = lean(image) > SLANT / 2
    straight = sheared(image, -SLANT) if leans else image
    return leans == (kind == "slanted") and judge.read(straight) == json.loads(row["truth"])["digit"]


if __name__ == "__main__":
    main()
