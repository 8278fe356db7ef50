"""What a device computes fast: which number format to take where nobody chose one."""

import ctypes
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

_PROBE_SECONDS = 0.05  # that a measurement may take
_SIDES = (64, 4096)  # of matrices: from a fraction of a millisecond on any device to what fills a GPU
_COMPARED_SIDE = 256  # of those that formats are compared with: large enough for units to tell, and 15 ms where there are none
_ROOM = 0.9  # of a machine's memory, for weights
_AS_FAST = 0.75  # of float32's rate: formats without units reach 0.6 of it at most, those with units 0.85 at least


# mallopt's parameters, as glibc's malloc.h numbers them.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Lets this process keep memory that it frees, where glibc would hand every large piece back and ask for it anew.

    Convolutions of a CPU free and take hundreds of MB at every layer, and otherwise spend much of their time in the kernel. Costs memory:
    what was freed stays with the process. Whoever has set the allocator in the environment, or has another one, is left alone.

    Returns:
        Whether anything was set.
    """
    return _set_malloc((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1))


def disable_cudnn_attention() -> None:
    """Leaves attention on NVIDIA's GPUs to torch's other kernels, for the rest of this process.

    cuDNN plans attention anew for every sequence length, which takes 13 ms a call, and batches of training vary in length: on an H100 that was
    most of the time of a small model.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def share_freed_memory() -> bool:
    """Lets each thread of this process take what any other has freed, where glibc would keep it for the one that had it.

    For servers, whose many threads hold large images now and then: together they then keep what the most of them needed at once.

    Returns:
        Whether anything was set; the same is left alone as by [`keep_freed_memory`].
    """
    return _set_malloc((_M_ARENA_MAX, 1))


def _set_malloc(*settings: tuple[int, int]) -> bool:
    """Sets parameters of glibc's allocator where nobody else has; whether it did."""
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ or "LD_PRELOAD" in os.environ
    if chosen or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and all(mallopt(name, value) for name, value in settings)


def product_rate(device: str | torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a square matrix product, measured within 50 ms; of a CPU, of all threads that torch uses.

    The matrices start small and grow while there is time: without units for a format, a product of fixed size could take minutes.
    """
    device, (side, largest) = torch.device(device), _SIDES
    with _alone(device) as threads:
        matrix = torch.ones(side, side, dtype=dtype, device=device)
        _seconds_of_product(matrix)  # sets up the library
        fastest, best, end = math.inf, 0.0, time.perf_counter() + _PROBE_SECONDS
        while True:
            fastest = min(fastest, _seconds_of_product(matrix))
            best = max(best, 2 * side**3 / fastest)
            left = end - time.perf_counter()
            if left < fastest:
                return best * threads
            if 10 * fastest < left and 2 * side <= largest:  # twice the side is eight times the work, and a matrix to fill
                side, fastest = 2 * side, math.inf
                matrix = torch.ones(side, side, dtype=dtype, device=device)


@cache
def speed_over_float32(dtype: torch.dtype) -> float:
    """How many times as fast as in float32 this CPU multiplies matrices in another format; measured within 50 ms and two products, once in a
    process."""
    fastest = []
    with _alone(torch.device("cpu")):
        for kind in (torch.float32, dtype):
            matrix = torch.ones(_COMPARED_SIDE, _COMPARED_SIDE, dtype=kind)
            _seconds_of_product(matrix)  # sets up the library and reads its code from the disk, which can take longer than the probe
            end = time.perf_counter() + _PROBE_SECONDS / 2
            fastest.append(_seconds_of_product(matrix))
            while time.perf_counter() + fastest[-1] < end:
                fastest[-1] = min(fastest[-1], _seconds_of_product(matrix))
    return fastest[0] / fastest[1]


@contextmanager
def _alone(device: torch.device) -> Iterator[int]:
    """On a CPU, one thread of torch's at a time; gives how many there are otherwise. Threads that wait for one another on a busy machine
    would be all that is measured."""
    if device.type != "cpu":
        yield 1
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _seconds_of_product(matrix: torch.Tensor) -> float:
    """What a product takes: on a CPU the time of this thread, so that other work on the machine does not count."""
    on_cpu = matrix.device.type == "cpu"
    clock = time.thread_time if on_cpu else time.perf_counter
    start = clock()
    matrix @ matrix
    if not on_cpu:
        torch.accelerator.synchronize(matrix.device)
    return max(clock() - start, 1e-9)


def is_fast(device: str | torch.device, dtype: torch.dtype) -> bool:
    """Whether a device has units for a number format, so that it is about as fast as float32, or faster.

    Of a GPU torch knows it. Of a CPU torch says what its library would use, and a product verifies it.
    """
    device = torch.device(device)
    if dtype in (torch.float32, torch.float64):
        return True
    if device.type == "cuda":
        return dtype != torch.bfloat16 or torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    asked = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}.get(dtype)
    if asked is not None and hasattr(torch.ops.mkldnn, asked) and not getattr(torch.ops.mkldnn, asked)():
        return False
    return speed_over_float32(dtype) >= _AS_FAST


def loading_dtype(dtype: str, stored: torch.dtype | None, device: str | torch.device, parameters: int = 0) -> str:
    """The number format to load weights in: the one asked for; for "auto", float32 where the device has no units for the stored one.

    Args:
        dtype: "auto", or a format by its name.
        stored: `config.dtype`; None where the configuration does not say, which leaves "auto" to Transformers.
        parameters: of the model. Where so many in float32 have no room in this machine's memory, "mixed" takes the place of float32: weights
            as they are stored, computed with in float32 (`vargpt_hf.inference.mixed`). Without a number, float32 has room.
    """
    if dtype != "auto" or stored is None or is_fast(device, stored):
        return dtype
    return "mixed" if torch.device(device).type == "cpu" and 4 * parameters > _ROOM * machine_memory() else "float32"


def machine_memory() -> float:
    """Bytes of this machine's memory; infinite where the system does not tell."""
    names = getattr(os, "sysconf_names", {})
    if not {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= names.keys():
        return math.inf
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def slowness(device: str | torch.device, dtype: torch.dtype) -> str | None:
    """What it costs to compute in a format that the device has no units for, as a text; None where it has some."""
    if is_fast(device, dtype):
        return None
    name, device = str(dtype).removeprefix("torch."), torch.device(device)
    if device.type != "cpu":
        return f"this device has no units for {name}"
    return f"this CPU multiplies {name} {1 / speed_over_float32(dtype):.3g} times as slowly as float32"


def warn_if_slow(device: str | torch.device, dtype: torch.dtype, setting: str, advice: str) -> None:
    """Warns of a format that somebody chose and the device has no units for, naming the setting and what to give instead."""
    if (cost := slowness(device, dtype)) is not None:
        warnings.warn(f"{setting}: {cost}; {advice}.", stacklevel=3)


def default_device() -> str:
    """Where to compute where nobody chose a device: "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"
