"""The documented command for a folder of captioned images, with next to no data: it trains, and shows drawings before and after."""

import re
from pathlib import Path

import pytest
import ready_processes

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_a_folder_of_images_is_learnt_by_one_command(tmp_path):
    command = [EXAMPLES / "captioned_images.py", tmp_path, "--images", "8", "--epochs", "2", "--evaluate", "4"]
    result = ready_processes.run(command, vargpt_too=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert re.search(r"^trains +[\d,]+ of [\d,]+ parameters: visual_decoder", result.stdout, re.M)
    assert len(re.findall(r"^(before|after): [\d.]+% of 4 digits", result.stdout, re.M)) == 2
    assert {file.name for file in (tmp_path / "adapter" / "samples").iterdir()} == {"step-000000.png", "step-000002.png"}
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists() and (tmp_path / "adapter" / "training.png").exists()
