"""Runs that are killed or go wrong: what is left on disk, what is said, and that going on gives the same weights to the last bit."""

import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from micro import ROWS, stage_file
from safetensors.torch import load_file

from vargpt_hf.training.data import ROW_FEATURES
from vargpt_hf.training.guards import TrainingStopped, checkpoints_of, is_whole, last_complete_checkpoint
from vargpt_hf.training.script import train


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """The output folder of a run with checkpoints 2 and 4."""
    folder = tmp_path_factory.mktemp("finished")
    train(stage_file(folder, base, max_steps=4, save_steps=2))
    return folder / "out"


@pytest.mark.parametrize("cut", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
def test_a_checkpoint_cut_short_is_never_gone_on_from(finished, tmp_path, name, cut):
    shutil.copytree(finished, tmp_path / "out")
    file = tmp_path / "out/checkpoint-4" / name
    os.truncate(file, int(cut * file.stat().st_size))
    assert last_complete_checkpoint(finished).endswith("checkpoint-4")
    assert last_complete_checkpoint(tmp_path / "out").endswith("checkpoint-2")


@pytest.mark.parametrize("name", ["model.safetensors", "trainer_state.json"])
def test_a_checkpoint_half_deleted_is_not_whole(finished, tmp_path, name):
    shutil.copytree(finished / "checkpoint-4", tmp_path / "checkpoint-4")
    assert is_whole(tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4" / name).unlink()
    assert not is_whole(tmp_path / "checkpoint-4") and last_complete_checkpoint(tmp_path) is None


def test_a_run_that_stops_early_is_the_first_part_of_a_whole_one(finished, tmp_path):
    """It ends where a whole one has its checkpoint, also when it is started once more; without the setting it comes to the same end."""
    shutil.copytree(finished.parent, tmp_path / "again")
    out, stage = tmp_path / "again/part", tmp_path / "again/stage.yaml"
    stopped = ["--output_dir", str(out), "--save_steps", "100", "--stop_at", "0.4"]  # of 4 steps, after 1.6
    for again in ([], ["--resume_from_checkpoint", "true"]):
        train(stage, [*stopped, *again])
        assert [folder.name for folder in checkpoints_of(out)] == ["checkpoint-2"]
        assert all(torch.equal(value, weights(finished / "checkpoint-2")[name]) for name, value in weights(out).items())
    train(stage, ["--output_dir", str(out), "--resume_from_checkpoint", "true"])
    assert all(torch.equal(value, weights(finished)[name]) for name, value in weights(out).items())


def test_a_run_that_resumes_counts_on(base, tmp_path):
    """Also what was trained on since the last log."""
    file = stage_file(tmp_path, base, max_steps=4, save_steps=2, logging_steps=4)
    counted = []
    for again in ([], ["--resume_from_checkpoint", "true"]):
        train(file, again)
        last = json.loads((tmp_path / "out/checkpoint-4/trainer_state.json").read_text())["log_history"][-1]
        counted.append({name: value for name, value in last.items() if name.startswith("rows_of_") or name == "num_tokens"})
        shutil.rmtree(tmp_path / "out/checkpoint-4")
    assert len(counted[0]) == 3 and sum(counted[0].values()) > counted[0]["num_tokens"] > 0
    assert counted[0] == counted[1]


def test_a_run_does_not_start_among_the_checkpoints_of_another(finished, tmp_path):
    """`save_total_limit` and resuming would take them for its own. What lies there stays."""
    shutil.copytree(finished.parent, tmp_path / "again")
    out = tmp_path / "again/out"
    wanted = weights(out)
    with pytest.raises(ValueError, match="out holds checkpoint-4 of an earlier run: continue that by --resume_from_checkpoint true"):
        train(tmp_path / "again/stage.yaml", ["--output_dir", str(out), "--max_steps", "2"])
    found = weights(out)
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())


@pytest.mark.parametrize("share", ["0", "-1", "1.1", "nan"])
def test_a_run_cannot_stop_before_its_first_step_or_after_its_last(finished, share):
    with pytest.raises(ValueError, match="`stop_at` must be a share of all steps above 0 and up to 1"):
        train(finished.parent / "stage.yaml", ["--stop_at", share])


def test_a_run_that_had_come_to_its_end_is_not_trained_further(finished, tmp_path):
    """A run killed between its last checkpoint and its last file, or simply started once more."""
    shutil.copytree(finished.parent, tmp_path / "again")
    out = tmp_path / "again/out"
    wanted = weights(out)
    (out / "model.safetensors").unlink()
    train(tmp_path / "again/stage.yaml", ["--output_dir", str(out), "--resume_from_checkpoint", "true"])
    found = weights(out)
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())
    assert [folder.name for folder in checkpoints_of(out)] == ["checkpoint-2", "checkpoint-4"]


