"""Metrics of an image tokenizer: how near its reconstructions come to images, and what it makes of its codes.

Shapes: N images, L codes of one image, K symbols of a code, V classes of a symbol.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..modeling.image_tokenizer_vargpt import VargptImageTokenizer
from ..modeling.scales_vargpt import ScaleSchedule
from .metrics import psnr

Compare = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class CodeCounts:
    """How often each class of each symbol occurs at each scale, of the codes of many images.

    A code of VAR's tokenizer is one symbol of V classes; one of Infinity's is K bits, whose combinations are far too many to count.
    """

    def __init__(self, image_tokenizer: VargptImageTokenizer):
        self.image_tokenizer = image_tokenizer
        self.images: dict[ScaleSchedule, int] = defaultdict(int)
        self.counts: dict[ScaleSchedule, torch.Tensor] = {}  # (S, K, V)

    def add(self, codes: torch.LongTensor, schedule: ScaleSchedule) -> None:
        """Counts the codes (N, L) of images of a schedule."""
        config = self.image_tokenizer.config
        number, classes = config.num_symbols, config.num_classes
        symbols = self.image_tokenizer.to_symbols(codes.cpu()) + classes * torch.arange(number)
        found = [torch.bincount(part.flatten(), minlength=number * classes) for part in schedule.split(symbols)]
        self.counts[schedule] = self.counts.get(schedule, 0) + torch.stack(found).view(-1, number, classes)
        self.images[schedule] += len(codes)

    def report(self) -> dict[str, Any]:
        """Use and perplexity over all, and of each scale of each schedule; see `use_and_perplexity`."""
        whole = torch.stack([counts.sum(0) for counts in self.counts.values()]).sum(0)
        schedules = []
        for schedule, counts in self.counts.items():
            scales = [{"grid": list(grid), **use_and_perplexity(of_scale)} for grid, of_scale in zip(schedule.grids, counts)]
            size = list(self.image_tokenizer.config.image_size(schedule))
            schedules.append({"size": size, "images": self.images[schedule], "scales": scales})
        return {**use_and_perplexity(whole), "schedules": schedules}


def use_and_perplexity(counts: torch.Tensor) -> dict[str, float]:
    """What is used of the classes of K symbols, and how evenly.

    Args:
        counts: how often each class of each symbol occurs, (K, V).

    Returns:
        `use`: share of the classes that occur, in [0, 1]; `perplexity`: exponential of a symbol's entropy, mean over the symbols, from 1 to V.

    Raises:
        ValueError: no codes.
    """
    if not counts.sum():
        raise ValueError("There are no codes to look at: give images to encode.")
    shares = counts.double() / counts.sum(-1, keepdim=True)
    entropy = torch.special.entr(shares).sum(-1)
    return {"use": (counts > 0).double().mean().item(), "perplexity": entropy.exp().mean().item()}


@dataclass
class TokenizerReport:
    """What [`measure`] found.

    Attributes:
        values: of each metric, one number an image: `psnr` in dB, and those of the networks that were given.
        codes: see `CodeCounts.report`.
        features, references: (N, D) of reconstructions and of images, where a network of features was given.
    """

    values: dict[str, torch.Tensor]
    codes: dict[str, Any]
    features: torch.Tensor | None = field(default=None, repr=False)
    references: torch.Tensor | None = field(default=None, repr=False)

    def means(self) -> dict[str, float]:
        """The mean of each metric, and use and perplexity of the codes."""
        means = {name: values.mean().item() for name, values in self.values.items()}
        return means | {"codes_in_use": self.codes["use"], "perplexity": self.codes["perplexity"]}


@torch.no_grad()
def measure(
    image_tokenizer: VargptImageTokenizer,
    batches: Iterable[torch.Tensor],
    perceptual: Compare | None = None,
    ssim: Compare | None = None,
    features: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> TokenizerReport:
    """Encodes and decodes images, and compares.

    Args:
        batches: pixels (n, 3, height, width) in [-1, 1], each batch of the size of one schedule.
        perceptual, ssim: distance and likeness (n,) of reconstructions and images, both in [-1, 1].
        features: of pixels in [-1, 1], (n, D); for a Fréchet distance.

    Raises:
        ValueError: no images, or a batch of another size.
    """
    compare: dict[str, Compare] = {"psnr": psnr}
    compare |= {name: metric for name, metric in (("ssim", ssim), ("perceptual_distance", perceptual)) if metric is not None}
    values: dict[str, list[torch.Tensor]] = {name: [] for name in compare}
    seen: tuple[list, list] = ([], [])
    counts = CodeCounts(image_tokenizer)
    for pixels in batches:
        schedule = image_tokenizer.schedule_of(pixels)
        codes = image_tokenizer.encode(pixels, schedule)
        counts.add(codes, schedule)
        reconstruction = image_tokenizer.decode(codes, schedule).float()
        for name, metric in compare.items():
            values[name].append(metric(reconstruction, pixels).float().cpu())
        if features is not None:
            for found, images in zip(seen, (reconstruction, pixels)):
                found.append(features(images).float().cpu())
    if not counts.counts:
        raise ValueError("There are no images to look at.")
    of_sets = [torch.cat(found) for found in seen] if features is not None else [None, None]
    return TokenizerReport({name: torch.cat(found) for name, found in values.items()}, counts.report(), *of_sets)


__all__ = ["CodeCounts", "TokenizerReport", "measure", "use_and_perplexity"]
