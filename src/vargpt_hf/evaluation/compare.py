"""Two reports of the same data, side by side: paired differences, and whether chance explains them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .intervals import Difference, paired_difference
from .report import interval, shown, table

_MEASURED_BY = ("network", "classes", "neighbors")  # settings of suites that their numbers depend on


@dataclass(frozen=True)
class Compared:
    """One metric of two reports.

    Attributes:
        first, second: the metric, as in the reports.
        difference: of the samples that both have; None of a metric that belongs to a whole set, such as FID.
    """

    first: Mapping[str, Any]
    second: Mapping[str, Any]
    difference: Difference | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def compare_reports(first: Mapping[str, Any], second: Mapping[str, Any], seed: int = 0) -> dict[str, Compared]:
    """The metrics that two reports have in common, by name.

    Args:
        first, second: see `report.read_report`.
        seed: of bootstrap and permutations.

    Raises:
        ValueError: reports of other suites, other data, other judges or networks, which cannot be compared.
    """
    told = {name: (first[name], second[name]) for name in ("suite", "data", "judge")}
    measured = {name: tuple(report.get("settings", {}).get(name) for report in (first, second)) for name in _MEASURED_BY}
    told |= {name: pair for name, pair in measured.items() if None not in pair}  # what one lacks, it has no metric of
    for name, (one, other) in told.items():
        if one != other:
            raise ValueError(
                f"These reports have another {name} ({one} and {other}), so that their numbers do not compare: evaluate both models alike."
            )
    values = [{sample["id"]: sample["metrics"] for sample in report["samples"]} for report in (first, second)]
    compared = {}
    for name in first["metrics"]:
        if name not in second["metrics"]:
            continue
        both = [key for key in values[0] if name in values[0][key] and name in values[1].get(key, {})]
        difference = None
        if both:
            difference = paired_difference(*([float(of_report[key][name]) for key in both] for of_report in values), seed=seed)
        compared[name] = Compared(first["metrics"][name], second["metrics"][name], difference)
    if not compared:
        raise ValueError("These reports have no metric in common.")
    return compared


def comparison_page(first: Mapping[str, Any], second: Mapping[str, Any], compared: Mapping[str, Compared]) -> str:
    """The comparison as a Markdown table."""
    names = [report["model"]["name"] for report in (first, second)]
    rows = []
    for name, one in compared.items():
        difference, low, high, p_value, test = "", "", "", "", "no values of single samples"
        if one.difference is not None:
            unit = one.first["unit"]
            fields = {"value": one.difference.value, "low": one.difference.low, "high": one.difference.high, "unit": unit}
            difference, low = shown(fields), interval(fields)
            p_value, test = f"{one.difference.p_value:.3g}", f"{one.difference.test}, {one.difference.number} pairs"
        rows.append((name, shown(one.first), shown(one.second), difference, low + high, p_value, test))
    header = ["metric", f"A: {names[0]}", f"B: {names[1]}", "B − A", "interval of it", "p", "test"]
    return "\n".join(table(header, rows)) + "\n"


__all__ = ["Compared", "compare_reports", "comparison_page"]
