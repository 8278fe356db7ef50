"""Every form in which people have data, read into the one form of rows; ahead and as a stream."""

import base64
import io
import json
import tarfile

import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from vargpt_hf.training.data import load_rows

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture(params=[False, True], ids=["ahead", "streaming"])
def read(request):
    """Rows of a path as a list, images as the colours that they show."""

    def rows(path, **options):
        found = []
        for row in load_rows(path, streaming=request.param, **options):
            turns = [(m["role"], [part["text"] or part["type"] for part in m["content"]]) for m in row["messages"]]
            found.append((turns, *([colour(image) for image in row[column]] for column in ("images", "output_images"))))
        return found

    return rows


def colour(image):
    """The nearest of the two, since JPEG does not keep them exactly."""
    red, _, blue = image.convert("RGB").getpixel((4, 4))
    return RED if red > blue else BLUE


def encoded(rgb, kind="PNG"):
    file = io.BytesIO()
    PILImage.new("RGB", (8, 8), rgb).save(file, kind)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """red.png and blue.png in a folder of their own."""
    (tmp_path / "images" / "n01").mkdir(parents=True)
    for name, rgb in (("red.png", RED), ("n01/blue.png", BLUE)):
        (tmp_path / "images" / name).write_bytes(encoded(rgb))
    return tmp_path


def write_json(path, rows):
    path.write_text(json.dumps(rows))
    return path


LLAVA = [
    {
        "id": "000000033471",
        "image": "red.png",
        "conversations": [{"from": "human", "value": "<image>\nWhat colour?"}, {"from": "gpt", "value": "Red."}],
    },
    {"id": "wgByO4Y_0", "model": "", "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi!"}]},
    {
        "id": 37,
        "image": "n01/blue.png",
        "conversations": [{"from": "human", "value": "Name it.\n<image>"}, {"from": "gpt", "value": "It is blue."}],
    },
]
LLAVA_ROWS = [
    ([("user", ["image", "What colour?"]), ("assistant", ["Red."])], [RED], []),
    ([("user", ["Hello"]), ("assistant", ["Hi!"])], [], []),
    ([("user", ["Name it.", "image"]), ("assistant", ["It is blue."])], [BLUE], []),
]


def test_llava_conversations(folder, read):
    """LLaVA-1.5's mixture: some rows without an image, ids of several types."""
    file = write_json(folder / "llava_v1_5_mix665k.json", LLAVA)
    assert read(file, images=folder / "images") == LLAVA_ROWS


def test_llava_onevision(tmp_path, read):
    """Images inside of parquet; a row whose text has no mark for its image."""
    features = Features({"id": Value("string"), "image": Image(), "conversations": List({"from": Value("string"), "value": Value("string")})})
    rows = [
        {"id": "a", "image": {"bytes": encoded(RED)}, "conversations": LLAVA[0]["conversations"]},
        {"id": "b", "image": None, "conversations": LLAVA[1]["conversations"]},
        {
            "id": "c",
            "image": {"bytes": encoded(BLUE)},
            "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Blue."}],
        },
    ]
    (tmp_path / "vqa").mkdir()
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "vqa" / "train-00000.parquet")
    expected = [*LLAVA_ROWS[:2], ([("user", ["image", "What?"]), ("assistant", ["Blue."])], [BLUE], [])]
    assert read(tmp_path / "vqa") == expected


INSTRUCT = [
    {
        "messages": [{"role": "user", "content": "Draw a blue thing."}, {"role": "assistant", "content": "Here it is: <image_gen>"}],
        "images": ["train/n01/blue.png"],
    },
    {
        "messages": [{"role": "user", "content": "<image>\nMake this blue."}, {"role": "assistant", "content": "<image_gen>"}],
        "images": ["red.png", "train/n01/blue.png"],
    },
]
INSTRUCT_ROWS = [
    ([("user", ["Draw a blue thing."]), ("assistant", ["Here it is: ", "output_image"])], [], [BLUE]),
    ([("user", ["image", "Make this blue."]), ("assistant", ["output_image"])], [RED], [BLUE]),
]


