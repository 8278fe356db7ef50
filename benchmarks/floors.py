"""How fast this machine multiplies and reads, by whatever torch offers to its users.

A case cannot take less than its operations over the best rate, nor less than its bytes over the bandwidth: the larger is its floor.
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from .costs import Cost

SIDE = 2048  # of the multiplied matrices
WEIGHTS = 256 * 2**20  # bytes read for the bandwidth: more than second-level caches hold, as much as a medium model


def synchronize(device: str) -> None:
    """Waits until a GPU has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def best_seconds(work: Callable[[], object], device: str, seconds: float = 0.5) -> float:
    """Fastest of as many calls as fit into some seconds, at least three, after one to warm up."""
    work()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


@torch.no_grad()
def matrix_rates(dtype: torch.dtype, device: str = "cpu", side: int = SIDE) -> dict[str, float]:
    """Operations per second of the same kind of product by several ways through torch."""
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    positions = a.view(1, side, side, 1).transpose(1, 2)  # (1, channels, positions, 1), channels last
    channels = side // 8
    image, kernel = (torch.randn(shape, device=device).to(dtype) for shape in ((1, channels, 64, 64), (channels, channels, 3, 3)))
    image_last, kernel_last = (tensor.to(memory_format=torch.channels_last) for tensor in (image, kernel))
    product, convolution = 2 * side**3, 2 * 9 * image.numel() * channels
    ways = {
        "mm": (product, lambda: a @ b),
        "linear": (product, lambda: F.linear(a, b)),
        "1×1 convolution": (product, lambda: F.conv2d(positions, b[:, :, None, None])),
        "3×3 convolution": (convolution, lambda: F.conv2d(image, kernel, padding=1)),
        "3×3 convolution, channels last": (convolution, lambda: F.conv2d(image_last, kernel_last, padding=1)),
    }
    if torch.device(device).type == "cpu" and torch.backends.mkldnn.is_available():
        packed, rows = b.to_mkldnn(), a.to_mkldnn()
        ways["linear, to_mkldnn"] = product, lambda: F.linear(rows, packed)
    return {name: flops / best_seconds(work, device) for name, (flops, work) in ways.items()}


@torch.no_grad()
def bandwidths(device: str = "cpu", size: int = WEIGHTS) -> dict[str, float]:
    """Bytes per second, read as a matrix is by a vector, and copied (read and written)."""
    matrix = torch.ones(size // 4 // SIDE, SIDE, device=device)
    vector, copy = torch.ones(SIDE, device=device), torch.empty_like(matrix)
    moved = matrix.numel() * 4
    return {
        "matrix times vector": moved / best_seconds(lambda: matrix @ vector, device),
        "copy": 2 * moved / best_seconds(lambda: copy.copy_(matrix), device),
    }


def floor_seconds(cost: Cost, rate: float, bandwidth: float) -> float:
    """The least that work of this cost takes at `rate` operations and `bandwidth` bytes a second."""
    return max(cost.flops / rate, cost.bytes / bandwidth)
