"""The example that teaches a new look, with next to no data: it trains, saves, and draws the same with a fresh model."""

from pathlib import Path

import pytest
import ready_processes
from safetensors.torch import load_file

SCRIPT = Path(__file__).parents[2] / "examples" / "lora_digits.py"


@pytest.mark.slow
def test_it_runs(tmp_path):
    command = [SCRIPT, tmp_path / "out", "--image", tmp_path / "looks.png", "--rows", "32", "--evaluate", "8"]
    result = ready_processes.run(command)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("slanted: ") == 4 and "upright: 100.0% of 8" in result.stdout and "shapes: 100.0% of 8" in result.stdout
    names = list(load_file(tmp_path / "out" / "adapter_model.safetensors"))
    assert names and all(".visual_decoder." in name or ".projector_to_" in name for name in names)
    assert (tmp_path / "looks.png").stat().st_size
