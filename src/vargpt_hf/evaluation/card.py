"""Metrics of a report in the form that a model card takes them: Hugging Face's `model-index`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from ..inference.prompts import model_fingerprint

_HEADLINES: dict[str, tuple[str, ...]] = {  # of suites with many metrics
    "emoji": (
        "seen: both",
        "seen: both, of the ceiling",
        "seen, other wordings: both",
        "kept out: concept",
        "kept out: both",
        "kept out: both, top 5",
        "scenes of two: all concepts",
        "not named: concept",
        "shapes: shape and colour",
        "shapes, kept out: shape and colour",
        "digits: digit",
        "answers",
        "answers, other wordings",
        "answers: name",
        "answers: yes or no",
    ),
}


def headline(report: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the metrics of a report that say most; of a suite with few, all of them."""
    return _HEADLINES.get(report["suite"]) or tuple(report["metrics"])


def eval_results(report: Mapping[str, Any], folder: str | Path | None = None) -> list[EvalResult]:
    """The metrics of a report, each with its interval and the number of its samples.

    Args:
        report: see `report.read_report`.
        folder: of the model that the card is of, which must be the one that was measured; None leaves that unchecked.

    Raises:
        ValueError: a report of another model.
    """
    model = report["model"]
    if folder is not None and model_fingerprint(folder) != model["fingerprint"]:
        raise ValueError(
            f"The report is of another model ({model['name']}, fingerprint {model['fingerprint']}) than {folder} "
            f"({model_fingerprint(folder)}): evaluate this one."
        )
    judge = "" if report["judge"] is None else f", judged by {report['judge']['name']}"
    made = f"{report['schema']} of {report['time']['started'][:10]} by vargpt-hf {report['code']['vargpt-hf']}{judge}"
    return [
        EvalResult(
            task_type="any-to-any",
            dataset_type=report["suite"],
            dataset_name=report["data"]["name"],
            dataset_revision=report["data"]["sha256"],
            metric_type="accuracy" if metric["unit"] == "share" else name.lower().replace(" ", "_"),
            metric_name=name,
            metric_value=round(metric["value"], 6),
            metric_args={"low": metric["low"], "high": metric["high"], "samples": metric["number"], "interval": metric["interval"]},
            source_name=made,
            source_url="https://github.com/vargpt-hf/vargpt-hf",
        )
        for name, metric in report["metrics"].items()
    ]


__all__ = ["eval_results", "headline"]
