"""A run of a suite, from its start to the report."""

import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .report import interval, make_report, shown, write_report
from .suites import SuiteResult


class Started:
    """A suite that began now.

    Args:
        suite: its name.
    """

    def __init__(self, suite: str):
        self.suite, self.started = suite, datetime.now(timezone.utc)

    def finish(self, result: SuiteResult, output: Path | None, **made: Any) -> dict[str, Any]:
        """Prints the metrics, and its notes to stderr; writes the report where a folder is given, and returns it.

        Args:
            made: model, prompts, generate and device, see `report.make_report`.
        """
        report = make_report(self.suite, result, started=self.started, **made)
        for name, metric in report["metrics"].items():
            print(f"{name:28}{shown(metric):>10}  {interval(metric)}".rstrip())
        for note in report["notes"]:
            print(note, file=sys.stderr)
        if output is not None:
            write_report(output, report, result)
        return report


__all__ = ["Started"]
