"""Packages of pictures and words, and what is read from them; the list of pairs that are kept out of training."""

import json
import subprocess
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from small_packages import CONCEPTS, write_packages, write_tarball

from vargpt_hf.emoji import packages as npm
from vargpt_hf.emoji.packages import CARTOON, FLAT, PACKAGES, ROUND, WORDS, code_of, fetch, read_files
from vargpt_hf.emoji.pictures import LOOKS, Concept, Pictures, plain, read_pictures, tokenizer_images
from vargpt_hf.emoji.split import SHARE, SPLIT_FILE, held_out_pairs, kept_out_pairs, make_split, to_text, training_pairs


def test_concepts_are_what_all_packages_draw(packages):
    pictures = read_pictures(packages)
    assert [concept.name for concept in pictures.concepts] == [entry[1] for entry in CONCEPTS]
    turtle = pictures.by_name["turtle"]
    assert turtle == Concept("1f422", "turtle", ("animal", "terrapin", "tortoise"), "animals-nature", "animal-reptile")
    assert pictures.by_name["umbrella"].code == "2602"
    assert turtle.thing and not pictures.by_name["grinning face"].thing
    assert len(pictures.of("all")) == len(pictures.of("things")) + 1
    with pytest.raises(ValueError, match="things and all, not 'some'"):
        pictures.of("some")


def test_pictures_are_64_pixels_on_white(packages):
    pictures = read_pictures(packages)
    for look in LOOKS:
        image = pictures.picture("1f422", look)
        assert image.size == (64, 64) and image.mode == "RGB" and image.getpixel((0, 0)) == (255, 255, 255)
        assert np.abs(np.array(image.getpixel((32, 32))) - (0, 128, 0)).max() < 8
    # The edge of what is made smaller is smooth: neither ground nor color.
    edge = np.unique(np.asarray(pictures.picture("1f422", "3d"))[:, :, 0])
    assert len(edge) > 5
    with pytest.raises(ValueError, match="no concept 'turtle'"):
        pictures.picture("turtle", "flat")
    with pytest.raises(ValueError, match="no look 'soft'"):
        pictures.picture("1f422", "soft")


@pytest.mark.parametrize(
    ("words", "plainly"),
    [
        ("Japanese “free of charge” button", "japanese free of charge button"),
        ("A button (blood type)", "a button"),
        ("woman’s boot", "woman's boot"),
        ("keycap: 3", "keycap 3"),
        ("UP! button", "up button"),
    ],
)
def test_names_are_plain(words, plainly):
    assert plain(words) == plainly


def test_codes_of_file_names():
    assert code_of("assets/2602-fe0f.webp") == code_of("2602-FE0F") == "2602"
    assert code_of("1F43B-200D-2744-FE0F.png") == "1f43b-200d-2744"


def test_two_concepts_of_one_name_are_refused():
    turtle = Concept("1", "turtle", (), "animals-nature", "animal-reptile")
    with pytest.raises(ValueError, match="one name or one code"):
        Pictures([turtle, replace(turtle, code="2")], {})


def test_a_tarball_is_read_and_its_hash_checked(tmp_path):
    file = write_tarball(tmp_path, FLAT)
    with pytest.raises(ValueError, match="delete the file and fetch it again"):
        read_files(tmp_path, FLAT, lambda name: True)
    right = replace(FLAT, sha256=npm.hashlib.sha256(file.read_bytes()).hexdigest())
    found = read_files(tmp_path, right, lambda name: name.startswith("img/"))
    write_packages(tmp_path / "unpacked")
    assert found == read_files(tmp_path / "unpacked", FLAT, lambda name: name.startswith("img/")) and len(found) > 10


def test_what_is_missing_or_another_package_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither emoji-datasource-google-16\.0\.0\.tgz nor"):
        read_pictures(tmp_path)
    write_packages(tmp_path)
    about = tmp_path / FLAT.stem / "package" / "package.json"
    for content, message in (
        ('{"name": "emoji-datasource-twitter", "version": "15.0.0"}', "another package"),
        ("[", "no JSON file"),
        ("[]", "another"),
    ):
        about.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_pictures(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", '[{"group": 3}]', '{"group": 3}', "3"])
def test_broken_words_are_refused(tmp_path, content):
    (write_packages(tmp_path) / WORDS.stem / "package" / "en" / "data.json").write_text(content)
    with pytest.raises(ValueError, match="emojibase-data 17.0.0 in .* is broken"):
        read_pictures(tmp_path)


def test_a_broken_picture_is_named(tmp_path):
    (write_packages(tmp_path) / ROUND.stem / "package" / "assets" / "1f422.webp").write_bytes(b"no image")
    with pytest.raises(ValueError, match="1f422 in the 3d look is no image"):
        read_pictures(tmp_path).picture("1f422", "3d")


def test_packages_without_a_common_concept_are_refused(tmp_path):
    write_packages(tmp_path)
    for file in (tmp_path / ROUND.stem / "package" / "assets").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="No concept has a picture in all"):
        read_pictures(tmp_path)


