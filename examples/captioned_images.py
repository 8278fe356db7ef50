"""A folder of 200 captioned images of something that vargpt-tiny cannot draw, one command, and what it brings.

    python examples/captioned_images.py runs/captioned

The images are handwritten digits that lean, with captions such as "a handwritten 7, slanted". Runs
`vargpt train examples/lora.yaml --train_data FOLDER/images --output_dir FOLDER/adapter`, then lets the judges of vargpt-tiny look at
digits of other prompts, before and after. Takes about three minutes of one core of an Intel Xeon.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
from lora_digits import fresh_model, shows, slanted_rows
from peft import PeftModel

from vargpt_hf import VargptProcessor
from vargpt_hf.evaluation.shapes_and_digits import draw_rows
from vargpt_hf.tiny import TINY_FOLDER
from vargpt_hf.tiny.digits import load_split
from vargpt_hf.tiny.judges import DigitJudge

VARGPT = Path(sys.executable).with_name("vargpt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for images and adapter")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--evaluate", type=int, default=200, help="digits that are judged")
    arguments = parser.parse_args()
    images, adapter = arguments.output / "images", arguments.output / "adapter"
    write_images(images, arguments.images)
    config = Path(__file__).parent / "lora.yaml"
    command = [VARGPT, "train", config, "--train_data", images, "--output_dir", adapter, "--num_train_epochs", str(arguments.epochs)]
    subprocess.run([*command, "--resume_from_checkpoint", "true"], check=True)

    asked = list(slanted_rows(arguments.evaluate, seed=1, split="test"))
    judge, processor = DigitJudge(*load_split("train")), VargptProcessor.from_pretrained(TINY_FOLDER)
    for name, model in (("before", fresh_model()), ("after", PeftModel.from_pretrained(fresh_model(), adapter))):
        drawn = draw_rows(model.eval(), processor, asked, seed=0, batch_size=50)
        right = [shows(image, row, "slanted", judge) for image, row in zip(drawn, asked)]
        print(f"{name}: {np.mean(right):.1%} of {len(right)} digits lean and are read rightly")


def write_images(folder: Path, number: int) -> None:
    """Images, each with its caption in a text file of the same name."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, row in enumerate(slanted_rows(number, seed=3)):
        row["output_images"][0].save(folder / f"{index:04}.png")
        (folder / f"{index:04}.txt").write_text(row["messages"][0]["content"][0]["text"])


if __name__ == "__main__":
    main()
