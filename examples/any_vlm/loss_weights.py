"""What either loss gains by its weight, and the other loses: a sweep of `image_loss_weight`, drawn.

    python examples/any_vlm/loss_weights.py runs/loss_weights

UniFluid (arXiv 2503.13436) finds that one weight trades drawing for reading. Here, vargpt-tiny's language model is trained anew from random
weights, everything else frozen, a few steps for each weight on as many rows that draw as rows that answer; the losses of other rows are then
measured. Takes five minutes on one CPU core and writes losses.json and losses.png.
"""

import argparse
import json
from pathlib import Path

import torch
from datasets import Dataset, Features, Value
from matplotlib.figure import Figure

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.tiny import TINY_FOLDER
from vargpt_hf.tiny.rows import rows
from vargpt_hf.training.data import ROW_FEATURES
from vargpt_hf.training.stages import apply_stage
from vargpt_hf.training.trainer import VargptSFTConfig, VargptSFTTrainer

WEIGHTS = (0.01, 0.1, 1.0, 10.0, 100.0)
MIXTURE = {"draw": 1.0, "look_up": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=80)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    features = Features({**ROW_FEATURES, "truth": Value("string")})
    train, test = (
        Dataset.from_list(list(rows(MIXTURE, number, seed, split)), features=features)
        for number, seed, split in ((16 * arguments.steps, 1, "train"), (128, 2, "test"))
    )
    found = {weight: losses_after(weight, train, test, arguments) for weight in WEIGHTS}
    (arguments.output / "losses.json").write_text(json.dumps(found, indent=1))
    for weight, (text, image) in found.items():
        print(f"image_loss_weight {weight:g}: loss of answers {text:.3f}, of codes {image:.3f}")
    draw(found).savefig(arguments.output / "losses.png", dpi=120)


def losses_after(weight: float, train: Dataset, test: Dataset, arguments: argparse.Namespace) -> tuple[float, float]:
    """The losses of answers and of codes after training with this weight of the images' loss."""
    model = VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32")
    torch.manual_seed(0)
    decoder = model.model.get_decoder()
    decoder.load_state_dict(type(decoder)(decoder.config).state_dict())  # fresh; the head is its embedding
    model.config.image_loss_weight = weight
    apply_stage(model, "stage2")
    settings = VargptSFTConfig(
        str(arguments.output / "run"),
        max_steps=arguments.steps,
        per_device_train_batch_size=16,
        learning_rate=2e-3,
        warmup_steps=arguments.steps // 10,
        max_grad_norm=1.0,
        save_strategy="no",
        disable_tqdm=True,
        seed=1,
    )
    processor = VargptProcessor.from_pretrained(TINY_FOLDER)
    trainer = VargptSFTTrainer(model, settings, train_dataset=train, eval_dataset=test, processing_class=processor)
    trainer.train()
    measured = trainer.evaluate()
    return measured["eval_text_loss"], measured["eval_output_image_loss"]


def draw(found: dict[float, tuple[float, float]]) -> Figure:
    """Both losses of each weight: what is further down and further left is better."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*found.values()), marker="o")
    for weight, point in found.items():
        axes.annotate(f"{weight:g}", point, textcoords="offset points", xytext=(6, 4))
    axes.set(xlabel="loss of answers about images", ylabel="loss of codes to draw", title="image_loss_weight from 0.01 to 100")
    return figure


if __name__ == "__main__":
    main()
