"""Suites of folders of images, through the command."""

import json

import numpy as np
import pytest
from small_networks import save_classifier, save_clip
from typer.testing import CliRunner

from vargpt_hf.cli import app
from vargpt_hf.evaluation.report import read_report
from vargpt_hf.tiny import TINY_FOLDER
from vargpt_hf.tiny.shapes import render, sample_scene


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def save_scenes(folder, number, seed):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for index in range(number):
        render(sample_scene(rng)).save(folder / f"{index:03}.png")
    return folder


def test_two_sets(tmp_path):
    drawn, real = save_scenes(tmp_path / "drawn", 20, 0), save_scenes(tmp_path / "real", 24, 1)
    features = ("--features", TINY_FOLDER, "--device", "cpu", "--resamples", 10)
    networks = (*features, "--classes", save_classifier(tmp_path / "vit"))
    result = run("evaluate", "--suite", "sets", "--images", drawn, "--references", real, *networks, "-o", tmp_path / "report")
    report = read_report(tmp_path / "report")
    assert set(report["metrics"]) == {"FID", "KID", "IS", "precision", "recall", "density", "coverage"} and "FID" in result.output
    assert report["metrics"]["FID"]["low"] < report["metrics"]["FID"]["value"] and report["data"]["rows"] == 24
    assert "fingerprint" in report["settings"]["network"] and len(report["examples"]) == 8
    run("evaluate", "--suite", "sets", "--images", real, "--references", real, *features, "-o", tmp_path / "same")
    assert read_report(tmp_path / "same")["metrics"]["FID"]["value"] == pytest.approx(0, abs=1e-3)


def test_pairs(tmp_path):
    drawn = save_scenes(tmp_path / "drawn", 3, 0)
    run("evaluate", "--suite", "pairs", "--images", drawn, "--references", drawn, "--device", "cpu", "-o", tmp_path / "report")
    report = read_report(tmp_path / "report")
    assert report["metrics"]["PSNR"]["value"] == 106 and report["metrics"]["SSIM"]["value"] == pytest.approx(1, abs=1e-4)
    assert report["metrics"]["PSNR"]["unit"] == "dB" and "LPIPS" not in report["metrics"]
    save_scenes(tmp_path / "other", 2, 1)
    with pytest.raises(ValueError, match="1 of 3 images have no reference"):
        run("evaluate", "--suite", "pairs", "--images", drawn, "--references", tmp_path / "other", "--device", "cpu")
    with pytest.raises(ValueError, match="needs --references"):
        run("evaluate", "--suite", "pairs", "--images", drawn)


def test_prompts_and_the_benchmark_that_they_come_from(tmp_path):
    (tmp_path / "metadata.jsonl").write_text(
        "".join(json.dumps({"tag": "x", "prompt": text}) + "\n" for text in ("a red circle", "a blue square"))
    )
    drawn = run(
        "draw", "--benchmark", "geneval", "--prompts", tmp_path / "metadata.jsonl", tmp_path / "drawn", "--images-per-prompt", 2, "--greedy"
    )
    assert drawn.exit_code == 0 and "Saved 4 images" in drawn.output
    clip = save_clip(tmp_path / "clip")
    run("evaluate", "--suite", "prompts", "--images", tmp_path / "drawn", "--clip", clip, "--device", "cpu", "-o", tmp_path / "report")
    report = read_report(tmp_path / "report")
    assert report["metrics"]["CLIP-score"]["number"] == 4 and report["samples"][0]["id"] == "00000/samples/0000.png"
    assert report["model"]["fingerprint"] != "unknown" and report["generate"]["do_sample"] is False and report["prompts"]["template"] == "{}"
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    run("draw", "--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "plain", "--greedy")
    run("evaluate", "--suite", "prompts", "--images", tmp_path / "plain", "--clip", clip, "--device", "cpu", "-o", tmp_path / "other")
    assert read_report(tmp_path / "other")["model"]["fingerprint"] == report["model"]["fingerprint"]
    with pytest.raises(ValueError, match="does not say its images' prompts"):
        run("evaluate", "--suite", "prompts", "--images", clip, "--clip", clip, "--device", "cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "--suite", "sets", "--images", "a"), "needs --references and --features"),
        (("evaluate", "--suite", "wise"), "needs --images and --prompts and --judge"),
        (("evaluate", "--suite", "paper-understanding"), "needs --output"),
        (("draw", "a", "--think", "3"), "go with --benchmark"),
        (("draw", "--benchmark", "geneval", "out"), "needs --prompts and a folder"),
        (("draw", "--benchmark", "none", "--prompts", "x", "out"), "There is no benchmark 'none'"),
    ],
)
def test_what_is_missing_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        run(*arguments)


def test_a_judged_suite(tmp_path):
    """A judge of ours, which cannot grade: said in one line."""
    (tmp_path / "wise.json").write_text(json.dumps([{"prompt_id": 1, "Prompt": "a red circle", "Explanation": "red"}]))
    run("draw", "--benchmark", "wise", "--prompts", tmp_path / "wise.json", "-o", tmp_path / "drawn", "--greedy")
    arguments = ("--suite", "wise", "--images", tmp_path / "drawn", "--prompts", tmp_path / "wise.json", "--judge", TINY_FOLDER)
    with pytest.raises(ValueError, match="gave no scores; to 1 it said"):
        run("evaluate", *arguments, "--device", "cpu", "-o", tmp_path / "report")
    assert json.loads((tmp_path / "report" / "answers.jsonl").read_text())["id"] == "1"
