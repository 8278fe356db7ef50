"""What a person sees of a run: a progress bar with both losses, curves, and images drawn on the way."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from matplotlib.figure import Figure
from PIL import Image
from transformers import ProgressCallback, TrainerCallback

from ..inference.drawing import answer
from .readers import AnyDataset

if TYPE_CHECKING:
    from ..modeling.modeling_vargpt import VargptForConditionalGeneration
    from ..processing.processing_vargpt import VargptProcessor

CURVES = "training.png"
SAMPLES = "samples"
_LOSSES = {"text": "text_loss", "image": "output_image_loss"}  # by the kind that accuracies are named by
_LOOKED_AT = 256  # rows in which prompts of drawings are looked for


class LossProgressCallback(ProgressCallback):
    """The progress bar of `Trainer`, which shows both losses; each log is one short line above it."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        losses = {kind: logs[name] for kind, name in _LOSSES.items() if name in logs}
        if losses:
            self.training_bar.set_postfix({kind: f"{loss:.3f}" for kind, loss in losses.items()})
        self.training_bar.write(f"step {state.global_step}: {describe_log(logs)}")


def describe_log(logs: dict[str, Any]) -> str:
    """The metrics of one log that people look at first, in one line.

    The share of right codes is that of the many fine ones, which follow from coarser ones; beside it stands that of the coarsest grid,
    which shows what the model makes of the words.
    """
    parts = []
    for prefix in sorted({key.removesuffix(name) for key in logs for name in _LOSSES.values() if key.endswith(name)}):
        for kind, name in _LOSSES.items():
            if f"{prefix}{name}" in logs:
                accuracy = f"{prefix}{kind}_accuracy"
                right = f"{logs[accuracy]:.1%} right"
                coarsest = next((key for key in logs if key.startswith(f"{accuracy}_")), None)
                if coarsest:
                    right += f", {logs[coarsest]:.1%} of {coarsest.removeprefix(f'{accuracy}_')}"
                parts.append(f"{prefix}{kind} loss {logs[f'{prefix}{name}']:.4f} ({right})")
    parts += [f"{key} {logs[key]:.3g}" for key in ("learning_rate", "grad_norm", "epoch", "train_runtime") if key in logs]
    return ", ".join(parts)


def describe_evaluation(metrics: dict[str, float]) -> str:
    """The metrics of an evaluation in one line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name != "epoch")


def remove_samples(output_dir: Path) -> None:
    """Deletes the images that an earlier run has left in the folder, which would stand for those of the run that starts there."""
    for file in (output_dir / SAMPLES).glob("step-*.png"):
        file.unlink()


class SampleCallback(TrainerCallback):
    """Draws the same prompts, from the same seed, at every evaluation: `samples/step-N.png` in the output folder.

    Args:
        processor: of the model.
        prompts: what to draw.
        seed: of the sampling.
    """

    def __init__(self, processor: "VargptProcessor", prompts: Sequence[str], seed: int = 0):
        self.processor, self.prompts, self.seed = processor, list(prompts), seed

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        if state.is_world_process_zero:
            self.draw(model, Path(args.output_dir), state.global_step)

    def draw(self, model: "VargptForConditionalGeneration", output_dir: Path, step: int) -> None:
        """Saves what the model draws at this step, if that is not there already, from before the run was resumed."""
        file = output_dir / SAMPLES / f"step-{step:06}.png"
        if file.exists():
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        save_samples(draw_prompts(model, self.processor, self.prompts, self.seed), self.prompts, file)


def draw_prompts(
    model: "VargptForConditionalGeneration", processor: "VargptProcessor", prompts: Sequence[str], seed: int = 0
) -> list[Image.Image]:
    """An image of each prompt, by the model's own settings of generation; the model is left in the mode in which it was."""
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    training = model.training
    model.eval()
    try:
        generator = torch.Generator(model.device).manual_seed(seed)
        with torch.compiler.set_stance("force_eager"):  # compiled layers would be compiled again for every length of what is drawn
            return answer(model, processor, chats, "image", max_new_tokens=2, generator=generator).images
    finally:
        model.train(training)


def drawing_prompts(rows: AnyDataset, number: int) -> list[str]:
    """What users say in rows whose first answer is an image, of text alone; the first `number` different ones of the first rows."""
    first = rows.select(range(min(len(rows), _LOOKED_AT))) if isinstance(rows, Dataset) else rows.take(_LOOKED_AT)
    prompts: dict[str, None] = {}
    for row in first.select_columns("messages"):
        user = [message for message in row["messages"] if message["role"] == "user"][:1]
        answer = [message for message in row["messages"] if message["role"] == "assistant"][:1]
        if not user or not answer or not any(part["type"] == "output_image" for part in answer[0]["content"]):
            continue
        if all(part["type"] == "text" for part in user[0]["content"]):
            prompts["".join(part["text"] for part in user[0]["content"])] = None
        if len(prompts) == number:
            break
    return list(prompts)


def save_samples(images: Sequence[Image.Image], prompts: Sequence[str], file: Path) -> None:
    """Saves images side by side, each under its prompt."""
    figure = Figure(figsize=(2.2 * len(images), 2.8), layout="constrained")
    for axes, image, prompt in zip(figure.subplots(1, len(images), squeeze=False)[0], images, prompts):
        axes.imshow(image)
        axes.set_title("\n".join(textwrap.wrap(prompt, 28)[:3]), fontsize=7, parse_math=False)
        axes.axis("off")
    figure.savefig(file, dpi=150)


def save_curves(history: Sequence[dict[str, float]], file: Path) -> bool:
    """Saves the curves of both losses, of training and of evaluation; returns whether there was anything to show.

    Args:
        history: `trainer.state.log_history`.
    """
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {"text_loss": {}, "output_image_loss": {}}
    for entry in history:
        for key, value in entry.items():
            kind = next((kind for kind in curves if key.endswith(kind)), None)
            if kind is not None:
                curves[kind].setdefault(key, []).append((entry["step"], value))
    curves = {kind: lines for kind, lines in curves.items() if lines}
    if not curves:
        return False
    figure = Figure(figsize=(6 * len(curves), 4), layout="constrained")
    for axes, (kind, lines) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items()):
        for name, points in lines.items():
            axes.plot(*zip(*points), label=name, marker="." if len(points) < 30 else None)
        axes.set(title=kind.replace("_", " "), xlabel="step", ylabel="nats per target")
        axes.legend()
    figure.savefig(file, dpi=120)
    return True
