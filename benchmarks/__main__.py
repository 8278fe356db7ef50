"""Measures, prints tables, writes all figures as JSON: `python -m benchmarks`, from the root of the repository."""

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from .cases import CASES
from .host import HOST
from .measure import measured
from .peers import PEERS
from .report import tables
from .sizes import SIZES


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["medium"], help="models to measure (medium)")
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES), help="all by default")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="float32 and bfloat16")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="models that draw token by token, all by default")
    parser.add_argument("--host", nargs="*", choices=HOST, default=list(HOST), help="importing, loading, making inputs; all by default")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4, help="spent on each case, at least")
    parser.add_argument("--tries", type=int, default=3, help="of each measurement, while others take the machine's cores")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results.json")
    options = parser.parse_args(arguments)
    if options.device == "cpu" and any(size.startswith("paper") for size in options.sizes):
        parser.error("the paper's size needs a GPU: give --device cuda")
    results = run(options)
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    options.output.with_suffix(".partial.json").unlink(missing_ok=True)
    print(tables(results))


def told(measure: Callable[..., dict], done: list[dict], file: Path, **what) -> dict:
    """A measurement, told as soon as it is done and kept in a file, so that a run that is stopped has lost nothing but its tables."""
    result = measure(**what)
    done.append({"what": what, **result})
    file.write_text(json.dumps(done, indent=1) + "\n")
    seconds = f": {statistics.median(result['seconds']):.3g} s" if "seconds" in result else ""
    print(" ".join(str(value) for value in what.values()) + seconds, file=sys.stderr, flush=True)
    return result


def run(options: argparse.Namespace) -> dict:
    """All figures of a run. The machine's own are taken before and after, and the better ones count."""
    results = {"machine": machine(options.device), "threads": options.threads, "torch": torch.__version__, "floors": {}}
    measure = partial(told, partial(measured, options.threads, options.tries), [], options.output.with_suffix(".partial.json"))
    on_device = partial(measure, device=options.device)
    before = [on_device(kind="floors", dtype=dtype) for dtype in options.dtypes]
    results["cases"] = {
        size: {
            dtype: {name: on_device(kind="case", name=name, size=size, dtype=dtype, seconds=options.seconds) for name in options.cases}
            for dtype in options.dtypes
        }
        for size in options.sizes
    }
    results["peers"] = {name: measure(kind="peer", name=name, seconds=options.seconds) for name in options.peers}
    results["host"] = {name: measure(kind="host", name=name) for name in options.host}
    for dtype, first in zip(options.dtypes, before):
        second = on_device(kind="floors", dtype=dtype)
        results["floors"][dtype] = {
            kind: {name: max(value, second[kind][name]) for name, value in first[kind].items()} for kind in ("rates", "bandwidths")
        }
    return results


def machine(device: str) -> str:
    """The processor's name and cores, or the GPU's name."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
