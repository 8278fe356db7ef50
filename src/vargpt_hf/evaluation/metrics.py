"""Metrics of images and codes, each with its unit; what is right about vargpt-tiny's drawings is the business of its judges."""

import torch

PEAK = 2.0  # pixels lie in [-1, 1]


def psnr(reconstruction: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image in dB, (B,); 103 dB at the most, where nothing differs.

    By hand, since torchmetrics, whose `peak_signal_noise_ratio(..., data_range=2.0, reduction="none", dim=(1, 2, 3))` is the same, would be a
    dependency for one formula, and is infinite where nothing differs.

    Args:
        reconstruction, pixels: (B, channels, height, width) in [-1, 1]; what the reconstruction has beyond is clipped.
    """
    mse = (reconstruction.clamp(-1, 1) - pixels).square().flatten(1).mean(1)
    return 10 * torch.log10(PEAK**2 / mse.clamp(min=1e-10))


def codebook_use(counts: torch.Tensor) -> float:
    """Share of the codebook that is in use, in [0, 1], of how often each code occurs, (V,)."""
    return (counts > 0).float().mean().item()


def perplexity(counts: torch.Tensor) -> float:
    """Exponential of the codes' entropy, in codes: from 1, where one code stands everywhere, to V, where all are as frequent.

    Args:
        counts: how often each code occurs, (V,).

    Raises:
        ValueError: no codes.
    """
    total = counts.sum()
    if total == 0:
        raise ValueError("There are no codes to take the perplexity of: give images to encode.")
    shares = counts / total
    return torch.exp(-(shares * shares.clamp(min=1e-12).log()).sum()).item()


__all__ = ["codebook_use", "perplexity", "psnr"]
