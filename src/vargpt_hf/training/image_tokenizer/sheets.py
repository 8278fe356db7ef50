"""What a person sees of an image tokenizer's training: images beside their reconstructions, curves, and a progress bar."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from transformers import ProgressCallback

from ...modeling.image_tokenizer_vargpt import VargptImageTokenizer
from ...processing.image_processing_vargpt import VargptImageProcessor
from ...restartable import write_whole

SAMPLES, CURVES = "samples", "training.png"
_LEAST_SIDE = 128  # pixels that an image has on a sheet
_GAP = 4
_NOT_DRAWN = ("epoch", "step", "grad_norm", "learning_rate", "total_flos")


@torch.no_grad()
def save_sheet(image_tokenizer: VargptImageTokenizer, pixels: torch.Tensor, processor: VargptImageProcessor, file: str | Path) -> None:
    """Saves images, and below each its reconstruction, as one PNG; small ones are enlarged by a whole number.

    Args:
        pixels: (N, 3, height, width) in [-1, 1], of one schedule.
    """
    schedule = image_tokenizer.schedule_of(pixels)
    reconstructed = image_tokenizer.decode(image_tokenizer.encode(pixels, schedule), schedule)
    rows = [processor.post_process(pixels), processor.post_process(reconstructed)]
    width, height = rows[0][0].size
    factor = max(1, -(-_LEAST_SIDE // max(width, height)))
    width, height = factor * width, factor * height
    sheet = Image.new("RGB", (len(pixels) * (width + _GAP) - _GAP, 2 * height + _GAP), "white")
    for line, images in enumerate(rows):
        for index, image in enumerate(images):
            sheet.paste(image.resize((width, height), Image.Resampling.NEAREST), (index * (width + _GAP), line * (height + _GAP)))
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda path: sheet.save(path, format="PNG"))


def save_curves(history: Sequence[Mapping[str, float]], file: str | Path) -> bool:
    """Saves a curve of every number that was logged more than once; returns whether there was any.

    Args:
        history: `trainer.state.log_history`.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for entry in history:
        for name, value in entry.items():
            if name not in _NOT_DRAWN and not name.startswith("train_"):
                curves.setdefault(name, []).append((entry["step"], value))
    curves = {name: points for name, points in sorted(curves.items()) if len(points) > 1}
    if not curves:
        return False
    columns = min(4, len(curves))
    lines = -(-len(curves) // columns)
    figure = Figure(figsize=(3.5 * columns, 2.6 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, (name, points) in zip(panels, curves.items()):
        panel.plot(*zip(*points))
        panel.set_title(name.replace("_", " "), fontsize=9)
        panel.set_xlabel("step", fontsize=8)
    for panel in panels[len(curves) :]:
        panel.axis("off")
    write_whole(Path(file), lambda path: figure.savefig(path, dpi=120, format="png"))
    return True


class TermsProgressCallback(ProgressCallback):
    """The progress bar of `Trainer`; each log is one line above it."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and self.training_bar is not None and logs:
            self.training_bar.write(f"step {state.global_step}: {describe_log(logs)}")


def describe_log(logs: Mapping[str, Any]) -> str:
    """The numbers of one log, in one line."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in logs.items() if name not in ("epoch", "total_flos"))


__all__ = ["CURVES", "SAMPLES", "TermsProgressCallback", "describe_log", "save_curves", "save_sheet"]
