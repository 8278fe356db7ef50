"""docs/any_vlm.md works word for word, with a small model of every family of its example whose processor can be made here."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from transformers.utils import is_torchvision_available
from typer.testing import CliRunner

from vargpt_hf.cli import app
from vargpt_hf.tiny import TINY_FOLDER
from vargpt_hf.training.image_tokenizer.loading import load_image_tokenizer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "any_vlm.md").read_text()
FAMILIES = ["llava", *(["qwen3_vl", "smolvlm"] if is_torchvision_available() else [])]
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


def run(line: str, monkeypatch) -> None:
    """One command of the page, in this process: imports alone would take longer than all else."""
    command, *arguments = shlex.split(line)
    if command == "python":
        monkeypatch.setattr(sys, "argv", arguments)
        runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
    else:
        assert command == "vargpt"
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, (line, done.output, done.exception)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_page_is_followed_word_for_word(family, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for kind, code in BLOCKS:
        if kind == "python":
            exec(compile(code, "any_vlm.md", "exec"), names)
            continue
        for line in code.strip().replace("\\\n", " ").splitlines():
            run(line.replace("small_reader.py qwen3_vl", f"small_reader.py {family}"), monkeypatch)
    trained, shipped = (load_image_tokenizer(folder).fingerprint() for folder in (tmp_path / "my-tokenizer", TINY_FOLDER))
    assert load_image_tokenizer(tmp_path / "stage1").fingerprint() == trained != shipped
    assert names["before"]["generated_text"] and (tmp_path / "drawn.png").stat().st_size
    assert len(names["read"]) == 2 and re.search(r"loss of answers about images: \d\.\d+ before, \d\.\d+ after", capsys.readouterr().out)
