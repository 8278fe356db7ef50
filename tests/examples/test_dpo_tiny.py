"""The example of preference tuning, with next to no data: it makes pairs of its own drawings, trains, measures other prompts, and saves."""

import json
from pathlib import Path

import pytest
import ready_processes
from safetensors.torch import load_file

SCRIPT = Path(__file__).parents[2] / "examples" / "dpo_tiny.py"


@pytest.mark.slow
def test_it_runs(tmp_path):
    command = [SCRIPT, tmp_path / "out", "--image", tmp_path / "looks.png", "--prompts", "32", "--evaluate", "20"]
    result = ready_processes.run(command)
    assert result.returncode == 0, result.stderr[-3000:]
    assert int(result.stdout.split(" pairs of")[0].split()[-1]) > 4
    figures = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert set(figures) == {"draw_digit", "draw"}
    for found in figures.values():
        changed = (found["only after"] - found["only before"]) / found["drawings"]
        assert found["drawings"] == 20 and found["right before"] >= 0.7
        assert found["right after"] == pytest.approx(found["right before"] + changed)
    assert figures["draw_digit"]["spread after"] > 10
    names = list(load_file(tmp_path / "out" / "adapter_model.safetensors"))
    assert names and all(".visual_decoder." in name or ".projector_to_" in name for name in names)
    assert (tmp_path / "looks.png").stat().st_size
