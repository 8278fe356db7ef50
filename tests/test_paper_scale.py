"""docs/paper_scale.md says what the code says."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("paper_scale", ROOT / "benchmarks" / "paper_scale.py")
paper_scale = importlib.util.module_from_spec(spec)
spec.loader.exec_module(paper_scale)


def test_the_page_is_what_the_code_writes():
    page = paper_scale.PAGE.read_text(encoding="utf-8")
    assert paper_scale.render(page) == page, "python benchmarks/paper_scale.py --write"


def test_a_stale_number_is_written_anew():
    page = paper_scale.PAGE.read_text(encoding="utf-8")
    assert "6,759,919,616" in page
    assert paper_scale.render(page.replace("6,759,919,616", "7,000,000,000")) == page


def test_a_page_without_a_place_for_a_table_is_refused():
    with pytest.raises(ValueError, match="<!-- parameters -->"):
        paper_scale.render("")