def test_imagenet_instruct_with_a_folder(folder, read):
    (folder / "images" / "n01").rename(folder / "n01")
    (folder / "images" / "train").mkdir()
    (folder / "n01").rename(folder / "images" / "train" / "n01")
    assert read(write_json(folder / "instruct.json", INSTRUCT), images=folder / "images") == INSTRUCT_ROWS


def test_imagenet_instruct_with_parquet(tmp_path, read):
    """ImageNet as it lies on the Hub: bytes, in names that have the class added."""
    (tmp_path / "imagenet").mkdir()
    images = [{"bytes": encoded(BLUE), "path": "blue_n01.png"}, {"bytes": encoded(RED), "path": "red.png"}]
    features = Features({"image": Image(), "label": Value("int64")})
    for index, image in enumerate(images):
        Dataset.from_list([{"image": image, "label": 0}], features=features).to_parquet(tmp_path / "imagenet" / f"train-{index}.parquet")
    file = write_json(tmp_path / "instruct.json", INSTRUCT)
    assert read(file, images=tmp_path / "imagenet") == INSTRUCT_ROWS
    with pytest.raises(ValueError, match="no image green.png in the parquet files"):
        read(write_json(file, [{**INSTRUCT[0], "images": ["green.png"]}]), images=tmp_path / "imagenet")


def test_parquet_of_images_of_one_name(tmp_path, read):
    """Their folders tell them apart; where nothing does, that is said."""
    images = [{"bytes": encoded(rgb), "path": path} for rgb, path in ((BLUE, "a/1.png"), (RED, "b/1.png"), (RED, "2.png"), (BLUE, "2.png"))]
    Dataset.from_list([{"image": image} for image in images], features=Features({"image": Image()})).to_parquet(tmp_path / "images.parquet")

    def colors(name):
        ((_, found, _),) = read(write_json(tmp_path / "rows.json", [{**LLAVA[0], "image": name}]), images=tmp_path / "images.parquet")
        return found

    assert (colors("a/1.png"), colors("train/a/1.png"), colors("b/1.png")) == ([BLUE], [BLUE], [RED])
    for name in ("1.png", "c/1.png", "2.png"):
        with pytest.raises(ValueError, match=rf"2 images in the parquet files of images are called \d.png, and nothing says which {name} is"):
            colors(name)


def test_columns_of_trl(folder, read):
    text = {"type": "text", "text": "What colour?"}
    asked = [{"role": "user", "content": [{"type": "image", "text": None}, text]}]
    said = [{"role": "assistant", "content": [{"type": "text", "text": "Red."}]}]
    images = ["images/red.png"]
    assert read(write_json(folder / "chat.json", [{"messages": asked + said, "images": images}])) == LLAVA_ROWS[:1]
    assert read(write_json(folder / "pair.json", [{"prompt": asked, "completion": said, "images": images}])) == LLAVA_ROWS[:1]
    assert read(write_json(folder / "texts.json", [{"prompt": "What colour?", "completion": "Red.", "image": images[0]}])) == LLAVA_ROWS[:1]


DRAWN = [
    ([("user", ["a blue thing"]), ("assistant", ["output_image"])], [], [BLUE]),
    ([("user", ["a red thing"]), ("assistant", ["output_image"])], [], [RED]),
]


def test_a_folder_of_images_with_texts(folder, read):
    for name, words in (("red.txt", "a red thing\n"), ("n01/blue.txt", "a blue thing")):
        (folder / "images" / name).write_text(words)
    assert read(folder / "images") == DRAWN
    described = ([("user", ["image", "what is it"]), ("assistant", ["a blue thing"])], [BLUE], [])
    assert read(folder / "images", task="describe", prompt="what is it")[0] == described
    assert read(folder / "images", prompt="draw {}, please")[0][0][0] == ("user", ["draw a blue thing, please"])
    (folder / "images" / "red.txt").unlink()
    with pytest.raises(ValueError, match="1 of 2 images .* have no caption, the first is .*red.png"):
        read(folder / "images")


