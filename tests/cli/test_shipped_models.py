"""Models that come with the package: their short names in commands and training files, and `vargpt models`."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from vargpt_hf import shipped
from vargpt_hf.cli import app
from vargpt_hf.cli.options import MODEL_VARIABLE, check_model, model_folder
from vargpt_hf.cli.serve import short_name
from vargpt_hf.evaluation.report import read_report
from vargpt_hf.shipped import EMOJI_NAME, KNOWN, folder_of, shipped_models
from vargpt_hf.tiny import TINY_FOLDER, TINY_NAME


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture
def absent(monkeypatch, tmp_path):
    """As in a version without the weights of the second model."""
    monkeypatch.setitem(shipped.KNOWN, EMOJI_NAME, replace(KNOWN[EMOJI_NAME], folder=tmp_path / "absent"))


@pytest.fixture
def present(monkeypatch, tmp_path):
    """As in a version with them; vargpt-tiny stands in."""
    shutil.copytree(TINY_FOLDER, folder := tmp_path / "weights")
    monkeypatch.setitem(shipped.KNOWN, EMOJI_NAME, replace(KNOWN[EMOJI_NAME], folder=folder))
    return str(folder)


def test_what_is_listed_is_there(monkeypatch):
    monkeypatch.delenv(MODEL_VARIABLE)
    lines = run("models").output.splitlines()
    assert re.split(r"\s{2,}", lines[0]) == ["name", "weights", "pixels", "draws", "license"]
    assert lines[1].startswith(EMOJI_NAME) and lines[1].endswith("(default)")
    tiny = re.split(r"\s{2,}", lines[2])
    size = (TINY_FOLDER / "model.safetensors").stat().st_size / 1e6
    assert tiny == [TINY_NAME, f"{size:.1f} MB", "48×48", "colored shapes, handwritten digits", "Apache-2.0"]
    assert [line.split()[0] for line in lines[1:]] == [model.name for model in shipped_models()]
    assert all(model.weights.is_file() for model in shipped_models())


def test_what_is_absent_is_neither_listed_nor_loaded(absent):
    assert EMOJI_NAME not in run("models").output
    message = f"The weights of {EMOJI_NAME} do not come with this version of vargpt-hf, but those of {TINY_NAME}."
    with pytest.raises(ValueError, match=re.escape(message)):  # also where nobody has named it
        folder_of(None)
    stage = ["train", "lora", "--model_name_or_path", EMOJI_NAME, "--train_data", TINY_FOLDER, "--output_dir", "out"]
    for arguments in (["draw", "a cat", "--model", EMOJI_NAME], ["info", "-m", EMOJI_NAME], stage):
        with pytest.raises(ValueError, match=re.escape(message)):
            run(*arguments)


def test_what_is_present_is_drawn_with_by_its_name(present, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"{EMOJI_NAME}  11.2 MB" in run("models").output
    assert run("draw", "a red circle", "--model", EMOJI_NAME).exit_code == 0
    assert Image.open("out.png").size == (48, 48)
    assert check_model(EMOJI_NAME, "auto") == (present, "float32") and model_folder(EMOJI_NAME) == (EMOJI_NAME, present)
    assert short_name(EMOJI_NAME) == EMOJI_NAME and short_name(None) == EMOJI_NAME == model_folder(None)[0]


def test_a_variable_names_the_model_of_commands_that_name_none(present, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(MODEL_VARIABLE, EMOJI_NAME)
    (default,) = [line for line in run("models").output.splitlines() if line.endswith("(default)")]
    assert default.startswith(EMOJI_NAME) and run("draw", "a red circle").exit_code == 0
    monkeypatch.setenv(MODEL_VARIABLE, "./nothing")
    with pytest.raises(ValueError, match="'./nothing', which is not a folder"):
        run("info")
    assert run("info", "--model", TINY_NAME).exit_code == 0 == run("evaluate", TINY_FOLDER, "-n", 1).exit_code
    with pytest.raises(ValueError, match="Give the model once"):
        run("evaluate", TINY_FOLDER, "--model", TINY_NAME)


def test_the_suite_of_shapes_and_digits_is_vargpt_tiny_s(tmp_path, monkeypatch):
    monkeypatch.delenv(MODEL_VARIABLE)
    assert run("evaluate", "-n", 1, "-o", tmp_path / "report").exit_code == 0
    assert read_report(tmp_path / "report")["model"]["name"] == TINY_NAME


def test_training_takes_the_name(present, tmp_path, monkeypatch):
    from vargpt_hf.training.image_tokenizer.loading import load_image_tokenizer
    from vargpt_hf.training.script import parse

    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    _, _, model = parse("lora", ["--model_name_or_path", EMOJI_NAME, "--train_data", "data", "--output_dir", "out"])
    assert model.model_name_or_path == present
    assert load_image_tokenizer(EMOJI_NAME).fingerprint() == load_image_tokenizer(TINY_FOLDER).fingerprint()


@pytest.mark.parametrize("given", [["--model_name_or_path", TINY_NAME], [f"--model_name_or_path={TINY_NAME}"]])
def test_a_file_s_model_that_is_absent_may_be_replaced(absent, tmp_path, given):
    stage = tmp_path / "stage.yaml"
    stage.write_text(f"stage: stage1\nmodel_name_or_path: {EMOJI_NAME}\ntrain_data: nowhere\noutput_dir: {tmp_path / 'out'}\n")
    with pytest.raises(ValueError, match=f"The weights of {EMOJI_NAME} do not come"):
        run("train", stage)
    with pytest.raises(ValueError, match="nowhere"):  # which is looked at next
        run("train", stage, *given)


def test_a_folder_of_that_name_is_meant_first(absent, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(EMOJI_NAME).mkdir()
    assert folder_of(EMOJI_NAME) == EMOJI_NAME and folder_of("me/mine") == "me/mine" and folder_of(TINY_NAME) == str(TINY_FOLDER)


def test_images_of_several_shapes_are_described(tmp_path):
    config = '{"image_tokenizer_config": {"schedules": [[[1, 1], [4, 6]], [1, 2]], "channel_multipliers": [1, 1, 2, 2]}}'
    (tmp_path / "config.json").write_text(config)
    assert replace(KNOWN[EMOJI_NAME], folder=tmp_path).image_size == (32, 48)
