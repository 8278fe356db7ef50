"""Every form in which a row's images and turns are written comes out as the one form that trains."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from vargpt_hf.training.rows import read_pair, read_row

RED, BLUE = PILImage.new("RGB", (8, 8), (255, 0, 0)), PILImage.new("RGB", (8, 8), (0, 0, 255))


def bytes_of(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def base64_of(image):
    return base64.b64encode(bytes_of(image)).decode()


def colour(found):
    """What a picture of a row shows, or its path."""
    if found["bytes"] is None:
        return found["path"]
    return {(255, 0, 0): "red", (0, 0, 255): "blue"}[PILImage.open(io.BytesIO(found["bytes"])).getpixel((0, 0))]


def shown(row):
    """(turns, images to read, images to draw) of a row."""
    turns = [(message["role"], [part["text"] or part["type"] for part in message["content"]]) for message in row["messages"]]
    return turns, [colour(each) for each in row["images"]], [colour(each) for each in row["output_images"]]


def part(kind, **keys):
    return {"type": kind, **keys}


def turns(user, assistant="red"):
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


ASKED = [("user", ["image", "what?"]), ("assistant", ["red"])]
PARTS = turns([part("image"), part("text", text="what?")], [part("text", text="red")])

IMAGES = {
    "path": ("a.png", "a.png"),
    "pathlib": (Path("a.png"), "a.png"),
    "url": ("https://example.org/a.png", "https://example.org/a.png"),
    "bytes": (bytes_of(RED), "red"),
    "dict of bytes": ({"bytes": bytes_of(RED), "path": None}, "red"),
    "dict of path": ({"bytes": None, "path": "a.png"}, "a.png"),
    "dict of url": ({"url": "https://example.org/a.png"}, "https://example.org/a.png"),
    "pil": (RED, "red"),
    "array": (np.asarray(RED), "red"),
    "tensor": (torch.from_numpy(np.asarray(RED).copy()).permute(2, 0, 1), "red"),
    "base64": (base64_of(RED), "red"),
    "data url": (f"data:image/png;base64,{base64_of(RED)}", "red"),
}


@pytest.mark.parametrize("column", ["image", "images"])
@pytest.mark.parametrize("listed", [False, True], ids=["alone", "list"])
@pytest.mark.parametrize("form", IMAGES)
def test_every_form_of_a_image(form, listed, column):
    image, expected = IMAGES[form]
    row = {column: [image] if listed else image}
    for chat in (PARTS, turns("<image>\nwhat?"), turns("what?")):
        assert shown(read_row({"messages": chat, **row})) == (ASKED, [expected], [])
    llava = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "red"}]
    assert shown(read_row({"conversations": llava, **row})) == (ASKED, [expected], [])
    assert shown(read_row({"conversations": turns("<image>\nwhat?"), **row})) == (ASKED, [expected], [])
    assert shown(read_row({"prompt": "what?", "completion": "red", **row})) == (ASKED, [expected], [])
    assert shown(read_row({**row, "text": "red"})) == ([("user", ["red"]), ("assistant", ["output_image"])], [], [expected])


@pytest.mark.parametrize(
    "seen",
    [
        part("image_url", image_url={"url": f"data:image/png;base64,{base64_of(RED)}"}),
        part("image_url", image_url=f"data:image/png;base64,{base64_of(RED)}"),
        part("image", image=RED),
        part("image", base64=base64_of(RED), url=None),
        part("image", image={"bytes": bytes_of(RED), "path": None}),
    ],
)
def test_parts_that_carry_their_images(seen):
    chat = turns([seen, part("text", text="what?")], [part("text", text="red"), part("output_image", image=BLUE)])
    assert shown(read_row({"messages": chat, "images": None})) == ([ASKED[0], ("assistant", ["red", "output_image"])], ["red"], ["blue"])
    with_listed = turns([seen, part("image"), part("text", text="what?")])
    assert shown(read_row({"messages": with_listed, "image": "b.png"}))[1] == ["red", "b.png"]
    with pytest.raises(ValueError, match="have 0 images to read and 0 to draw, but there are 1 `images`"):
        read_row({"messages": turns([seen], [part("text", text="red")]), "image": "b.png"})


def test_marks_with_images_in_one_list_or_in_two():
    chat = turns("<image> make it blue", "<image_gen>")
    expected = ([("user", ["image", " make it blue"]), ("assistant", ["output_image"])], ["red"], ["blue"])
    assert shown(read_row({"messages": chat, "images": [RED, BLUE]})) == expected
    assert shown(read_row({"messages": chat, "images": [RED], "output_images": [BLUE]})) == expected
    assert shown(read_row({"messages": chat, "image": RED, "output_image": BLUE})) == expected
    codes = read_row({"messages": chat, "images": [RED], "output_image_codes": [[1, 2]], "image_tokenizer_fingerprint": "a"})
    assert shown(codes) == (expected[0], ["red"], []) and (codes["output_image_codes"], codes["image_tokenizer_fingerprint"]) == ([[1, 2]], "a")
    carried = read_row({"messages": turns("draw", [part("output_image", codes=[1, 2])])})
    assert carried["output_image_codes"] == [[1, 2]] and carried["output_images"] == []


@pytest.mark.parametrize("packed", [dict, str])
def test_a_chat_or_caption_in_the_column_json(packed):
    def pack(value):
        import json

        return value if packed is dict else json.dumps(value)

    assert shown(read_row({"jpg": RED, "json": pack({"conversations": turns("<image>\nwhat?"), "id": 3})})) == (ASKED, ["red"], [])
    drawn = ([("user", ["a red thing"]), ("assistant", ["output_image"])], [], ["red"])
    assert shown(read_row({"jpg": RED, "json": pack({"caption": "a red thing", "url": "https://x.org/a.jpg"}), "__key__": "0"})) == drawn


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"messages": turns("what?"), "images": ["a.png"], "image": "b.png"},
            "columns 'images' and 'image' both hold images|'image' and 'images'",
        ),
        (
            {"messages": turns("what?"), "photo": RED},
            "column 'photo' holds an image, but nothing in the row uses it: call the column `images`",
        ),
        ({"messages": turns("what?"), "mask": {"bytes": None, "path": "a.png"}}, "column 'mask' holds an image"),
        ({"image": "a.png", "text": "a", "output_images": ["b.png"]}, "column 'output_images' holds an image"),
        ({"messages": turns("what?"), "chosen_images": ["b.png"]}, "column 'chosen_images' holds an image"),
        ({"messages": turns("<image> what?"), "images": ["a.png", "b.png"]}, "1 marks of images in the texts, but 2 images"),
        ({"messages": turns("what?"), "images": [["a.png"]]}, r"images\[0\] is a list, not an image"),
        ({"messages": turns("what?"), "images": ["a.png", None]}, r"images\[1\] is None, not an image"),
        ({"messages": turns("what?"), "images": [7]}, "an image is a int"),
        ({"messages": turns("what?"), "images": {"width": 3}}, "neither `bytes` nor `path`"),
        ({"image": ["a.png", "b.png"], "text": "a"}, "a captioned row has one image, but there are 2"),
        ({"image": "a.png", "text": " "}, "no caption in 'text'"),
        ({"image": "a.png", "caption": ["a", "b"]}, "caption in 'caption' is a list; it must be a text"),
        ({"image": "a.png", "text": None}, "no caption in any of the columns text, caption"),
        ({"jpg": "a.png", "json": "{"}, "column 'json' is not JSON"),
        ({"messages": "hello"}, "column 'messages' is a str; it must be a list of messages"),
        ({"messages": ["hello"]}, "message 0 is a str; a message is a dict"),
        ({"messages": [{"role": "user", "content": 5}]}, "message 0 has a content of type int"),
        ({"messages": [{"from": "narrator", "value": "a"}]}, "role 'narrator'; roles are user"),
        ({"messages": [{"text": "a"}]}, "role None"),
        ({"messages": turns([part("audio")])}, "type 'audio'; types are text, image and output_image"),
        (
            {"messages": turns("draw", [part("output_image", codes=[1]), part("output_image")])},
            "some output_image parts have codes and others not",
        ),
        (
            {"messages": turns("draw", "<image_gen>"), "output_images": [RED], "output_image_codes": [[1]]},
            "both output_images and output_image_codes",
        ),
        ({}, r"rows have the columns \(none\)"),
        ([], "a row is a list; it must be a dict of columns"),
    ],
)
def test_rows_that_cannot_be_read(row, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        read_row(row)
    assert type(caught.value) in (ValueError, TypeError)


def test_every_form_of_a_pair():
    answers = {"chosen": turns("", "yes")[1:], "rejected": turns("", "no")[1:]}
    expected = {"prompt": [("user", ["image", "what?"])], "chosen": [("assistant", ["yes"])], "rejected": [("assistant", ["no"])]}
    question = turns("<image>\nwhat?")[:1]
    implicit = {side: question + answer for side, answer in answers.items()}
    for given in (
        {"prompt": question, **answers},
        {"prompt": "<image>\nwhat?", "chosen": "yes", "rejected": "no"},
        {"prompt": "what?", "chosen": "yes", "rejected": "no"},
        implicit,
    ):
        pair = read_pair({**given, "image": RED})
        assert {side: shown({**pair, "messages": pair[side], "output_images": []})[0] for side in expected} == expected
        assert [colour(each) for each in pair["images"]] == ["red"]


def test_pairs_that_draw():
    given = {"prompt": "draw", "chosen": "<image_gen>", "rejected": [{"role": "assistant", "content": [part("output_image", image=BLUE)]}]}
    pair = read_pair({**given, "chosen_images": RED})
    assert [colour(each) for each in pair["chosen_images"]] == ["red"] and [colour(each) for each in pair["rejected_images"]] == ["blue"]
    coded = read_pair({**given, "rejected": "<image_gen>", "chosen_codes": [[1]], "rejected_codes": [[2]], "image_tokenizer_fingerprint": "a"})
    assert (coded["chosen_codes"], coded["rejected_codes"], coded["image_tokenizer_fingerprint"]) == ([[1]], [[2]], "a")
    for row, message in (
        ({"prompt": "draw", "chosen": "a"}, "rejected is missing or empty"),
        ({"chosen": "a", "rejected": "b"}, "needs a `prompt`"),
        ({**given, "prompt": [{"role": "user", "content": [part("output_image", image=RED)]}]}, "prompt of a pair draws"),
        ({**given, "photo": RED, "chosen_images": RED}, "column 'photo' holds an image"),
        (given, "1 marks of images in the texts, but 0 images|0 `chosen_images`"),
    ):
        with pytest.raises(ValueError, match=message):
            read_pair(row)
