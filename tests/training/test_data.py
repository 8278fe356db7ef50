"""Reading datasets, in every form that they come in."""

import json

import pytest
from datasets import Dataset
from PIL import Image as PILImage

from vargpt_hf.training.data import load_rows
from vargpt_hf.training.rows import parts_of_text

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def images(tmp_path):
    """A folder with a red and a blue image."""
    for name, colour in (("red.png", RED), ("blue.png", BLUE)):
        PILImage.new("RGB", (4, 4), colour).save(tmp_path / name)
    return tmp_path


def colours(images: list) -> list[tuple[int, int, int]]:
    return [image.getpixel((0, 0)) for image in images]


def write(folder, rows: list[dict]):
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


def conversation(*texts: str) -> list[dict]:
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts)]


def test_marks_become_parts_and_sort_the_images(images):
    marked = conversation("<image>\nwhat is it? draw it", "it is red <image_gen> and so")
    rows = load_rows(write(images, [{"messages": marked, "images": ["red.png", "blue.png"]}, {"messages": conversation("hi", "hello")}]))
    assert [(part["type"], part["text"]) for part in rows[0]["messages"][0]["content"]] == [("image", None), ("text", "what is it? draw it")]
    assert [part["type"] for part in rows[0]["messages"][1]["content"]] == ["text", "output_image", "text"]
    assert (colours(rows[0]["images"]), colours(rows[0]["output_images"])) == ([RED], [BLUE])
    assert (rows[1]["images"], rows[1]["output_images"]) == ([], [])


def test_marks_without_images_are_refused(images):
    file = write(images, [{"messages": conversation("<image> what", "red"), "images": ["red.png", "blue.png"]}])
    with pytest.raises(ValueError, match="Row 0 of .*rows.json: 1 marks of images in the texts, but 2 images"):
        load_rows(file)


def test_parts_of_text():
    assert parts_of_text("  a<image_gen>\n\nb \n") == [
        {"type": "text", "text": "a"},
        {"type": "output_image", "text": None},
        {"type": "text", "text": "b"},
    ]
    assert parts_of_text("") == []


@pytest.mark.parametrize("ending", ["folder", "parquet", "json"])
def test_rows_of_parts_come_back_from_every_form(images, ending):
    row = {
        "messages": [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "a"}]}],
        "images": [str(images / "red.png")],
    }
    path = images / f"rows.{ending}"
    if ending == "folder":
        Dataset.from_list([row]).save_to_disk(path)
    elif ending == "parquet":
        stored = {"bytes": (images / "red.png").read_bytes(), "path": None}
        Dataset.from_list([{**row, "images": [stored]}]).to_parquet(path)
    else:
        path = write(images, [{**row, "images": ["red.png"]}])
    read = load_rows(path)[0]
    assert [(part["type"], part["text"]) for part in read["messages"][0]["content"]] == [("image", None), ("text", "a")]
    assert colours(read["images"]) == [RED]


def test_codes_pass_and_the_column_of_images_is_added(tmp_path):
    messages = [{"role": "assistant", "content": [{"type": "output_image", "text": None}]}]
    Dataset.from_list([{"messages": messages, "output_image_codes": [[1, 2, 3]]}]).save_to_disk(tmp_path / "rows")
    assert load_rows(tmp_path / "rows")[0] | {"messages": 0} == {
        "messages": 0,
        "output_image_codes": [[1, 2, 3]],
        "images": [],
        "output_images": [],
    }


@pytest.mark.parametrize("streaming", [False, True], ids=["ahead", "streaming"])
def test_brackets_in_a_path_are_no_pattern(tmp_path, streaming):
    """A folder whose name the pattern would find instead stands beside each."""
    for name in ("set[1]", "set1"):
        row = {"prompt": "say", "completion": name}
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text(json.dumps(row))
        Dataset.from_list([row]).to_parquet(tmp_path / name / "table" / "rows.parquet")
        PILImage.new("RGB", (8, 8)).save(tmp_path / name / "rows.png")
        (tmp_path / name / "images").mkdir()
        PILImage.new("RGB", (8, 8)).save(tmp_path / name / "images" / "red.png")
        (tmp_path / name / "images" / "metadata.jsonl").write_text(json.dumps({"file_name": "red.png", "text": name}))
    for part in ("rows.jsonl", "table", "table/rows.parquet", "images"):
        (row,) = load_rows(tmp_path / "set[1]" / part, streaming=streaming)
        assert "set[1]" in json.dumps(row["messages"]), part
    assert len(list(load_rows(tmp_path / "set*" / "*.jsonl", streaming=streaming))) == 2


def test_what_is_no_dataset_of_rows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no dataset at .*nothing"):
        load_rows(tmp_path / "nothing")
    with pytest.raises(ValueError, match="Row 0 of .*rows.json: rows have the columns text, of which none tells what to do"):
        load_rows(write(tmp_path, [{"text": "a"}]))
