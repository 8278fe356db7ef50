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


QUIET = 0.1  # a measurement counts as undisturbed while others take less of the machine's cores


def measured(threads: int, tries: int = 1, **what) -> dict:
    """Result of [`measure`] in a new process with so many threads; where others take the machine's cores, the quietest of some tries.

    Raises:
        RuntimeError: that process failed.
    """
    results = []
    while len(results) < tries and not any(result["elsewhere"] < QUIET for result in results):
        results.append(_measured(threads, what))
    return min(results, key=lambda result: result["elsewhere"])


def _measured(threads: int, what: dict) -> dict:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**ALLOCATOR, **os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-m", "benchmarks.measure", json.dumps(what)]
    before, own, start = busy_seconds(), child_seconds(), time.perf_counter()
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"Measuring {what} failed:\n{result.stderr}")
    others = busy_seconds() - before - (child_seconds() - own)
    elsewhere = max(others, 0.0) / (os.cpu_count() * (time.perf_counter() - start))
    return {**json.loads(result.stdout.splitlines()[-1]), "elsewhere": elsewhere}


def busy_seconds() -> float:
    """Seconds for which all cores together have worked since the machine started, or were lent to other machines; 0 where unknown."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, *interrupts = map(int, stat.read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def child_seconds() -> float:
    """Seconds of processors that this process's children have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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

    before = held_bytes(device, peak=False)
    model = model_of(size, getattr(torch, dtype), device)
    loaded = held_bytes(device, peak=False)
    chosen, costs = CASES[name], Costs(model.config, getattr(torch, dtype).itemsize)
    cost = chosen.cost(costs)
    return {
        "seconds": timed(chosen.prepare(model), device, seconds),
        "peak": held_bytes(device) - before,
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
    """Seconds of each call, after two to warm up: three or more, or one where they take longer than `seconds` altogether.

    Two, since a training step still pays for new memory in its second call, when optimizer states take what the first had freed.
    """
    from .floors import synchronize

    def call() -> float:
        start = time.perf_counter()
        work()
        synchronize(device)
        return time.perf_counter() - start

    for _ in range(2):
        call()
    times = [call()]
    while sum(times) < seconds or (len(times) < 3 and sum(times) < 3 * seconds):
        times.append(call())
    return times


def held_bytes(device: str, peak: bool = True) -> int:
    """Memory held now, or the most so far: by tensors on a GPU, by the process elsewhere."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # the peak of getrusage would be that of the process that started this one, where it is higher
        name = "VmHWM:" if peak else "VmRSS:"
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name)) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
