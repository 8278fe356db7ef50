"""examples/emoji_tokenizers.py: both kinds are trained by their files for as many steps, and measured on the same images."""

import json
from pathlib import Path

import pytest
import torch
from datasets import load_from_disk

from vargpt_hf.training.image_tokenizer.loading import fresh_image_tokenizer
from vargpt_hf.training.image_tokenizer.script import parse

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def trained(monkeypatch):
    """What the commands asked for; fresh weights are saved in place of trained ones."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import train_emoji

    asked = {}

    def vargpt(*command):
        script, training = parse(command[2], list(map(str, command[3:])))
        used = [(source["path"], source["weight"]) for source in script.train_data]
        asked[script.kind] = (training.max_steps, training.seed, used, training.resume_from_checkpoint)
        torch.manual_seed(0)
        fresh_image_tokenizer(script.kind, script.image_tokenizer).save_pretrained(training.output_dir)

    monkeypatch.setattr(train_emoji, "vargpt", vargpt)
    return asked


def test_both_kinds_are_measured_alike(packages, tmp_path, monkeypatch, capsys, trained):
    import emoji_tokenizers

    for name in ("images", "images-test", "pictures"):
        (tmp_path / "images" / name).mkdir(parents=True)
    folder, data = tmp_path / "runs", tmp_path / "images"
    arguments = [folder, "--packages", packages, "--images", data, "--steps", 7, "--seed", 3, "--evaluate", 3]
    monkeypatch.setattr("sys.argv", ["emoji_tokenizers.py", *map(str, arguments)])
    emoji_tokenizers.main()
    used = [(str(folder / "data" / name), weight) for name, weight in (("images", 2), ("pictures", 1))]
    assert trained == {kind: (7, 3, used, "true") for kind in ("vq", "bsq")}
    said = capsys.readouterr().out.splitlines()
    header, line, *rows = ([cell.strip() for cell in text.strip("| ").split("|")] for text in said)
    assert [len(row) for row in (header, line, *rows)] == [10] * 4 and [row[:3] for row in rows] == [
        ["vq", "148", "2,048"],
        ["bsq", "85", "1,048,576"],
    ]
    found = json.loads((folder / "metrics.json").read_text())
    assert {found[kind][group]["data"] for kind in found for group in emoji_tokenizers.GROUPS} == {
        str(folder / "evaluated" / task) for task in ("draw", "draw_unseen", "draw_scene_unseen")
    }
    assert f"{found['bsq']['kept out']['psnr']['value']:.2f}" in rows[1][header.index("kept out: PSNR (dB)")]
    assert all(len(load_from_disk(place)) == 3 for place in (folder / "evaluated").iterdir())
    trained.clear()
    emoji_tokenizers.main()
    assert not trained  # what is there is not trained again
