"""The report on an image tokenizer: what `vargpt tokenizer evaluate` prints."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ...evaluation.image_metrics import frechet_distance, ssim_of_pairs
from ...evaluation.image_tokenizers import measure
from ...evaluation.intervals import Estimate, library, mean, set_metrics
from .images import ImageSource, PixelCollator, batches_of, read_images
from .loading import load_image_tokenizer
from .networks import SMALL, SmallNetwork
from .networks import perceptual_network as named_network
from .sheets import save_sheet
from .trainer import processor_of

_INCEPTION = "inception"
_UNITS = {"psnr": {"unit": "dB"}, "ssim": {"library": "torchmetrics"}, "perceptual_distance": {"higher_is_better": False}}
_ON_SHEET = 8


def evaluate_on(
    model: str | Path,
    source: ImageSource,
    *,
    perceptual_network: str | None = None,
    fid_network: str | None = None,
    number: int = 0,
    batch_size: int = 16,
    allow_upscaling: bool = False,
    sheet: str | Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Metrics of an image tokenizer on images, as JSON holds them.

    Args:
        model: folder or Hub id of an image tokenizer, or of a VARGPT.
        source: the images.
        perceptual_network: that compares images, see `networks`; None: no such metric.
        fid_network: of rFID's features: "efficientnet-lite0", "inception:FILE", or the folder of a vision model; None: no rFID.
        number: how many images; 0 takes all.
        batch_size: images that are looked at together.
        allow_upscaling: take images smaller than the model's, too.
        sheet: PNG with some images beside their reconstructions.
        device: where to compute.

    Returns:
        `psnr` (dB), `ssim`, `perceptual_distance` and `rfid`, each an `Estimate` with its interval; `codes`: `use` (share of a symbol's
        classes that occur), `perplexity`, and the same of every scale; and what was measured.

    Raises:
        ValueError: no such model, data or network, or images that cannot be used.
        OSError: files that cannot be read.
    """
    tokenizer = load_image_tokenizer(model).to(device).eval()
    images, processor = read_images(source), processor_of(tokenizer)
    collate = PixelCollator(processor, allow_upscaling=allow_upscaling)
    total = min(number or len(images), len(images))
    networks = {"perceptual": perceptual_network, "fid": fid_network}
    report = measure(
        tokenizer,
        _on_device(batches_of(images, collate, batch_size, total), device, total),
        perceptual=None if perceptual_network is None else named_network(perceptual_network, device),
        ssim=ssim_of_pairs,
        features=None if fid_network is None else feature_network(fid_network, device),
    )
    if sheet is not None:
        save_sheet(tokenizer, next(batches_of(images, collate, _ON_SHEET, _ON_SHEET)).to(device), processor, sheet)
    metrics: dict[str, Estimate] = {name: mean(values.numpy(), **_UNITS.get(name, {})) for name, values in report.values.items()}
    if report.features is not None:
        of_sets = {"rfid": {"library": library("torchmetrics"), "higher_is_better": False}}
        metrics |= set_metrics(lambda a, b: {"rfid": frechet_distance(a, b)}, (report.features, report.references), of_sets, resamples=0)
    return {
        "model": str(model),
        "kind": tokenizer.config.model_type,
        "fingerprint": tokenizer.fingerprint(),
        "data": source.path,
        "images": total,
        "networks": {name: value for name, value in networks.items() if value is not None},
        **{name: estimate.to_dict() for name, estimate in metrics.items()},
        "codes": report.codes,
        "versions": library("vargpt-hf", "torch", "transformers"),
    }


def _on_device(batches: Iterator[torch.Tensor], device: str, total: int) -> Iterator[torch.Tensor]:
    with tqdm(total=total, desc="Evaluating", unit=" images") as progress:
        for pixels in batches:
            yield pixels.to(device)
            progress.update(len(pixels))


def feature_network(name: str, device: str = "cpu") -> Callable[[torch.Tensor], torch.Tensor]:
    """Features (N, D) of pixels (N, 3, height, width) in [-1, 1], for rFID, by a network of that name.

    Raises:
        ValueError: an unknown name, or packages or weights that are missing.
        OSError: a folder or file that cannot be read.
    """
    if name == SMALL:
        return SmallNetwork().to(device).pooled
    from ...evaluation.networks import feature_network as of_folder
    from ...evaluation.networks import inception_network

    kind, _, file = name.partition(":")
    network = inception_network(file or None, device=device) if kind == _INCEPTION else of_folder(name, device)
    return lambda pixels: network(((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))


__all__ = ["evaluate_on", "feature_network"]
