"""What drawing costs, in time and memory, as one thing at a time grows: batch, prompt, images, depth of the decoder, side of the image.

    python benchmarks/cost_curves.py docs/cost_curves.png

Draws the curves and prints the same figures as a Markdown table. The model is random, with ten million weights or so, and costs what a trained
one of its size does. All is given as a ratio to the first point of each curve, which carries over to other machines better than seconds.
Time is that of the processor on one thread, which other programs lengthen little. Linux only: peak memory is read from /proc.
"""

import argparse
import time
from multiprocessing import get_context
from pathlib import Path

import matplotlib
import torch
from transformers import LogitsProcessor

from vargpt_hf import VargptForConditionalGeneration
from vargpt_hf.testing import tiny_config

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402 (the backend comes first)

SCALES = {64: (1, 2, 4), 128: (1, 2, 3, 4, 6, 8), 256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)}
BASE = {"batch": 1, "prompt": 32, "images": 1, "depth": 4, "side": 128}
CURVES = {
    "batch": ("rows of the batch", (1, 2, 4, 8, 16, 32)),
    "prompt": ("tokens of the prompt", (32, 128, 512, 2048)),
    "images": ("images in an answer", (1, 2, 4, 8)),
    "depth": ("layers of the visual decoder", (2, 4, 8, 16)),
    "side": ("side of the image, px", tuple(SCALES)),
}
REPEATS = 3


class ForcedImages(LogitsProcessor):
    """Asks for one image after the other, as no random model does by itself."""

    def __init__(self, image_start: int):
        self.image_start = image_start

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.image_start] = 0
        return forced


def build(depth: int, side: int) -> VargptForConditionalGeneration:
    """A random model; the same weights whenever it is built so."""
    small = tiny_config().to_dict()
    width = {"hidden_size": 256, "num_attention_heads": 4}
    text = {"intermediate_size": 768, "num_hidden_layers": 6, "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 32768}
    config = tiny_config(
        vlm_config={**small["vlm_config"], "text_config": {**small["vlm_config"]["text_config"], **width, **text}},
        image_tokenizer_config={
            "schedules": [SCALES[side]],
            "codebook_size": 1024,
            "latent_channels": 16,
            "base_channels": 16,
            "channel_multipliers": (1, 1, 2, 2, 4),
            "num_res_blocks": 1,
            "norm_num_groups": 8,
        },
        visual_decoder_config={**width, "num_hidden_layers": depth},
    )
    torch.manual_seed(0)
    return VargptForConditionalGeneration(config).eval()


def measure(batch: int, prompt: int, images: int, depth: int, side: int) -> tuple[float, float]:
    """Processor seconds of one call of `generate`, the best of several, and the MiB that the first added to the process at its peak."""
    model = build(depth, side)
    start = model.config.output_image_start_token_id
    settings = {
        "input_ids": torch.randint(3, 60, (batch, prompt), generator=torch.Generator().manual_seed(0)),
        "logits_processor": [ForcedImages(start)],
        "max_output_images": images,
        "max_new_tokens": 2 * images,
        "do_sample": False,
        "return_dict_in_generate": True,
    }
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
    before, times = memory("VmRSS"), []
    for repeat in range(1 + REPEATS):
        began = time.process_time()
        output = model.generate(**settings)
        times.append(time.process_time() - began)
        if repeat == 0:
            peak = memory("VmHWM") - before
    assert len(output.output_images) == batch * images
    return min(times[1:]), peak


def memory(name: str) -> float:
    """A figure of this process in MiB: "VmRSS" is what it holds, "VmHWM" the most it held."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def point(**settings) -> tuple[float, float]:
    """`measure` in a process of its own, whose memory holds nothing of other points."""
    torch.set_num_threads(1)
    return measure(**settings)


def draw(curves: dict[str, list[tuple[int, float, float]]], file: Path) -> None:
    """One panel a curve: time and memory as ratios to the first point, and a dashed line for what would grow as the number does."""
    figure, panels = pyplot.subplots(1, len(curves), figsize=(3.2 * len(curves), 3.2), constrained_layout=True)
    for panel, (name, points) in zip(panels, curves.items()):
        numbers, seconds, peaks = zip(*points)
        for values, label, colour in ((seconds, "time", "tab:blue"), (peaks, "peak memory", "tab:orange")):
            panel.plot(numbers, [value / values[0] for value in values], marker="o", label=label, color=colour)
        panel.plot(numbers, [number / numbers[0] for number in numbers], "--", color="grey", label="in proportion")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=2)
        panel.yaxis.set_major_formatter("{x:g}×")
        panel.set(xlabel=CURVES[name][0], xticks=numbers, xticklabels=map(str, numbers))
    panels[0].set_ylabel("ratio to the first point")
    panels[0].legend()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="file for the drawn curves")
    parser.add_argument("--points", type=int, default=10, help="only so many points of each curve")
    arguments = parser.parse_args()
    curves = {}
    print("| what grows | from → to | time | peak memory | first point |\n|---|---|---|---|---|")
    for name, (words, numbers) in CURVES.items():
        curves[name] = []
        for number in numbers[: arguments.points]:
            # Forked before torch has started threads of its own here: a child has all imports, and none of another point's memory.
            with get_context("fork").Pool(1) as pool:
                curves[name].append((number, *pool.apply(point, kwds={**BASE, name: number})))
        first, *rest = curves[name]
        ratios = [(f"{number}", f"{seconds / first[1]:.2f}", f"{peak / first[2]:.2f}") for number, seconds, peak in rest]
        columns = [", ".join(column) for column in zip(*ratios)]
        print(f"| {words} | {first[0]} → {columns[0]} | {columns[1]} | {columns[2]} | {first[1]:.3f} s, {first[2]:.0f} MiB |", flush=True)
    draw(curves, arguments.output)


if __name__ == "__main__":
    main()
