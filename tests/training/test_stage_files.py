"""Files of stages: found by path and by name, and refused in one line where they are wrong."""

import os
from pathlib import Path

import pytest
from micro import write_config
from ready_processes import ReadyProcess

from vargpt_hf.training.script import parse, train
from vargpt_hf.training.stage_files import find_stage, only_writer, read_stage, shipped_stages


def test_stages_of_the_package_are_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {"lora", "tiny/pretrain", "tiny/stage3", "paper/stage1"} <= set(shipped_stages())
    for name in ("lora", "lora.yaml", "examples/lora.yaml", Path("examples/lora.yaml")):
        assert read_stage(find_stage(name))["lora_preset"] == "draw"
    Path("lora").write_text("stage: mine")
    assert read_stage(find_stage("lora")) == {"stage": "mine"}  # what lies there comes first
    with pytest.raises(
        ValueError, match="There is no file loro: .* comes with the package: any_vlm/both_ways, .*, lora, paper/stage1, .*, tiny/stage3"
    ):
        find_stage("loro")
    with pytest.raises(ValueError, match="is a folder"):
        find_stage(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2", r"line 2: this is no YAML"),
        ("a: 1\nb: 1\na: 2", r"line 3: this is no YAML: the key `a` stands there twice"),
        ("train_data:\n- {path: a, path: b}", "the key `path` stands there twice"),
        ("- 1", "must hold `key: value` lines"),
        ("", "must hold `key: value` lines"),
        ("1: 2", "must hold `key: value` lines"),
        ("a: !!python/object:os.system x", "this is no YAML"),
        ("a: \0", "is no YAML file"),
        (b"\xff\xfe\x00", "is no YAML file"),
    ],
)
def test_what_is_no_stage_file_is_refused(tmp_path, text, message):
    file = tmp_path / "stage.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as raised:
        parse(file)
    assert type(raised.value) is ValueError and str(file) in str(raised.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"learning_rat": 1}, r"unknown key `learning_rat` \(did you mean `learning_rate`\?\)"),
        ({"zzzz": 1, "output_dirr": 1}, r"unknown keys `zzzz`, `output_dirr` \(did you mean `output_dir`\?\)"),
        ({"learning_rate": "abc"}, "invalid float value: 'abc'"),
        ({"learning_rate": -1}, "`learning_rate` must be a number from 0 on"),
        ({"per_device_train_batch_size": 0}, "`per_device_train_batch_size` must be at least 1"),
        ({"max_steps": [1]}, r"`max_steps` is \[1\]; it must be a whole number"),
        ({"max_steps": 1.5}, "`max_steps` is 1.5; it must be a whole number"),
        ({"max_steps": True}, "`max_steps` is True; it must be a whole number"),
        ({"seed": None}, "`seed` is None; it must be a whole number"),
        ({"prompt_dropout": [1]}, r"`prompt_dropout` is \[1\]; it must be a number\."),
        ({"save_strategy": False}, "`save_strategy` is False; .* put it in quotes"),
        ({"train_modules": 3}, "`train_modules` is 3; it must be a list"),
        ({"train_data": 3}, "`train_data` is 3; it must be text or a list"),
        ({"output_dir": ["a"]}, "`output_dir` is .*; it must be text"),
        ({"eval_strategy": "sometimes"}, "sometimes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_no_setting_takes_is_refused(base, tmp_path, keys, message):
    with pytest.raises(ValueError, match=message):
        parse(write_config(tmp_path, base, **keys))


def test_what_no_option_takes_is_refused(base, tmp_path):
    file = write_config(tmp_path, base)
    with pytest.raises(ValueError, match=r"command line: unknown key `learn_rate` \(did you mean `learning_rate`\?\)"):
        parse(file, ["--learn_rate", "1"])
    with pytest.raises(ValueError, match="command line: more belongs to no --key"):
        parse(file, ["more"])
    with pytest.raises(ValueError, match="expected one argument"):
        parse(file, ["--max_steps"])


def test_a_number_without_its_point_is_a_number(base, tmp_path):
    """YAML reads 1e-3 as text; it is parsed as on a command line."""
    file = write_config(tmp_path, base)
    file.write_text(file.read_text() + "\nlearning_rate: 1e-3\nwarmup_steps: 1\n")
    assert parse(file)[1].learning_rate == 1e-3


def test_a_second_run_into_a_folder_is_refused(base, tmp_path):
    file = write_config(tmp_path, base, max_steps=1, save_strategy="no")
    with only_writer(tmp_path / "out"), pytest.raises(OSError, match="Another run trains into .*out: .*--output_dir"):
        train(file)
    train(file)
    assert not list((tmp_path / "out").glob(".*"))


def test_a_killed_run_holds_its_folder_no_more(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "program.py").write_text(f"""
import os, signal
from vargpt_hf.training.stage_files import only_writer
with only_writer({str(folder)!r}):
    os.kill(os.getpid(), signal.SIGKILL)
""")
    assert ReadyProcess([tmp_path / "program.py"]).wait() == -9
    assert os.listdir(folder)  # what held it is there
    with only_writer(folder):
        pass
    assert not os.listdir(folder)
