"""One measurement in a process of its own, so that its peak memory is its own: `python -m benchmarks.measure JSON`."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Without these, glibc hands large blocks back after every operation and the kernel zeroes them anew for the next (see the README).
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**33)}


def measured(threads: int, **what) -> dict:
    """Result of [`measure`] in a new process with so many threads.

    Raises:
        RuntimeError: that process failed.
    """
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**ALLOCATOR, **os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-m", "benchmarks.measure", json.dumps(what)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"Measuring {what} failed:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def measure(kind: str, **what) -> dict:
    """What was asked for, as what JSON can hold; see the functions below."""
    return {"floors": floors, "case": case, "peer": peer, "host": host}[kind](**what)


def floors(dtype: str, device: str) -> dict:
    """Rates and bandwidths of this machine."""
    import torch

    from .floors import bandwidths, matrix_rates

    return {"rates": matrix_rates(getattr(torch, dtype), device), "bandwidths": bandwidths(device)}


def case(name: str, size: str, dtype: str, device: str, seconds: float) -> dict:
    """Seconds of every call, peak memory, operations and bytes of a case."""
    import torch

    from .cases import CASES
    from .costs import Costs
    from .sizes import model_of

    before = peak_bytes(device)
    model = model_of(size, getattr(torch, dtype), device)
    loaded = peak_bytes(device)
    chosen, costs = CASES[name], Costs(model.config, getattr(torch, dtype).itemsize)
    cost = chosen.cost(costs)
    return {
        "seconds": timed(chosen.prepare(model), device, seconds),
        "peak": peak_bytes(device) - before,
        "loaded": loaded - before,
        "needed": chosen.memory(costs) if chosen.memory else None,
        "flops": cost.flops,
        "bytes": cost.bytes,
    }


def peer(name: str, seconds: float) -> dict:
    """Seconds of every call of a model that draws token by token."""
    from .peers import PEERS
    from .sizes import config_of

    return {"seconds": timed(PEERS[name][1](config_of("medium")), "cpu", seconds)}


def host(name: str) -> dict:
    """Seconds of something around the model, and of the least that it stands on."""
    from .host import HOST

    taken, least = HOST[name][2]()
    return {"seconds": [taken], "floor": least}


def timed(work, device: str, seconds: float) -> list[float]:
    """Seconds of each call, after one to warm up: three or more, or one where that takes longer than `seconds` altogether."""
    from .floors import synchronize

    times, spent = [], 0.0
    while not times or spent < seconds or (len(times) <= 3 and spent < 3 * seconds):
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
        spent += times[-1]
    return times[1:] or times


def peak_bytes(device: str) -> int:
    """Most memory held so far: by tensors on a GPU, by the process elsewhere."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