def test_a_half_checkpoint_is_not_kept_in_place_of_whole_ones(base, tmp_path):
    """Where two checkpoints may stay, a half one with a higher number would count as the newest."""
    train(stage_file(tmp_path, base, max_steps=4, save_steps=2))
    half = tmp_path / "out/checkpoint-5"
    half.mkdir()
    (half / "model.safetensors").write_bytes((tmp_path / "out/checkpoint-4/model.safetensors").read_bytes()[:1000])
    train(stage_file(tmp_path, base, max_steps=8, save_steps=2), ["--resume_from_checkpoint", "true"])
    assert [folder.name for folder in checkpoints_of(tmp_path / "out")] == ["checkpoint-6", "checkpoint-8"]


BLOWS_UP = {"optim": "sgd", "learning_rate": 1e30, "max_grad_norm": 0.0, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2}


def test_a_loss_that_is_not_finite_stops_the_run(base, tmp_path):
    keys = {**BLOWS_UP, "max_steps": 8, "save_steps": 1, "logging_steps": 1}
    with pytest.raises(TrainingStopped, match=r"not finite (at|after) step \d.*learning rate.*last complete checkpoint is .*-\d \(step"):
        train(stage_file(tmp_path, base, **keys))
    for folder in checkpoints_of(tmp_path / "out"):
        assert all(value.isfinite().all() for value in weights(folder).values())


def test_weights_that_are_not_finite_are_not_saved(base, tmp_path):
    """Also where nothing was logged yet, by checkpoints and at the end."""
    for strategy in ("steps", "no"):
        keys = {**BLOWS_UP, "max_steps": 6, "save_steps": 6, "logging_steps": 100, "save_strategy": strategy}
        with pytest.raises(TrainingStopped, match="not finite (at|after) step 6.*There is no complete checkpoint in .*: start the run again"):
            train(stage_file(tmp_path, base, **keys))
        assert not list((tmp_path / "out").rglob("*.safetensors"))


@pytest.mark.parametrize("room", [0.3, 1.05], ids=["weights", "optimizer"])
def test_a_full_disk_stops_the_run_and_leaves_no_half_checkpoint(base, tmp_path, room):
    """Files may become as long as a share of the weights': no room for them, or for the optimizer's state, which is longer here."""
    keys = {"save_steps": 2, "train_modules": ["model", "lm_head"]}
    train(stage_file(tmp_path, base, max_steps=2, **keys))
    limit = int(room * (tmp_path / "out/model.safetensors").stat().st_size)
    assert limit < (tmp_path / "out/checkpoint-2/optimizer.pt").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = stage_file(tmp_path, base, max_steps=4, **keys)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(TrainingStopped, match=r"(?s)checkpoint of step 4 could not be written.*GiB are free.*checkpoint-2 \(step 2\)"):
            train(file, ["--resume_from_checkpoint", "true"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [folder.name for folder in checkpoints_of(tmp_path / "out")] == ["checkpoint-2"]
    assert is_whole(tmp_path / "out/checkpoint-2")


@pytest.mark.parametrize("streaming", [False, True], ids=["ahead", "streaming"])
def test_a_row_that_cannot_be_read_is_named(base, tmp_path, streaming):
    keys = {"save_steps": 1, "max_steps": 8, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "logging_steps": 1}
    file = stage_file(tmp_path, base, streaming, train_data=str(tmp_path / "broken"), train_sampling_strategy="sequential", **keys)
    rows = [dict(entry) for entry in ROWS]
    rows[4]["images"] = [{"bytes": b"no image", "path": None}]
    Dataset.from_list(rows, features=ROW_FEATURES).save_to_disk(tmp_path / "broken")
    where = "" if streaming else "Row 4 cannot be read: "
    with pytest.raises(TrainingStopped, match=rf"(?s)No batch could be made for step \d: {where}.*cannot identify image.*checkpoint-\d"):
        train(file)


def test_a_row_of_a_mixture_is_named_with_its_source(base, tmp_path):
    file = stage_file(tmp_path, base, max_steps=20, save_steps=100)
    rows = [{**entry, "images": [{"bytes": b"no image", "path": None}]} if entry["images"] else entry for entry in ROWS]
    shutil.rmtree(tmp_path / "rows")
    Dataset.from_list(rows, features=ROW_FEATURES).save_to_disk(tmp_path / "rows")
    with pytest.raises(TrainingStopped, match=r"Row \d+ of the mixture, which comes from rows, cannot be read: .*cannot identify image"):
        train(file)
