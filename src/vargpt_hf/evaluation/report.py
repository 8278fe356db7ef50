"""Reports: one JSON file that says how every number was made, and one readable page of the same.

The JSON holds, beside "schema", what the functions of `provenance` and a suite's `SuiteResult` give; docs/evaluation.md lists its keys. Two
runs of the same on one machine differ in "time" alone.
"""

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..restartable import write_whole
from . import provenance
from .intervals import CONFIDENCE
from .suites import SuiteResult

SCHEMA = "vargpt-evaluation/1"
REPORT, PAGE, IMAGES = "report.json", "report.md", "images"
_KEYS = {
    "schema": str,
    "suite": str,
    "model": dict,
    "code": dict,
    "packages": dict,
    "hardware": dict,
    "prompts": dict,
    "generate": dict,
    "data": dict,
    "seeds": dict,
    "settings": dict,
    "judge": (dict, type(None)),
    "notes": list,
    "confidence": float,
    "metrics": dict,
    "samples": list,
    "examples": list,
    "tables": dict,
    "time": dict,
}


def make_report(
    suite: str,
    result: SuiteResult,
    *,
    model: Mapping[str, Any],
    prompts: Mapping[str, Any],
    generate: Mapping[str, Any],
    device: Any,
    started: datetime,
) -> dict[str, Any]:
    """A report as JSON can hold it.

    Args:
        suite: its name.
        result: what it found.
        model, prompts, generate: see `provenance`.
        device: that computed.
        started: when, with its time zone.
    """
    now = datetime.now(timezone.utc)
    report = {
        "schema": SCHEMA,
        "suite": suite,
        "model": dict(model),
        "code": provenance.of_code(),
        "packages": provenance.of_packages(),
        "hardware": provenance.of_hardware(device),
        "prompts": dict(prompts),
        "generate": dict(generate),
        "data": dict(result.data),
        "seeds": dict(result.seeds),
        "settings": dict(result.settings),
        "judge": None if result.judge is None else dict(result.judge),
        "notes": list(result.notes),
        "confidence": CONFIDENCE,
        "metrics": {name: estimate.to_dict() for name, estimate in result.metrics.items()},
        "samples": [dict(sample) for sample in result.samples],
        "examples": [{"file": f"{IMAGES}/{example.name}.png", "caption": example.caption} for example in result.examples],
        "tables": {name: [list(row) for row in rows] for name, rows in result.tables.items()},
        "time": {"started": started.isoformat(timespec="seconds"), "seconds": round((now - started).total_seconds(), 1)},
    }
    return json.loads(json.dumps(report, sort_keys=True))  # as it will be read again


def write_report(folder: str | Path, report: Mapping[str, Any], result: SuiteResult) -> None:
    """Writes report.json, report.md and the example images into a folder, which may be there.

    Raises:
        OSError: what cannot be written.
    """
    folder = Path(folder)
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    for example in result.examples:
        write_whole(folder / IMAGES / f"{example.name}.png", lambda path, image=example.image: image.save(path, format="PNG"))
    write_whole(folder / PAGE, lambda path: path.write_text(to_page(report), encoding="utf-8"))
    text = json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    write_whole(folder / REPORT, lambda path: path.write_text(text, encoding="utf-8"))


def read_report(file: str | Path) -> dict[str, Any]:
    """A report of its file, or of the folder that holds it.

    Raises:
        ValueError: a file that is no report, or one of another schema.
        OSError: a file that cannot be read.
    """
    file = Path(file)
    file = file / REPORT if file.is_dir() else file
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON file: give the report.json that `vargpt evaluate -o` wrote.") from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        found = report.get("schema") if isinstance(report, dict) else type(report).__name__
        raise ValueError(f"{file} is no report of the schema {SCHEMA!r}, but {found!r}: give the report.json that `vargpt evaluate -o` wrote.")
    if broken := [name for name, kind in _KEYS.items() if not isinstance(report.get(name), kind)]:
        raise ValueError(f"{file} is a broken report: {', '.join(broken)} is missing or of another type.")
    for name, metric in report["metrics"].items():
        if not isinstance(metric, dict) or not isinstance(metric.get("value"), (int, float)):
            raise ValueError(f"{file} is a broken report: the metric {name!r} has no value.")
    return report


def to_page(report: Mapping[str, Any]) -> str:
    """The readable page, in Markdown."""
    model, code = report["model"], report["code"]
    lines = [f"# {report['suite']}: {model['name']}", ""]
    lines += [f"> {note}" for note in report["notes"]] + ([""] if report["notes"] else [])
    rows = [(name, shown(metric), interval(metric), str(metric["number"])) for name, metric in report["metrics"].items()]
    lines += table(["metric", "value", f"{report['confidence']:.0%} interval", "samples"], rows)
    for heading, cells in report["tables"].items():
        lines += ["", f"## {heading}", "", *table(cells[0], cells[1:])]
    if report["examples"]:
        lines += ["", "## Examples", ""]
        lines += [f"![{example['caption']}]({example['file']}) *{example['caption']}*\n" for example in report["examples"]]
    version = f"vargpt-hf {code['vargpt-hf']}, source {code['source_sha256']}" + (f", commit {code['commit']}" if code["commit"] else "")
    made = {
        "model": _said(model),
        "data": _said(report["data"]),
        "judge": _said(report["judge"]) if report["judge"] else "",
        "seeds": _said(report["seeds"]),
        "settings": _said(report["settings"]),
        "generate": _said(report["generate"]),
        "prompts": _said(report["prompts"]),
        "code": version,
        "packages": _said(report["packages"]),
        "hardware": _said(report["hardware"]),
        "time": f"{report['time']['seconds']} s, from {report['time']['started']}",
    }
    lines += ["", "## How it was made", "", *table(["what", "value"], [(what, value) for what, value in made.items() if value])]
    hows = sorted({(metric["interval"], metric["library"]) for metric in report["metrics"].values()})
    lines += ["", "Intervals: " + "; ".join(f"{how}" + (f" ({by})" if by else "") for how, by in hows) + "."]
    return "\n".join(lines) + "\n"


def shown(metric: Mapping[str, Any]) -> str:
    """A metric's value as a page shows it."""
    return _number(metric["value"], metric["unit"]) + (" dB" if metric["unit"] == "dB" else "")


def interval(metric: Mapping[str, Any]) -> str:
    """A metric's interval as a page shows it; empty where there is none."""
    if metric["low"] is None:
        return ""
    return f"{_number(metric['low'], metric['unit'])} to {_number(metric['high'], metric['unit'])}"


def _number(value: float, unit: str) -> str:
    return f"{value:.1%}" if unit == "share" else f"{value:.4g}"


def table(header: list[str], rows: list) -> list[str]:
    """Lines of a Markdown table; what stands in a cell cannot end it."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in [header, ["---"] * len(header), *rows]]
    return [f"| {' | '.join(row)} |" for row in cells]


def _said(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value}" for name, value in values.items()
    )


__all__ = ["PAGE", "REPORT", "SCHEMA", "make_report", "read_report", "to_page", "write_report"]
