"""examples/lora_look.py with vargpt-tiny and next to no data: it trains, and judges before and after."""

import json
from pathlib import Path

import pytest
from PIL import Image

from vargpt_hf.emoji.judge import ThingJudge, pixel_features
from vargpt_hf.emoji.pictures import read_pictures
from vargpt_hf.emoji.vectors import with_vectors
from vargpt_hf.training.script import train

EXAMPLES = Path(__file__).parents[2] / "examples"
OPTIONS = ["--model", "vargpt-tiny", "--pictures", "4", "--rows", "16", "--evaluate", "4"]


@pytest.fixture
def example(monkeypatch):
    pytest.importorskip("resvg_py")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import lora_look

    return lora_look


@pytest.fixture
def pictures(packages):
    return with_vectors(read_pictures(packages), packages, "fluent")


def test_concepts_that_are_judged_are_not_taught(example, pictures):
    taught, new = example.chosen(pictures, 4)
    assert len(taught) == 4 and not set(taught) & set(new) and len(taught) + len(new) == len(pictures.of("things"))
    for number in (0, len(pictures.of("things"))):
        with pytest.raises(ValueError, match="--pictures must be from 1 to 9"):
            example.chosen(pictures, number)


def test_rows_ask_for_the_new_look_and_show_it(example, pictures):
    judge, taught = ThingJudge(pictures, pixel_features), example.chosen(pictures, 4)[0]
    made = list(example.look_rows(pictures, taught, 60, seed=0))
    said = [row["messages"][0]["content"][0]["text"] for row in made]
    assert all("fluent" in words.lower() for words in said) and len(set(said)) > 40
    truths = [json.loads(row["truth"]) for row in made]
    assert {truth["cells"][0]["codes"][0] for truth in truths} == set(taught)
    assert all(found["both"] for found in judge.verdicts([row["output_images"][0] for row in made], truths))
    other = [row["messages"][0]["content"][0]["text"] for row in example.look_rows(pictures, taught, 60, seed=0, split="test")]
    assert other != said


@pytest.mark.slow
def test_the_whole_way(example, packages, tmp_path, monkeypatch, capsys):
    """Once more, it takes the adapter that is there."""
    called = []

    def run(command, check):
        called.append(command)
        train(command[2], command[3:])

    monkeypatch.setattr(example.subprocess, "run", run)
    arguments = [tmp_path / "runs", "--packages", packages, *OPTIONS, "--image", tmp_path / "look.png"]
    monkeypatch.setattr("sys.argv", ["lora_look.py", *map(str, arguments)])
    example.main()
    found = json.loads((tmp_path / "runs" / "figures.json").read_text())
    assert set(found) == {example.NEW, example.TAUGHT, *example.THINGS, *example.OTHERS}
    assert all(set(group) == {"ceiling", "before", "after"} for group in found.values())
    assert found["digits"]["ceiling"] == {"all of it": 1.0} and set(found[example.NEW]["after"]) >= {"concept", "look", "both"}
    assert (tmp_path / "runs" / "adapter" / "adapter_model.safetensors").exists()
    assert Image.open(tmp_path / "look.png").width == 4 * (3 * 66 + 6) + 6
    monkeypatch.setattr("sys.argv", ["lora_look.py", *map(str, arguments[:-2])])
    example.main()
    assert len(called) == 1 and json.loads((tmp_path / "runs" / "figures.json").read_text()) == found
