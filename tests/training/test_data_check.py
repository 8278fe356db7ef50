"""`vargpt data check`: everything that training would stumble over is found and named."""

import json
import os

import pytest
from PIL import Image as PILImage
from typer.testing import CliRunner

from vargpt_hf import VargptProcessor
from vargpt_hf.cli import app
from vargpt_hf.tiny import TINY_FOLDER
from vargpt_hf.training.data import load_rows
from vargpt_hf.training.data_check import check_rows, draw_lengths

DRAWING = {"role": "assistant", "content": [{"type": "output_image", "text": None}]}


def user(text, *images):
    return {"role": "user", "content": [*({"type": "image", "text": None} for _ in images), {"type": "text", "text": text}]}


@pytest.fixture
def file(tmp_path):
    """Five rows: one in order, one with a broken image to draw, one that lacks an image's file, one of text, a long one."""
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
    places = processor.typical_lengths()["image"] + processor.output_image_processor.num_positions[0]
    with_images, text, long = report.lengths
    assert text < 15 < places < with_images < places + 15 and long > 100
    assert report.quantiles()[0.0] == text and report.quantiles()[1.0] == long and not report.is_clean


def test_the_command(file, tmp_path):
    result = CliRunner().invoke(app, ["data", "check", str(file), "--max-length", "100", "--plot", str(tmp_path / "lengths.png")])
    assert result.exit_code == 1
    assert "rows                     5" in result.output and "broken images            2" in result.output and "gone.png" in result.output
    assert "longer than 100          1 (training cuts " in result.output and "and with them 0 images)" in result.output
    (tmp_path / "good").mkdir()
    PILImage.new("RGB", (8, 8), "red").save(tmp_path / "good" / "red.png")
    (tmp_path / "good" / "red.txt").write_text("red")
    assert CliRunner().invoke(app, ["data", "check", str(tmp_path / "good")]).exit_code == 0


FAULTS = [
    ({"messages": [user("hello")]}, None),
    ({"messages": [{"role": "user", "content": "<image> what"}]}, "1 marks of images in the texts, but 0 images"),
    ({"messages": [{"role": "narrator", "content": "a"}]}, "role 'narrator'"),
    ({"messages": [user("what", 1)], "images": ["fifo.png"]}, "it is no regular file"),
    ({"question": "a"}, "of which none tells what to do"),
    ({"messages": [{"role": "user", "content": 3}]}, "content of type int"),
    ({"messages": [{"role": "user", "content": "<image> <image> what"}], "image": "red.png"}, "2 marks of images in the texts, but 1"),
    ({"messages": [user("<|image_gen_start|>")]}, "special token"),
    ("{ no json", "it is not JSON"),
    ("[1, 2]", "a row is a list"),
    ({"messages": [user("what", 1)], "image": "red.png"}, None),
]


def write_faults(folder):
    PILImage.new("RGB", (8, 8), "red").save(folder / "red.png")
    os.mkfifo(folder / "fifo.png")
    (folder / "rows.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row, _ in FAULTS))
    return folder / "rows.jsonl"


@pytest.mark.parametrize("streaming", [False, True], ids=["ahead", "streaming"])
def test_all_rows_are_looked_at_and_every_fault_is_listed(tmp_path, streaming):
    rows = load_rows(write_faults(tmp_path), streaming=streaming, keep_faults=True)
    report = check_rows(rows, VargptProcessor.from_pretrained(TINY_FOLDER))
    assert report.rows == len(FAULTS) and len(report.lengths) == 2
    listed = [*report.unread, *report.broken, *report.wrong]
    assert len(listed) == len(FAULTS) - 2
    for index, (_, cause) in enumerate(FAULTS):
        found = [
            fault
            for fault in listed
            if fault.lower().startswith((f"row {index} of {tmp_path}/rows.jsonl (line {index + 1})", f"row {index}, ", f"row {index}:"))
        ]
        assert len(found) == (cause is not None) and all(cause in fault for fault in found), index
    assert report.kinds()["N marks of images in the texts, but N images."] == 2 and sum(report.kinds().values()) == len(listed)


def test_the_command_lists_every_fault(tmp_path):
    file = write_faults(tmp_path)
    result = CliRunner().invoke(app, ["data", "check", str(file)])
    assert result.exit_code == 1
    assert all(cause in result.output for _, cause in FAULTS if cause)
    assert f"rows                     {len(FAULTS)}" in result.output and "rows that cannot be read 7" in result.output
    assert "  2 x N marks of images in the texts, but N images." in result.output
    (tmp_path / "empty.jsonl").write_text("")
    assert CliRunner().invoke(app, ["data", "check", str(tmp_path / "empty.jsonl")]).exit_code == 1  # nothing to train on
    stage = tmp_path / "stage.yaml"
    stage.write_text(
        f"stage: stage1\nmodel_name_or_path: {TINY_FOLDER}\noutput_dir: {tmp_path}\ntrain_data: [{file}, {file}]\nmax_steps: 1\nuse_cpu: true\n"
    )
    result = CliRunner().invoke(app, ["data", "check", str(stage)])
    assert result.exit_code == 1 and f"rows                     {2 * len(FAULTS)}" in result.output


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("sft", ["--task", "nonsense", "--split", "test"], "says itself what its data are: leave out --task, --split"),
        ("dpo", [], "trains on pairs of answers, and this looks at rows"),
    ],
)
def test_what_a_stage_s_file_says_itself_is_refused(file, tmp_path, method, options, message):
    stage = tmp_path / "stage.yaml"
    stage.write_text(
        f"stage: stage1\nmethod: {method}\nmodel_name_or_path: {TINY_FOLDER}\noutput_dir: {tmp_path}\ntrain_data: {file}\nmax_steps: 1\n"
        "use_cpu: true\n"
    )
    result = CliRunner().invoke(app, ["data", "check", str(stage), *options])
    assert isinstance(result.exception, ValueError) and message in str(result.exception)


def test_the_plot_shows_where_rows_are_too_long(tmp_path):
    draw_lengths([10] * 30 + [90], tmp_path / "a.png", max_length=50)
    pixels = PILImage.open(tmp_path / "a.png").convert("RGB")
    colours = {colour for _, colour in pixels.getcolors(10_000)}
    assert {(255, 0, 0), (70, 130, 180)} <= colours
    with pytest.raises(ValueError, match="no rows"):
        draw_lengths([], tmp_path / "b.png")
