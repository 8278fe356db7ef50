"""Draws the figures of docs/concepts.md, with what vargpt-tiny draws and the masks that the model uses.

    python docs/concepts/figures.py docs/concepts

Takes ten seconds.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from vargpt_hf import ScaleSchedule, VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.inference.drawing import answer
from vargpt_hf.modeling.visual_decoder_vargpt import block_causal_mask
from vargpt_hf.tiny import TINY_FOLDER

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

PROMPT = "a red circle above a blue square"
TEXT, NEW, DONE, EMPTY = "#4c72b0", "#dd8452", "#f3d3bf", "#ffffff"
SCALES = ("#dd8452", "#55a868", "#8172b3")
INK = "#333333"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    model = VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32").eval()
    processor = VargptProcessor.from_pretrained(TINY_FOLDER)
    figures = {
        "parts.png": parts(),
        "decodings.png": decodings(),
        "masks.png": masks(model),
        "scales.png": scales(model, processor),
    }
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=130, metadata={"Software": None})


def parts() -> plt.Figure:
    """What a VARGPT consists of, and which way text and images take through it."""
    figure, axes = plt.subplots(figsize=(10, 4.2), layout="constrained")
    axes.set(xlim=(0, 10), ylim=(0, 4.2))
    axes.axis("off")

    def box(x: float, y: float, width: float, height: float, text: str, color: str) -> None:
        style = {"boxstyle": "round,pad=0.02,rounding_size=0.12", "facecolor": color, "edgecolor": INK, "linewidth": 1}
        axes.add_patch(FancyBboxPatch((x, y), width, height, **style))
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=10, color=INK)

    def arrow(start: tuple[float, float], end: tuple[float, float], bend: float = 0) -> None:
        curve = f"arc3,rad={bend}"
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=INK, connectionstyle=curve))

    box(0.1, 2.95, 1.5, 0.7, "text", "#d6e1f0")
    box(0.1, 1.75, 1.5, 0.7, "images to read", "#d6e1f0")
    box(2.2, 1.55, 1.6, 2.3, "backbone:\na vision-language\nmodel of\nTransformers", "#b9cde6")
    box(4.6, 2.95, 1.5, 0.7, "head: next token", "#d6e1f0")
    box(4.6, 1.75, 1.5, 0.7, "visual decoder:\nnext scale", "#f3d3bf")
    box(6.8, 1.75, 1.2, 0.7, "codes", "#f3d3bf")
    box(8.5, 1.75, 1.4, 0.7, "drawn image", "#f3d3bf")
    box(8.5, 2.95, 1.4, 0.7, "written text", "#d6e1f0")
    box(4.6, 0.3, 3.4, 0.7, "image tokenizer: codes ⇄ pixels", "#f3d3bf")
    for y in (3.3, 2.1):
        arrow((1.62, y), (2.18, y))
        arrow((3.82, y), (4.58, y))
    arrow((6.12, 3.3), (8.48, 3.3))
    arrow((6.12, 2.1), (6.78, 2.1))
    arrow((7.4, 1.73), (7.4, 1.02))
    arrow((8.02, 0.65), (9.2, 1.73), bend=0.25)
    arrow((4.58, 0.65), (3.0, 1.53), bend=-0.25)
    axes.text(2.9, 0.52, "what is drawn so far,\non the next grid", fontsize=9, color=INK, ha="center", va="top")
    axes.text(4.2, 2.2, "projector", fontsize=8, color=INK, ha="center")
    return figure


def decodings() -> plt.Figure:
    """An image of 4×4 positions, code by code and scale by scale: dark are the codes that one call of the language model adds."""
    figure, axes = plt.subplots(2, 6, figsize=(10, 4.2), layout="constrained")
    for panel, calls in zip(axes[0], (1, 2, 3, 4, None, 16)):
        if calls is None:
            panel.text(0.5, 0.5, "…", fontsize=24, ha="center", va="center", color=INK)
            panel.axis("off")
            continue
        grid(panel, 4, [NEW if cell == calls - 1 else DONE if cell < calls else EMPTY for cell in range(16)])
        panel.set_title(f"call {calls}", fontsize=10)
    for call, (panel, side) in enumerate(zip(axes[1], (1, 2, 4)), start=1):
        grid(panel, side, [NEW] * side**2)
        panel.set_title(f"call {call}: {side}×{side}", fontsize=10)
    for panel in axes[1, 3:]:
        panel.axis("off")
    note = "21 codes in 3 calls; each scale\nadds detail to the sum of\nthose before it"
    axes[1, 3].text(0, 0.5, note, fontsize=10, va="center", color=INK)
    axes[0, 0].set_ylabel("next token", fontsize=11)
    axes[1, 0].set_ylabel("next scale", fontsize=11)
    return figure


def grid(axes: plt.Axes, side: int, colors: list[str]) -> None:
    """A square of side × side cells."""
    for cell, color in enumerate(colors):
        row, column = divmod(cell, side)
        corner = (column / side, 1 - (row + 1) / side)
        axes.add_patch(Rectangle(corner, 1 / side, 1 / side, facecolor=color, edgecolor=INK, linewidth=0.8))
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=[], yticks=[], aspect="equal")
    for spine in axes.spines.values():
        spine.set_visible(False)


def decoder_mask(model: VargptForConditionalGeneration, schedule: ScaleSchedule) -> np.ndarray:
    """Which positions see which in the visual decoder, (L, L), by the function that it uses itself."""
    config = model.model.visual_decoder.config
    hidden_states = torch.zeros(1, schedule.num_positions, config.hidden_size)
    mask = block_causal_mask(config, hidden_states, schedule)[0, 0]
    return (mask if mask.dtype == torch.bool else mask == 0).numpy()


def masks(model: VargptForConditionalGeneration) -> plt.Figure:
    """Who sees whom, in the language model and in the visual decoder, for an image of scales 1, 2, 3 between two pieces of text."""
    schedule = ScaleSchedule.of([1, 2, 3])
    before, after = 4, 3
    kinds = [0] * before + [1 + int(scale) for scale in schedule.scale_of_position()] + [0] * after
    total = len(kinds)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5.6), layout="constrained", width_ratios=(total, schedule.num_positions))
    show_mask(left, np.tril(np.ones((total, total), bool)), kinds)
    show_mask(right, decoder_mask(model, schedule), kinds[before:-after])
    left.set_title("language model: text, an image, text", fontsize=11)
    right.set_title("visual decoder: the image alone", fontsize=11)
    for axes in (left, right):
        axes.set_xlabel("is seen")
        axes.set_ylabel("sees")
    names = ["text", *(f"scale {height}×{width}" for height, width in schedule.grids)]
    handles = [Rectangle((0, 0), 1, 1, facecolor=color) for color in (TEXT, *SCALES)]
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    return figure


def show_mask(axes: plt.Axes, seen: np.ndarray, kinds: list[int]) -> None:
    """A mask (rows see columns); a cell has the color of what is seen."""
    cells = np.where(seen, np.array(kinds)[None] + 1, 0)
    axes.pcolormesh(cells, cmap=ListedColormap([EMPTY, TEXT, *SCALES]), vmin=0, vmax=4, edgecolors="#dddddd", linewidth=0.5)
    axes.invert_yaxis()
    axes.set(xticks=[], yticks=[], aspect="equal")


def scales(model: VargptForConditionalGeneration, processor: VargptProcessor) -> plt.Figure:
    """One drawing, scale by scale: its codes, and the image that the sum of the scales so far decodes to."""
    codes = answer(model, processor, [PROMPT], "image", seeds=[0]).output.output_image_codes
    schedule = model.config.schedules[0]
    figure, axes = plt.subplots(2, len(schedule), figsize=(8.4, 6), layout="constrained")
    figure.suptitle(f"“{PROMPT}”", fontsize=12)
    for scale, (scale_codes, (height, width)) in enumerate(zip(schedule.split(codes), schedule.grids)):
        numbers = scale_codes.view(height, width).numpy()
        axes[0, scale].imshow(numbers, cmap="viridis", vmin=0, vmax=1.4 * model.config.image_tokenizer_config.codebook_size)
        for (row, column), number in np.ndenumerate(numbers):
            axes[0, scale].text(column, row, number, ha="center", va="center", fontsize=14 - 1.2 * width, color="white", weight="bold")
        axes[0, scale].set_title(f"scale {scale + 1}: {height * width} code{'s' * (height * width > 1)}", fontsize=11)
        pixels = model.decode_image_codes(codes, num_scales=scale + 1)
        axes[1, scale].imshow(processor.output_image_processor.post_process(pixels)[0], interpolation="nearest")
        axes[1, scale].set_title(f"after scale {scale + 1}", fontsize=11)
    for panel in axes.flat:
        panel.set(xticks=[], yticks=[])
    return figure


if __name__ == "__main__":
    main()
