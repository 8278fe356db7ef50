"""Metrics of images, each computed by a library: of pairs (PSNR, SSIM, LPIPS), of sets (FID, KID, IS, precision and recall), of an image and
its prompt (CLIP-score).

Values alone are computed here; `intervals` puts confidence intervals around them. A network that a metric looks through is handed in: see
`networks`. Shapes: N images, D features of one.
"""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from .intervals import SET_RESAMPLES, Estimate, library, set_metrics

if TYPE_CHECKING:
    from .networks import ClipNetwork

PIXEL_RANGE = 2.0  # pixels lie in [-1, 1]
MOST_PSNR = 106.0  # dB, of images that differ by less than 8 bits can show; the library's is infinite where nothing differs
Network = Callable[[torch.Tensor], torch.Tensor]


def psnr_of_pairs(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image in dB, (N,); 106 dB at the most.

    Args:
        images, references: (N, 3, height, width) in [-1, 1]; what images have beyond is clipped.

    Raises:
        ValueError: other shapes.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    images, references = _pairs(images, references)
    found = peak_signal_noise_ratio(images, references, data_range=PIXEL_RANGE, reduction="none", dim=(1, 2, 3))
    return found.clamp(max=MOST_PSNR)


def ssim_of_pairs(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each image, (N,), 1 at the most; in the library's default window, Gaussian of 11 × 11 pixels.

    Args:
        images, references: (N, 3, height, width) in [-1, 1], at least 11 pixels a side; what images have beyond is clipped.

    Raises:
        ValueError: other shapes.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    images, references = _pairs(images, references)
    if min(images.shape[-2:]) < 11:
        raise ValueError(f"SSIM compares windows of 11 × 11 pixels; the images have {images.shape[-2]} × {images.shape[-1]}.")
    found = structural_similarity_index_measure(images, references, data_range=PIXEL_RANGE, reduction="none")
    return found.reshape(len(images))


def lpips_of_pairs(images: torch.Tensor, references: torch.Tensor, network: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Learned perceptual distance of each image, (N,), 0 where nothing differs.

    Args:
        images, references: (N, 3, height, width) in [-1, 1]; what images have beyond is clipped.
        network: takes both and returns N distances, such as `networks.lpips_network`.

    Raises:
        ValueError: other shapes.
    """
    images, references = _pairs(images, references)
    with torch.no_grad():
        return network(images, references).reshape(len(images))


def _pairs(images: torch.Tensor, references: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if images.shape != references.shape or images.ndim != 4 or not len(images):
        shapes = f"{tuple(images.shape)} and {tuple(references.shape)}"
        raise ValueError(f"Images and references must have the same shape (N, 3, height, width), got {shapes}.")
    return images.float().clamp(-1, 1), references.float()


def frechet_distance(features: torch.Tensor, references: torch.Tensor) -> float:
    """FID of features, 0 where both sets have the same mean and covariance.

    Args:
        features, references: (N, D) and (M, D) of drawn and of real images.

    Raises:
        ValueError: other shapes, fewer than two images, or features that are NaN or infinite.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    features, references = _sets(features, references)
    metric = FrechetInceptionDistance(feature=_Given(features.shape[1]), normalize=True)
    metric.update(references, real=True)
    metric.update(features, real=False)
    return metric.compute().item()


def kernel_distance(features: torch.Tensor, references: torch.Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> float:
    """KID of features: the unbiased squared distance under a cubic kernel, mean of random subsets; slightly negative where sets are alike.

    Args:
        features, references: (N, D) and (M, D) of drawn and of real images.
        subsets, subset_size: how many, of how many images; as many as there are, where there are fewer.
        seed: of the subsets.

    Raises:
        ValueError: as of `frechet_distance`.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    features, references = _sets(features, references)
    subset_size = min(subset_size, len(features), len(references))
    subsets = subsets if subset_size < max(len(features), len(references)) else 1  # all would be the same
    with _library_randomness(seed):
        metric = KernelInceptionDistance(feature=_Given(features.shape[1]), subsets=subsets, subset_size=subset_size)
        metric.update(references, real=True)
        metric.update(features, real=False)
        return metric.compute()[0].item()


def inception_score(logits: torch.Tensor, splits: int = 10, seed: int = 0) -> float:
    """IS of class logits, from 1 to the number of classes; mean over random splits.

    Args:
        logits: (N, classes) of drawn images.
        splits: of the images; at most one a sample.
        seed: of the splits.

    Raises:
        ValueError: another shape, or logits that are NaN or infinite.
    """
    from torchmetrics.image.inception import InceptionScore

    logits, _ = _sets(logits, logits)
    with _library_randomness(seed):
        metric = InceptionScore(feature=_Given(logits.shape[1]), splits=min(splits, len(logits)))
        metric.update(logits)
        return metric.compute()[0].item()


def precision_recall(features: torch.Tensor, references: torch.Tensor, neighbors: int = 3) -> dict[str, float]:
    """Precision and recall of drawn images against real ones, with density and coverage; the first three in [0, 1], density from 0.

    Distances of all pairs are held at once: some ten thousand images of each kind fit into memory.

    Args:
        features, references: (N, D) and (M, D) of drawn and of real images.
        neighbors: k of the k-nearest-neighbor balls (3, as in the paper of improved precision and recall).

    Raises:
        ValueError: as of `frechet_distance`, and fewer images than neighbors.
    """
    from prdc import compute_prdc

    features, references = _sets(features, references)
    if min(len(features), len(references)) < neighbors + 2:
        raise ValueError(f"Precision and recall look at {neighbors} neighbors: give at least {neighbors + 2} images of each kind.")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints how many there are
        found = compute_prdc(references.numpy(), features.numpy(), nearest_k=neighbors)
    return {name: float(value) for name, value in found.items()}


def clip_scores(images: Sequence[Image.Image], texts: Sequence[str], clip: "ClipNetwork", batch_size: int = 32) -> torch.Tensor:
    """CLIP-score of each image and its text: 100 times the cosine of their features, at least 0, (N,).

    Args:
        images, texts: as many of each.
        clip: see `networks.clip_network`.
        batch_size: images that are read together.

    Raises:
        ValueError: other numbers of images and texts, or none.
    """
    if len(images) != len(texts) or not images:
        raise ValueError(f"There are {len(images)} images for {len(texts)} texts: give one text for each image.")
    found = []
    for start in range(0, len(images), batch_size):
        stop = start + batch_size
        seen, said = clip.images(images[start:stop]), clip.texts(texts[start:stop])
        found.append(100 * torch.nn.functional.cosine_similarity(seen, said).clamp(min=0))
    return torch.cat(found)


def features_of(images: Sequence[Image.Image], network: Network, batch_size: int = 32) -> torch.Tensor:
    """Features (N, D) float32 of images, on the CPU.

    Args:
        images: such as have three channels or can be turned into such; neighbors of one size are read together.
        network: takes (n, 3, height, width) uint8 and returns (n, D); see `networks.feature_network`.
        batch_size: images that are read together.

    Raises:
        ValueError: no images, or a network that returns another shape.
    """
    from .image_files import batches_of_one_size

    if not images:
        raise ValueError("There are no images to take features of.")
    found = []
    for batch in batches_of_one_size(images, batch_size):
        with torch.no_grad():
            features = network(batch)
        if features.ndim != 2 or len(features) != len(batch):
            raise ValueError(f"The network gave the shape {tuple(features.shape)} for {len(batch)} images; expected ({len(batch)}, D).")
        found.append(features.float().cpu())
    return torch.cat(found)


def compare_sets(
    features: torch.Tensor, references: torch.Tensor, *, neighbors: int = 3, resamples: int = SET_RESAMPLES, seed: int = 0, subsets: int = 100
) -> dict[str, Estimate]:
    """FID, KID, precision, recall, density and coverage of drawn against real images, with intervals.

    Args:
        features, references: (N, D) and (M, D), see `features_of`.
        neighbors, subsets: see `precision_recall` and `kernel_distance`.
        resamples, seed: of the intervals, see `intervals.set_metrics`.

    Raises:
        ValueError: as of `frechet_distance` and `precision_recall`.
    """

    def of_all(drawn: torch.Tensor, real: torch.Tensor) -> dict[str, float]:
        distances = {"FID": frechet_distance(drawn, real), "KID": kernel_distance(drawn, real, subsets=subsets, seed=seed)}
        return {**distances, **precision_recall(drawn, real, neighbors)}

    lower = {"library": library("torchmetrics"), "higher_is_better": False}
    of_manifolds = {"library": library("prdc")}
    fields = {"FID": lower, "KID": lower, **{name: of_manifolds for name in ("precision", "recall", "density", "coverage")}}
    enough = min(len(features), len(references)) // 2 >= neighbors + 2
    return set_metrics(of_all, (features, references), fields, resamples if enough else 0, seed)


class _Given(torch.nn.Module):
    """A feature network for torchmetrics that returns its input, which are features already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def _sets(features: torch.Tensor, references: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in float64, on the CPU."""
    for what, samples in (("drawn", features), ("real", references)):
        if samples.ndim != 2 or len(samples) < 2:
            raise ValueError(f"Features of {what} images must be (N, D) of at least two images, got the shape {tuple(samples.shape)}.")
        if not samples.isfinite().all():
            raise ValueError(f"Features of {what} images are NaN or infinite.")
    if features.shape[1] != references.shape[1]:
        raise ValueError(f"Drawn images have {features.shape[1]} features, real ones {references.shape[1]}: take one network for both.")
    return features.detach().double().cpu(), references.detach().double().cpu()


@contextlib.contextmanager
def _library_randomness(seed: int) -> Iterator[Any]:
    """Around torchmetrics' metrics that draw subsets from torch's global source and warn of the memory that features take."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.manual_seed(seed)
        yield


__all__ = [
    "clip_scores",
    "compare_sets",
    "features_of",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "lpips_of_pairs",
    "precision_recall",
    "psnr_of_pairs",
    "ssim_of_pairs",
]
