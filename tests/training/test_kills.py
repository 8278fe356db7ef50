"""Runs that are killed again and again, and go on, give the weights of a run that nobody killed, to the last bit."""

import os
from pathlib import Path

import pytest
from micro import stage_file
from ready_processes import PIPE, STDOUT, run

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.thorough) for seed in range(1, 6))])
@pytest.mark.parametrize("streaming", [False, True], ids=["ahead", "streaming"])
def test_runs_killed_many_times_end_as_if_they_never_were(base, tmp_path, streaming, seed):
    """3 kills in 3, by SIGKILL at any moment, through more than one pass over the data."""
    model = VargptForConditionalGeneration.from_pretrained(base)
    model.config.visual_decoder_config.drop_path_rate = model.config.visual_decoder_config.condition_dropout = 0.2
    model.save_pretrained(tmp_path / "base")
    VargptProcessor.from_pretrained(base).save_pretrained(tmp_path / "base")
    folders = [tmp_path / name for name in ("straight", "killed")]
    for folder in folders:
        stage_file(folder, tmp_path / "base", streaming, max_steps=24, save_steps=1)
    command = [Path(__file__).with_name("killing.py"), *folders, "3", str(2 * seed + streaming)]
    done = run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=PIPE, stderr=STDOUT, timeout=1800)
    assert done.returncode == 0 and "survived 3 kills" in done.stdout, done.stdout
