"""Teaches vargpt-emoji a fourth look with LoRA, by 100 pictures: Fluent's flat emoji, asked for as "a turtle in the fluent look".

    pip install resvg-py
    python examples/lora_look.py runs/look --packages data/emoji --image docs/lora_look.png

Half of the rows rehearse the looks, shapes and digits that the model knows, so that it does not forget them. Judged, before and after, are
concepts that training did not show in the new look, those that it did, and all that was known, each beside what the real pictures get after
the model's image tokenizer. Fifteen minutes of 2 cores of an AMD EPYC, with the judging. Rows and adapter are made once.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from peft import PeftModel
from PIL import Image

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.cli.options import check_device
from vargpt_hf.emoji.judge import ThingJudge, network_features, reconstructed
from vargpt_hf.emoji.packages import PACKAGES, VECTORS, fetch
from vargpt_hf.emoji.pictures import Pictures, read_pictures
from vargpt_hf.emoji.rows import Row, Writer, rows
from vargpt_hf.emoji.sentences import Source
from vargpt_hf.emoji.sheets import Tile, sheet
from vargpt_hf.emoji.vectors import with_vectors
from vargpt_hf.evaluation.shapes_and_digits import draw_rows, drawing_figures
from vargpt_hf.shipped import EMOJI_NAME, folder_of
from vargpt_hf.tiny.digits import load_split
from vargpt_hf.tiny.judges import DigitJudge
from vargpt_hf.training.image_tokenizer.networks import SmallNetwork

VARGPT = Path(sys.executable).with_name("vargpt")  # of this environment, active or not
LOOK = "fluent"
KNOWN = {"draw": 4.0, "draw_plain": 1.0, "draw_scene": 1.0, "draw_shapes": 1.0, "draw_digit": 0.5}
NEW, TAUGHT = f"{LOOK} look, new concepts", f"{LOOK} look, concepts of training"
THINGS = {"known looks": "draw", "known looks, kept out": "draw_unseen"}
OTHERS = {"shapes": "draw_shapes", "digits": "draw_digit"}
BATCH, SHOWN = 50, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for rows, adapter and figures")
    parser.add_argument("--packages", type=Path, help="folder of the npm packages; OUTPUT/packages by default")
    parser.add_argument("--model", default=EMOJI_NAME, help="what is taught: a folder, or the name of a model of the package")
    parser.add_argument("--pictures", type=int, default=100, help="of the new look, that training shows")
    parser.add_argument("--rows", type=int, default=6000, help="to train on, half of them of the new look")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--evaluate", type=int, default=200, help="drawings of each group that are judged")
    parser.add_argument("--image", type=Path, help="file for drawings of new concepts: before, after, and the real picture")
    arguments = parser.parse_args()
    packages, model, adapter = arguments.packages or arguments.output / "packages", folder_of(arguments.model), arguments.output / "adapter"
    fetch(packages, (*PACKAGES, VECTORS))
    pictures = with_vectors(read_pictures(packages), packages, LOOK)
    taught, new = chosen(pictures, arguments.pictures)
    if not (arguments.output / "rows").exists():
        save_rows(arguments.output / "rows", pictures, taught, arguments.rows // 2, packages)
    if not (adapter / "adapter_model.safetensors").exists():
        settings = {"model_name_or_path": model, "train_data": arguments.output / "rows", "output_dir": adapter}
        settings |= {"learning_rate": arguments.learning_rate, "num_train_epochs": 1, "muon": "true", "resume_from_checkpoint": "true"}
        options = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
        subprocess.run([VARGPT, "train", Path(__file__).parent / "lora.yaml", *options], check=True)
    number = arguments.evaluate
    asked = {NEW: list(look_rows(pictures, new, number, 1, "test")), TAUGHT: list(look_rows(pictures, taught, number, 2, "test"))}
    asked |= {name: list(rows({task: 1.0}, number, 3, "test", folder=packages)) for name, task in (THINGS | OTHERS).items()}
    results, drawn = judged(asked, judges(pictures), model, adapter)
    print(json.dumps(results, indent=2))
    (arguments.output / "figures.json").write_text(json.dumps(results, indent=2) + "\n")
    if arguments.image:
        columns = zip(drawn["before"][NEW], drawn["after"][NEW], asked[NEW][:SHOWN])
        tiles = [Tile([before, after, row["output_images"][0]], row["messages"][0]["content"][0]["text"]) for before, after, row in columns]
        sheet(tiles, columns=4).save(arguments.image)


def chosen(pictures: Pictures, number: int) -> tuple[list[str], list[str]]:
    """Codes of the concepts that are taught in the new look, and of those that are not."""
    codes = [concept.code for concept in pictures.of("things")]
    if not 0 < number < len(codes):
        raise ValueError(f"--pictures must be from 1 to {len(codes) - 1}, so that concepts are left to be judged, got {number}.")
    order = np.random.default_rng(0).permutation(len(codes))
    return [codes[index] for index in order[:number]], [codes[index] for index in order[number:]]


def look_rows(pictures: Pictures, codes: Sequence[str], number: int, seed: int, split: str = "train") -> Iterator[Row]:
    """Rows that draw these concepts in the new look, in many wordings."""
    rng = np.random.default_rng([seed, split == "test", 4])
    writer = Writer(Source(pictures), rng, split, "trained")
    for _ in range(number):
        yield writer.draw_pair(codes[int(rng.integers(len(codes)))], LOOK)


def save_rows(place: Path, pictures: Pictures, codes: Sequence[str], number: int, packages: Path) -> None:
    """The dataset to train on: the new look, and as many rows of what is known."""
    from datasets import Dataset, Features, Value

    from vargpt_hf.restartable import write_whole
    from vargpt_hf.training.data import ROW_FEATURES

    features = Features({**ROW_FEATURES, "truth": Value("string")})
    made = [*look_rows(pictures, codes, number, seed=0), *rows(KNOWN, number, 4, folder=packages)]
    write_whole(place, Dataset.from_list(made, features=features).save_to_disk)


Judge = Callable[[Sequence[Image.Image], Sequence[Row]], dict[str, float]]


def judges(pictures: Pictures) -> tuple[Judge, Judge]:
    """What is right about drawings of things, by the nearest picture in all four looks, and about shapes and digits; as shares."""
    by_picture, by_digits = ThingJudge(pictures, network_features(SmallNetwork(), check_device("auto"))), DigitJudge(*load_split("train"))

    def things(images: Sequence[Image.Image], asked: Sequence[Row]) -> dict[str, float]:
        return _shares(by_picture.verdicts(images, [json.loads(row["truth"]) for row in asked]))

    def others(images: Sequence[Image.Image], asked: Sequence[Row]) -> dict[str, float]:
        verdicts = (drawing_figures(image, json.loads(row["truth"]), by_digits) for image, row in zip(images, asked))
        return _shares([{"all of it": all(verdict.values())} for verdict in verdicts])

    return things, others


def _shares(verdicts: Sequence[dict[str, bool]]) -> dict[str, float]:
    return {name: float(np.mean([verdict[name] for verdict in verdicts])) for name in verdicts[0]}


def judged(asked: dict[str, list[Row]], judge: tuple[Judge, Judge], model_folder: str, adapter: Path) -> tuple[dict, dict]:
    """Shares of each group: of the real pictures after the image tokenizer, before and after; and the drawings of the latter two."""
    processor, model = VargptProcessor.from_pretrained(model_folder), load(model_folder)
    images = {"ceiling": {name: reconstructed(model, processor, [row["output_images"][0] for row in group]) for name, group in asked.items()}}
    for when in ("before", "after"):
        model = model if when == "before" else PeftModel.from_pretrained(model, adapter).eval()
        images[when] = {name: draw_rows(model, processor, group, 0, BATCH) for name, group in asked.items()}
    results = {
        name: {when: judge[name in OTHERS](of_groups[name], group) for when, of_groups in images.items()} for name, group in asked.items()
    }
    return results, images


def load(folder: str) -> VargptForConditionalGeneration:
    return VargptForConditionalGeneration.from_pretrained(folder, dtype="float32").to(check_device("auto")).eval()


if __name__ == "__main__":
    main()
