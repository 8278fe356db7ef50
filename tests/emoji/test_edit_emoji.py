"""examples/edit_emoji.py with vargpt-tiny and next to no data: rows, training, and what the judge finds."""

import json
from pathlib import Path

import pytest
from PIL import Image

from vargpt_hf.training.script import train

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_the_whole_way(packages, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import edit_emoji
    import train_emoji

    monkeypatch.setattr(train_emoji, "vargpt", lambda command, config, *options: train(config, list(map(str, options))))
    monkeypatch.setattr(edit_emoji, "GROUPS", dict(list(edit_emoji.GROUPS.items())[:2]))
    arguments = [tmp_path / "runs", "--packages", packages, "--model", "vargpt-tiny", "--scale", "0", "--evaluate", "4"]
    monkeypatch.setattr("sys.argv", ["edit_emoji.py", *map(str, arguments), "--image", str(tmp_path / "edited.png")])
    edit_emoji.main()
    found = json.loads((tmp_path / "runs" / "figures.json").read_text())
    assert set(found) == {"edits", "edits to what is kept out"}
    for ways in found.values():
        assert set(ways) == {"wanted pictures", "nothing changed", "drawn freely", "with a mask"}
        assert ways["wanted pictures"]["all else kept"] == 1 and ways["nothing changed"]["done"] < 1
    assert "remove" in found["edits"]["drawn freely"] and "remove" not in found["edits to what is kept out"]["drawn freely"]
    assert (tmp_path / "runs" / "edit" / "model.safetensors").exists() and Image.open(tmp_path / "edited.png").size[0] == 4 * (3 * 66 + 6) + 6