def test_fetching_calls_npm_once_for_what_is_missing(tmp_path, monkeypatch):
    called = []

    def run(command, **_):
        called.append(command[2])
        write_packages(tmp_path)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(npm.shutil, "which", lambda name: f"/somewhere/{name}")
    monkeypatch.setattr(npm.subprocess, "run", run)
    fetch(tmp_path)
    assert called == [f"{package.name}@{package.version}" for package in PACKAGES]
    fetch(tmp_path)
    assert len(called) == len(PACKAGES)


def test_fetching_says_what_to_do_without_npm(tmp_path, monkeypatch):
    monkeypatch.setattr(npm.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"put these files into .*lobehub-fluent-emoji-3d-1\.1\.0\.tgz"):
        fetch(tmp_path)
    monkeypatch.setattr(npm.shutil, "which", lambda name: name)
    monkeypatch.setattr(npm.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", "npm ERR! offline\n"))
    with pytest.raises(OSError, match="could not fetch emoji-datasource-google@16.0.0: npm ERR! offline"):
        fetch(tmp_path)
    write_packages(tmp_path)
    write_tarball(tmp_path, CARTOON)
    with pytest.raises(ValueError, match="SHA-256"):
        fetch(tmp_path)


def test_the_split_is_what_the_function_makes():
    stored = json.loads(SPLIT_FILE.read_text())
    made = make_split(stored["things"], stored["others"])
    assert made == stored and to_text(made) == SPLIT_FILE.read_text()


def test_the_split_keeps_out_the_share_and_shows_every_concept():
    stored = json.loads(SPLIT_FILE.read_text())
    things, others = stored["things"], stored["others"]
    assert len(things) == 849 and len(set(things) | set(others)) == len(things) + len(others) == 1368
    for look in LOOKS:
        kept_out = stored["held_out"][look]
        assert len(set(kept_out)) == len(kept_out) and set(kept_out) <= {*things, *others}
        assert sum(code in set(things) for code in kept_out) == round(SHARE * 849) and len(kept_out) == round(SHARE * 849) + round(SHARE * 519)
    times = Counter(code for codes in stored["held_out"].values() for code in codes)
    assert set(times.values()) == {1, 2}  # of three looks
    assert len(held_out_pairs()) == sum(times.values())


@pytest.mark.parametrize("share", [-0.1, 0.7, 1.0])
def test_a_share_that_shows_a_concept_in_no_look_is_refused(share):
    with pytest.raises(ValueError, match="must be from 0 to 0.67"):
        make_split(["a"], [], share=share)
    assert max(Counter(code for codes in make_split(list("abcdef"), [], share=2 / 3)["held_out"].values() for code in codes).values()) == 2


def test_pairs_are_trained_on_or_kept_out(packages):
    pictures = read_pictures(packages)
    for which in ("things", "all"):
        train, test = training_pairs(pictures, which), kept_out_pairs(pictures, which)
        assert not set(train) & set(test) and set(test) <= held_out_pairs() and len(train) + len(test) == 3 * len(pictures.of(which))
    assert len(kept_out_pairs(pictures)) > 0


def test_pictures_for_the_image_tokenizer_are_those_of_training(packages):
    dataset = tokenizer_images(str(packages), "things")
    pictures = read_pictures(packages)
    assert len(dataset) == len(training_pairs(pictures, "things"))
    assert isinstance(dataset[0]["image"], Image.Image) and dataset[0]["image"].size == (64, 64)
    assert dataset[0]["text"].endswith(" look") and dataset[0]["text"].partition(",")[0] in pictures.by_name
    assert len(tokenizer_images(str(packages), pairs=kept_out_pairs(pictures))) == len(kept_out_pairs(pictures))
