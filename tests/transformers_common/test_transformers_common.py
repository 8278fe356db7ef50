"""Transformers' common tests on our classes: none fails, and what is skipped is in docs/transformers_common.md with its reason."""

import re
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from harness import Results, run_suite

SAME_SKIPS = {"VargptInfinityModelTest": "VargptModelTest", "VargptBSQModelTest": "VargptVQModelTest"}  # the same tests on other parts
PARTS = ("VargptModelTest", "VargptInfinityModelTest", "not (VargptModelTest or VargptInfinityModelTest)")  # of about the same length
PAGE = Path(__file__).parents[2] / "docs" / "transformers_common.md"


def table(heading: str) -> list[list[str]]:
    """Rows of the table under a heading of the page, without its head."""
    section = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")]
    return rows[2:]


def _of_the_same(name: str) -> str:
    """The test of a class in the name of the one whose skips it shares."""
    class_name, _, test = name.partition(".")
    return f"{SAME_SKIPS.get(class_name, class_name)}.{test}"


@pytest.fixture(scope="module")
def results_of():
    """Results of a part of the suite, which runs when it is first asked for."""
    return cache(partial(run_suite, "vargpt"))


@pytest.fixture(scope="module")
def results(results_of):
    parts = [results_of(part) for part in PARTS]
    passed = [name for part in parts for name in part.passed]
    return Results(passed, *({k: v for part in parts for k, v in getattr(part, kind).items()} for kind in ("failed", "skipped")))


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_nothing_fails(results_of, part):
    results = results_of(part)
    assert results.passed
    report = "\n\n".join(f"{name}\n{message[-2000:]}" for name, message in results.failed.items())
    assert not results.failed, f"{len(results.failed)} of Transformers' common tests fail:\n{report}"


@pytest.mark.slow
def test_the_page_lists_every_skip(results):
    """Both ways: no skip without a row, and (where no accelerator lifts any) no row without a skip."""
    patterns = [re.sub("`", "", row[0]) for row in table("Skipped tests")]
    skipped = {name: {name, _of_the_same(name)} for name in results.skipped}
    unlisted = {name: results.skipped[name] for name, names in skipped.items() if not any(fnmatch(one, p) for one in names for p in patterns)}
    assert not unlisted, f"skipped, but not in {PAGE.name}: {unlisted}"
    idle = [pattern for pattern in patterns if not any(fnmatch(one, pattern) for names in skipped.values() for one in names)]
    assert torch.cuda.is_available() or not idle, f"rows of {PAGE.name} that match no skipped test: {idle}"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the page tells the counts of a machine without accelerator")
def test_the_page_tells_the_counts(results):
    for class_name, passed, skipped, *_ in table("Counts"):
        assert results.counts(class_name.strip("`")) == (int(passed), 0, int(skipped)), class_name
