"""`vargpt data check`: everything that training would stumble over is found and named."""

import json

import pytest
from PIL import Image as PILImage
from typer.testing import CliRunner

from vargpt_hf import VargptProcessor
from vargpt_hf.cli import app
from vargpt_hf.tiny import TINY_FOLDER
from vargpt_hf.training.check import check_rows, draw_lengths
from vargpt_hf.training.data import load_rows

DRAWING = {"role": "assistant", "content": [{"type": "output_image", "text": None}]}


def user(text, *pictures):
    return {"role": "user", "content": [*({"type": "image", "text": None} for _ in pictures), {"type": "text", "text": text}]}


@pytest.fixture
def file(tmp_path):
    """Five rows: one in order, one with a broken picture to generate, one that lacks a picture's file, one of text, a long one."""
    PILImage.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "red.png").read_bytes()[:40])
    rows = [
        {"messages": [user("what", 1), DRAWING], "images": ["red.png"], "output_images": ["red.png"]},
        {"messages": [user("draw"), DRAWING], "images": [], "output_images": ["half.png"]},
        {"messages": [user("what", 1), {"role": "assistant", "content": [{"type": "text", "text": "red"}]}], "images": ["gone.png"]},
        {"messages": [user("hello"), {"role": "assistant", "content": [{"type": "text", "text": "hello"}]}]},
        {"messages": [user("hello " * 100), {"role": "assistant", "content": [{"type": "text", "text": "hello"}]}]},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path / "rows.json"


@pytest.mark.parametrize("streaming", [False, True], ids=["ahead", "streaming"])
def test_everything_is_counted(file, streaming):
    processor = VargptProcessor.from_pretrained(TINY_FOLDER)
    report = check_rows(load_rows(file, streaming=streaming), processor, max_length=100)
    assert (report.rows, report.images, report.drawings, report.too_long, report.wrong) == (5, 2, 2, 1, [])
    assert [line.split(":")[0] for line in report.broken] == [
        f"row 1, output_images[0], {file.parent / 'half.png'}",
        f"row 2, images[0], {file.parent / 'gone.png'}",
    ]
    places = processor.image_seq_length + processor.num_image_gen_tokens
    with_pictures, text, long = report.lengths
    assert text < 15 < places < with_pictures < places + 15 and long > 100
    assert report.quantiles()[0.0] == text and report.quantiles()[1.0] == long and not report.is_clean


def test_the_command(file, tmp_path):
    result = CliRunner().invoke(app, ["data", "check", str(file), "--max-length", "100", "--plot", str(tmp_path / "lengths.png")])
    assert result.exit_code == 1
    assert "rows                     5" in result.output and "broken pictures          2" in result.output and "gone.png" in result.output
    assert "longer than 100          1 (training cuts " in result.output and "and with them 0 pictures)" in result.output
    (tmp_path / "good").mkdir()
    PILImage.new("RGB", (8, 8), "red").save(tmp_path / "good" / "red.png")
    (tmp_path / "good" / "red.txt").write_text("red")
    assert CliRunner().invoke(app, ["data", "check", str(tmp_path / "good")]).exit_code == 0


def test_the_plot_shows_where_rows_are_too_long(tmp_path):
    draw_lengths([10] * 30 + [90], tmp_path / "a.png", max_length=50)
    pixels = PILImage.open(tmp_path / "a.png").convert("RGB")
    colours = {colour for _, colour in pixels.getcolors(10_000)}
    assert {(255, 0, 0), (70, 130, 180)} <= colours
    with pytest.raises(ValueError, match="no rows"):
        draw_lengths([], tmp_path / "b.png")
