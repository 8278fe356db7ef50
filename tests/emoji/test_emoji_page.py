"""The blocks of docs/emoji.md run, on small packages, and its numbers are those of the split."""

import json
import re
from pathlib import Path

from vargpt_hf.emoji import wordings
from vargpt_hf.emoji.packages import FLAT, PACKAGES, VECTORS
from vargpt_hf.emoji.rows import TASKS
from vargpt_hf.emoji.split import SPLIT_FILE

PAGE = (Path(__file__).parents[2] / "docs" / "emoji.md").read_text()


def test_python_of_the_page_runs(packages, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "emoji").symlink_to(packages)
    names = {}
    for code in re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE):
        exec(compile(code, "emoji.md", "exec"), names)
    assert {file.name for file in tmp_path.glob("*.png")} == {"turtle_cartoon.png", "turtle_flat.png", "turtle_3d.png"}
    said = capsys.readouterr().out
    assert "animals-nature True" in said and "CC-BY 4.0" in said and "read_relation" in said


def test_the_numbers_are_those_of_the_split():
    split = json.loads(SPLIT_FILE.read_text())
    things, others, held_out = split["things"], split["others"], split["held_out"]
    kept_out = sum(map(len, held_out.values()))
    of_things = sum(code in set(things) for codes in held_out.values() for code in codes)
    total = len(things) + len(others)
    text = " ".join(PAGE.split())
    for said in (
        f"**{total}**, of which **{len(things)} are things**",
        f"{len(others)} are faces, people and symbols",
        f"{kept_out} of the {3 * total} (concept, look) pairs",
        f"{3 * len(things) - of_things} pairs are trained on and {of_things} are kept out",
        f"a concept 1 in {total}, a look 1 in 3, both 1 in {3 * total}",
    ):
        assert said in text, said


def test_tasks_packages_and_wordings_are_listed():
    assert all(f"`{task}`" in PAGE for task in TASKS)
    assert all(f"`{package.name}` {package.version}" in PAGE and package.license in PAGE for package in (*PACKAGES, VECTORS))
    assert FLAT.credit == "Twemoji by Twitter and other contributors (CC-BY 4.0; npm package emoji-datasource-twitter 16.0.0)"
    trained = wordings.QUESTIONS["digit"].trained
    assert {"which digit is shown here", "what is written here"} <= set(trained) and "which digit is written here" in wordings.QUESTIONS[
        "digit"
    ].held_out
    numbers = [
        len(found.trained)
        for found in (wordings.DRAW, *wordings.PAIRED.values(), *wordings.QUESTIONS.values(), *wordings.RELATION_WORDS.values())
    ]
    assert (min(numbers), max(numbers)) == (2, 22)
