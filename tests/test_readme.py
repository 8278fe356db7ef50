"""The README tells the truth: its Python runs, its tree lists every file."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


@pytest.mark.parametrize("index", range(len(blocks("python"))))
def test_python_runs(index, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks("python")[index], "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_tree_lists_every_file():
    (tree,) = (block for block in blocks("") if "src/vargpt_hf/" in block)
    listed = set(re.findall(r"[\w.]+\.(?:py|yaml)", tree))
    folders = (ROOT / name for name in ("src/vargpt_hf", "examples"))
    files = {path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".yaml") and path.stat().st_size}
    assert {path.name for path in files} <= listed
    assert all((ROOT / path).exists() for path in re.findall(r"\]\((\w[\w/.]*)\)", README) if "://" not in path)