def test_relative_paths(folder, read, monkeypatch):
    """Of the dataset and of the folder with its images."""
    for name, words in (("red.txt", "a red thing"), ("n01/blue.txt", "a blue thing")):
        (folder / "images" / name).write_text(words)
    write_json(folder / "llava.json", LLAVA)
    monkeypatch.chdir(folder)
    assert read("images") == DRAWN
    assert read("llava.json", images="images") == LLAVA_ROWS
    monkeypatch.chdir(folder / "images")
    assert read("../llava.json", images=".") == LLAVA_ROWS


def test_a_folder_of_images_with_metadata(folder, read):
    lines = [{"file_name": "n01/blue.png", "text": "a blue thing"}, {"file_name": "red.png", "text": "a red thing"}]
    (folder / "images" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert read(folder / "images") == DRAWN


@pytest.mark.parametrize("caption", ["txt", "json"])
def test_webdataset(tmp_path, read, caption):
    for shard, (rgb, words) in enumerate(((BLUE, "a blue thing"), (RED, "a red thing"))):
        with tarfile.open(tmp_path / f"shard-{shard:03}.tar", "w") as tar:
            text = words if caption == "txt" else json.dumps({"caption": words, "width": 8})
            for suffix, content in (("jpg", encoded(rgb, "JPEG")), (caption, text.encode())):
                entry = tarfile.TarInfo(f"{shard}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    assert read(tmp_path) == DRAWN
    assert read(tmp_path / "shard-*.tar") == DRAWN


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": INSTRUCT[0]["messages"], "images": []}, "Row 0 of .*rows.json: 1 marks of images in the texts, but 0 images"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "text": None}]}], "images": []},
            "Row 0 of .*rows.json: the turns have 1 images to read and 0 to draw, but there are 0 `images`",
        ),
        ({"question": "?", "answer": "!"}, "have the columns answer, question, of which none tells what to do"),
    ],
)
def test_rows_that_contradict_themselves(tmp_path, read, row, message):
    with pytest.raises(Exception, match=message):
        read(write_json(tmp_path / "rows.json", [row]))


def test_unknown_task(tmp_path, read):
    with pytest.raises(ValueError, match="`task` is 'dance'; it must be one of draw, describe"):
        read(write_json(tmp_path / "rows.json", [{"text": "a"}]), task="dance")


LATE = [
    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}], "id": 1},
    *({"messages": [{"role": "user", "content": f"Text {index}"}]} for index in range(3)),
    {
        "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Blue."}],
        "image": "images/n01/blue.png",
        "id": "a",
    },
    {
        "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}],
        "images": ["images/red.png"],
        "id": {},
    },
    {"conversations": [{"from": "human", "value": "What?"}], "image": ["images/red.png"]},
    {"image": {"path": "images/red.png"}, "text": "a red thing"},
    {"image": base64.b64encode(encoded(RED)).decode(), "caption": "a red thing"},
]
ASKED = ("user", ["image", "What?"])
LATE_ROWS = [
    ([("user", ["Hello"]), ("assistant", ["Hi!"])], [], []),
    *(([("user", [f"Text {index}"])], [], []) for index in range(3)),
    ([ASKED, ("assistant", ["Blue."])], [BLUE], []),
    ([ASKED], [RED], []),
    ([ASKED], [RED], []),
    DRAWN[1],
    DRAWN[1],
]


@pytest.mark.parametrize("ending", ["jsonl", "json", "lines in .json", "object"])
def test_columns_may_come_late_and_change_their_type(folder, read, ending):
    text = "\n".join(map(json.dumps, LATE)) if "l" in ending else json.dumps(LATE if ending == "json" else {"version": 1, "data": LATE})
    path = folder / f"rows.{'jsonl' if ending == 'jsonl' else 'json'}"
    path.write_text("\ufeff" + text + "\n\n" if ending == "jsonl" else text, encoding="utf-8")
    assert read(path) == LATE_ROWS


def test_a_file_that_was_changed_is_read_anew(folder, read):
    path = write_json(folder / "rows.json", LATE[:1])
    assert read(path) == LATE_ROWS[:1]
    assert read(write_json(path, LATE[:2])) == LATE_ROWS[:2]


