"""The example that draws on Ray, on a Ray of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("ray", reason="an extra of its own, whose start alone takes longer than most of these tests")
SCRIPT = Path(__file__).parents[2] / "examples" / "ray_draw.py"


@pytest.mark.slow
def test_it_draws_what_is_missing_and_lists_what_is_broken(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n\na blue square\nthree orange squares\n")
    options = ["--model", "vargpt-tiny", "--workers", "1", "--batch-size", "2"]
    command = [sys.executable, SCRIPT, tmp_path / "prompts.txt", tmp_path / "out", *options]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and "Drew 3 images" in result.stdout, result.stderr[-3000:]
    results = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [row["file"] for row in results] == ["000000.png", None, "000002.png", "000003.png"]
    assert [row["error"] for row in results] == [None, "the prompt is empty", None, None]
    assert all(Image.open(tmp_path / "out" / row["file"]).size == (48, 48) for row in results if row["file"])
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and "Drew" not in again.stdout, again.stderr[-3000:]
