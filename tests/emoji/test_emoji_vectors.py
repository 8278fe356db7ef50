"""A look more: icons drawn from SVG, pictures in four looks, and their judge."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from small_packages import write_packages

from vargpt_hf.emoji import packages as npm
from vargpt_hf.emoji.judge import ThingJudge, pixel_features
from vargpt_hf.emoji.packages import PACKAGES, VECTORS, fetch
from vargpt_hf.emoji.pictures import LOOKS, read_pictures
from vargpt_hf.emoji.vectors import read_svgs, with_vectors


@pytest.fixture(scope="module")
def four(packages):
    pytest.importorskip("resvg_py")
    return with_vectors(read_pictures(packages), packages, "fluent")


def test_a_look_is_added_to_all_that_it_draws(packages, four):
    three = read_pictures(packages)
    assert four.looks == (*LOOKS, "fluent") and three.looks == LOOKS
    assert [concept.name for concept in four.concepts] == [concept.name for concept in three.concepts if concept.name != "cherries"]
    image = four.picture("1f422", "fluent")
    assert image.size == (64, 64) and image.getpixel((32, 40)) == (0, 128, 0) and image.getpixel((2, 2)) == (255, 255, 255)
    assert four.picture("1f422", "flat").tobytes() == three.picture("1f422", "flat").tobytes()
    assert len(np.unique(np.asarray(image)[:, :, 0])) > 2  # smooth edges


def test_an_icon_of_its_own_size_is_drawn_whole(four):
    """Of twice the height, the triangle fills the upper half."""
    drawn = np.asarray(four.picture("1f68c", "fluent")).min(-1) < 200
    assert drawn[:32].any() and not drawn[40:].any()


def test_the_judge_knows_the_new_look(four):
    judge = ThingJudge(four, pixel_features)
    assert len(judge.pairs) == 4 * len(four.concepts) and judge.chance["look"] == 1 / 4
    assert [row[0] for row in judge.nearest([four.picture(*pair) for pair in judge.pairs])] == judge.pairs


def test_a_look_needs_a_new_name_and_pictures(packages):
    pictures = read_pictures(packages)
    with pytest.raises(ValueError, match="a look 'flat' already"):
        pictures.with_look("flat", {"1f422": b""})
    with pytest.raises(ValueError, match="draws none of the 12 concepts; it has 1 pictures"):
        pictures.with_look("soft", {"1": b""})


def test_without_resvg_it_is_said_what_to_install(packages, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ValueError, match="pip install resvg-py"):
        with_vectors(read_pictures(packages), packages, "fluent")


@pytest.mark.parametrize("content", ["{", "[1]", '{"icons": 3}', '{"icons": {"turtle": 3}}', '{"icons": {"turtle": {}}}'])
def test_broken_icons_are_refused(tmp_path, content):
    (write_packages(tmp_path) / VECTORS.stem / "package" / "icons.json").write_text(content)
    with pytest.raises(ValueError, match="fluent-emoji-flat 1.2.6 in .* is broken"):
        read_svgs(tmp_path)


def test_an_icon_that_cannot_be_drawn_is_refused(tmp_path):
    pytest.importorskip("resvg_py")
    file = write_packages(tmp_path) / VECTORS.stem / "package" / "icons.json"
    icons = json.loads(file.read_text())
    icons["icons"]["turtle"]["body"] = "<path"
    file.write_text(json.dumps(icons))
    with pytest.raises(ValueError, match="no SVG that resvg draws"):
        with_vectors(read_pictures(tmp_path), tmp_path, "fluent")


def test_it_is_fetched_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(npm.shutil, "which", lambda name: None)
    write_packages(tmp_path)
    for file in sorted((tmp_path / VECTORS.stem).rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    fetch(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"put these files into .*: iconify-json-fluent-emoji-flat-1\.2\.6\.tgz"):
        fetch(tmp_path, (*PACKAGES, VECTORS))
    assert replace(VECTORS, version="2").stem == "iconify-json-fluent-emoji-flat-2"
