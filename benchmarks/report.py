"""Figures to tables, as Markdown."""

import statistics

from .cases import CASES
from .costs import Cost
from .floors import floor_seconds
from .host import HOST
from .peers import PEERS

# What is asked of each case of a medium size: its share of the floor at least. Batches are judged by an image's price, memory by its least.
SHARES = {"draw-1": 0.55, "encode": 0.75, "decode": 0.75, "train": 0.65, "train-codes": 0.65}
BATCH_PRICE = 0.6  # of an image in a batch of 16, over one drawn alone
MEMORY = 1.3  # peak of drawing over weights and caches
HOST_SECONDS = {"import": 0.3, "draw": 6}


def best(results: dict, dtype: str) -> tuple[float, float]:
    """Best rate for a number format and best bandwidth of all that was measured."""
    return max(results["floors"][dtype]["rates"].values()), max(results["floors"][dtype]["bandwidths"].values())


def share(result: dict, rate: float, bandwidth: float) -> float:
    """The floor of a case over its median."""
    return floor_seconds(Cost(result["flops"], result["bytes"]), rate, bandwidth) / statistics.median(result["seconds"])


def tables(results: dict) -> str:
    """All tables of a run: what the machine can do, the cases of each size and number format, other models, the host's side."""
    parts = [_machine(results)]
    for size, by_dtype in results["cases"].items():
        for dtype, cases in by_dtype.items():
            parts.append(_cases(size, dtype, cases, *best(results, dtype)))
    if results["peers"]:
        parts.append(_peers(results))
    if results["host"]:
        parts.append(_host(results["host"]))
    return "\n\n".join(parts)


def _machine(results: dict) -> str:
    lines = [f"{results['machine']}, {results['threads']} threads, torch {results['torch']}", ""]
    lines += [f"| best of | {' | '.join(results['floors'])} |", "|---|" + "---|" * len(results["floors"])]
    names = dict.fromkeys(name for floors in results["floors"].values() for name in floors["rates"])
    for name in names:
        rates = [f"{floors['rates'].get(name, float('nan')) / 1e9:.0f} GFLOP/s" for floors in results["floors"].values()]
        lines.append(f"| {name} | {' | '.join(rates)} |")
    for name in dict.fromkeys(name for floors in results["floors"].values() for name in floors["bandwidths"]):
        speeds = [f"{floors['bandwidths'][name] / 1e9:.1f} GB/s" for floors in results["floors"].values()]
        lines.append(f"| memory, {name} | {' | '.join(speeds)} |")
    return "\n".join(lines)


def _cases(size: str, dtype: str, cases: dict, rate: float, bandwidth: float) -> str:
    asked, memory = (SHARES, f" (≤ {MEMORY})") if size.startswith("medium") else ({}, "")
    columns = ("case", "seconds", "each", "floor", "share", "target", "peak MiB", "weights and caches, MiB")
    lines = [f"**{size}, {dtype}**", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, result in cases.items():
        case, seconds, part = CASES[name], statistics.median(result["seconds"]), share(result, rate, bandwidth)
        target = f"≥ {asked[name]:.2f}" if name in asked else ""
        if name == "draw-16" and "draw-1" in cases:
            price = seconds / 16 / statistics.median(cases["draw-1"]["seconds"])
            target = f"each {price:.2f} of one alone{f' (≤ {BATCH_PRICE})' if asked else ''}"
        each = f"{seconds / case.units:.3g} s a {case.unit}" if case.units > 1 else ""
        needed = f"{result['needed'] / 2**20:.0f}, ×{result['peak'] / result['needed']:.2f}{memory}" if result["needed"] else ""
        figures = (f"{seconds:.3g}", each, f"{part * seconds:.3g}", f"{part:.2f}", target, f"{result['peak'] / 2**20:.0f}", needed)
        lines.append(f"| {case.title} | {' | '.join(figures)} |")
    disturbed = max(result["elsewhere"] for result in cases.values())
    return "\n".join([*lines, "", f"Others took up to {100 * disturbed:.0f} % of the machine's cores meanwhile."])


def _peers(results: dict) -> str:
    lines = ["**an image of 256 pixels, token by token (medium, float32)**", "", "| model | seconds | over ours |", "|---|---|---|"]
    ours = results["cases"].get("medium", {}).get("float32", {})
    for name, result in results["peers"].items():
        seconds, same = statistics.median(result["seconds"]), "draw-1-guided" if name == "janus" else "draw-1"
        ratio = f"{seconds / statistics.median(ours[same]['seconds']):.1f} × {CASES[same].title}" if same in ours else ""
        lines.append(f"| {PEERS[name][0]} | {seconds:.3g} | {ratio} |")
    return "\n".join(lines)


def _host(results: dict) -> str:
    lines = ["**around the model**", "", "| what | seconds | beside |", "|---|---|---|"]
    for name, result in results.items():
        title, floor, _ = HOST[name]
        target = f" (≤ {HOST_SECONDS[name]})" if name in HOST_SECONDS else ""
        lines.append(f"| {title} | {result['seconds'][0]:.3g}{target} | {floor}: {result['floor']:.3g} |")
    return "\n".join(lines)