def test_codes_in_json(tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "a"}]},
        {"prompt": "draw", "completion": "<image_gen>", "output_image_codes": [[1, 2]], "image_tokenizer_fingerprint": "b"},
    ]
    for streaming in (False, True):
        found = list(load_rows(write_json(tmp_path / "rows.json", rows), streaming=streaming))
        assert [row["output_image_codes"] or [] for row in found] == [[], [[1, 2]]] and found[1]["image_tokenizer_fingerprint"] == "b"
        assert "output_image_codes" not in next(iter(load_rows(write_json(tmp_path / "rows.json", rows[:1]), streaming=streaming)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"messages": []}\n{"a"', r"Row 0 of .*rows.jsonl \(line 1\): rows have the columns \(none\)"),
        (b'\n{"messages": [{"role": "user", "content": "a"}]}\n\n{"a"\n', r"Row 1 of .*rows.jsonl \(line 4\): it is not JSON: Expecting"),
        (b'{"messages": [{"role": "user", "content": "\xe4"}]}', r"Row 0 of .*rows.jsonl \(line 1\): it is not UTF-8"),
        (b"[" * 100_000, r"Row 0 of .*: it is not JSON"),
        (b'{"conversations": [{"value": "a"}]}', "Row 0 of .*: message 0 has role None"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "Row 0 of .*: the turns have 1 images"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "Row 0 of .*: "),
        (b'{"prompt": "draw", "completion": "<image_gen>", "output_image_codes": [["a"]]}', "Row 0 of .*: "),
        (b'{"prompt": "draw", "completion": "<image_gen>", "output_image_codes": [[99999999999]]}', "Row 0 of .*: "),
    ],
)
def test_every_fault_names_file_row_and_cause(tmp_path, read, content, message):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path / "rows.jsonl")
    assert type(caught.value) is ValueError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"messages": [{"role": "user", "content": "a"}]}, {"a', "Row 1 of .*rows.json: it is not JSON"),
        ('[{"messages": [{"role": "user", "content": "a"}]}, ', "Row 1 of .*rows.json: the file ends before its array does"),
        ("[5]", "Row 0 of .*rows.json: a row is a int"),
    ],
)
def test_files_cut_short(tmp_path, read, text, message):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "rows.json")


def test_broken_files_of_other_kinds_are_named(tmp_path, read):
    for name in ("rows.parquet", "rows.arrow", "rows.tar"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises((ValueError, OSError), match=name) as caught:
            read(tmp_path / name)
        assert type(caught.value) is ValueError or isinstance(caught.value, OSError)


@pytest.mark.parametrize("captions", ["txt and json", "json"])
def test_a_folder_of_img2dataset(tmp_path, read, caplog, captions):
    """Its layout `files`: images with .txt and .json beside them, and what it says about the download."""
    for index, (rgb, words) in enumerate(((BLUE, "a blue thing"), (RED, "a red thing"))):
        file = tmp_path / "data" / "00000" / f"00000000{index}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(rgb, "JPEG"))
        file.with_suffix(".json").write_text(
            json.dumps({"caption": words, "url": "https://example.org/a.jpg", "key": index, "status": "success"})
        )
        if captions == "txt and json":
            file.with_suffix(".txt").write_text(words)
    (tmp_path / "data" / "00000_stats.json").write_text(json.dumps({"count": 2}))
    Dataset.from_dict({"url": ["a", "b"], "caption": ["a", "b"]}).to_parquet(tmp_path / "data" / "00000.parquet")
    assert read(tmp_path / "data") == DRAWN
    assert "2 images with captions beside them, which are taken, and 1 files such as 00000.parquet" in caplog.text
    (tmp_path / "data" / "00000.parquet").unlink()
    assert read(tmp_path / "data") == DRAWN


def test_a_folder_of_images_may_hold_notes(folder, read):
    file = write_json(folder / "llava.json", LLAVA)
    write_json(folder / "images" / "notes.json", {"license": "none"})
    assert read(file, images=folder / "images") == LLAVA_ROWS
    with pytest.raises(ValueError, match="llava.json has no column of images, only JSON: give a folder"):
        read(file, images=file)


def test_a_dataset_beside_its_images_is_not_taken_for_captions(folder, read):
    write_json(folder / "images" / "llava.json", LLAVA)
    assert read(folder / "images") == LLAVA_ROWS
