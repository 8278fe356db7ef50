"""Rows of data in any form: made into the one form that trains, or refused in one error with file, row and cause; none is lost."""

import base64
import io
import json
import tempfile
from pathlib import Path

import numpy as np
from datasets import disable_progress_bars
from fuzzing import fuzzed, policy
from hypothesis import strategies as st
from PIL import Image

from vargpt_hf.training.data import load_rows
from vargpt_hf.training.readers import to_pairs, to_rows, undecoded
from vargpt_hf.training.rows import read_pair, read_row

disable_progress_bars()
FILE = io.BytesIO()
Image.new("RGB", (8, 8), "red").save(FILE, "PNG")
PNG = FILE.getvalue()
BASE64 = base64.b64encode(PNG).decode()

TEXTS = st.sampled_from(["a", "", " ", "<image>", "<image>\nwhat", "draw <image_gen>", "<image><image_gen>", "<|image_gen_start|>"]) | st.text(
    max_size=8
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6)
IMAGES = st.sampled_from(
    [
        "a.png",
        "/dev/zero",
        "https://example.org/a.png",
        BASE64,
        f"data:image/png;base64,{BASE64}",
        "data:image/png,x",
        {"path": "a.png"},
        {"bytes": BASE64},
        {"a": 1},
    ]
)
PYTHON_IMAGES = IMAGES | st.sampled_from(
    [PNG, Path("a.png"), Image.new("RGB", (4, 4)), np.zeros((4, 4, 3), np.uint8), np.zeros((2, 2, 2, 2)), np.nan]
)
PARTS = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}),
    st.fixed_dictionaries({"type": st.sampled_from(["image", "output_image"])}, optional={"image": IMAGES, "codes": JSON, "text": st.none()}),
    st.fixed_dictionaries({"type": st.just("image_url"), "image_url": IMAGES | st.fixed_dictionaries({"url": IMAGES})}),
    st.dictionaries(st.sampled_from(["type", "text", "image"]), JSON),
)
CONTENTS = TEXTS | st.lists(PARTS, max_size=3) | JSON
ROLES = st.sampled_from(["user", "assistant", "system", "human", "gpt"]) | SCALARS
TURNS = st.lists(
    st.fixed_dictionaries({"role": ROLES, "content": CONTENTS}) | st.fixed_dictionaries({"from": ROLES, "value": CONTENTS}) | JSON, max_size=3
)


def columns(images):
    """Rows of known columns with right and wrong values, and of others."""
    seen = images | st.lists(images, max_size=3) | JSON
    codes = st.lists(st.lists(st.integers(-1, 5000), max_size=3), max_size=2) | JSON
    known = {
        **{name: TURNS | TEXTS | JSON for name in ("messages", "conversations", "prompt", "completion", "chosen", "rejected")},
        **{name: seen for name in ("images", "image", "output_images", "output_image", "jpg", "chosen_images", "photo")},
        **{name: TEXTS | JSON for name in ("text", "caption", "json", "source", "length", "image_tokenizer_fingerprint")},
        **{name: codes for name in ("output_image_codes", "chosen_codes")},
    }
    some = st.sets(st.sampled_from(sorted(known)), max_size=4).flatmap(
        lambda names: st.fixed_dictionaries({name: known[name] for name in names})
    )
    chats = st.fixed_dictionaries({"messages": TURNS}, optional={"images": seen, "output_images": seen})
    pairs = st.fixed_dictionaries({"prompt": TURNS | TEXTS, "chosen": TURNS | TEXTS, "rejected": TURNS | TEXTS}, optional={"images": seen})
    captioned = st.fixed_dictionaries({"image": seen, "text": TEXTS | JSON})
    return some | chats | pairs | captioned | st.dictionaries(st.text(max_size=5), JSON, max_size=3)


def is_ready(row):
    """As many images as parts that stand for them."""
    kinds = [part["type"] for message in row["messages"] for part in message["content"]]
    assert kinds.count("image") == len(row["images"]) and set(kinds) <= {"text", "image", "output_image"}
    assert kinds.count("output_image") == len(row.get("output_image_codes") or row["output_images"])
    for image in (*row["images"], *row["output_images"]):
        assert set(image) == {"bytes", "path"} and (image["bytes"] is None) != (image["path"] is None)


@fuzzed(row=columns(PYTHON_IMAGES) | JSON, task=st.sampled_from(["draw", "describe"]))
def test_rows_in_python(row, task):
    with policy():
        is_ready(read_row(row, task=task))


@fuzzed(row=columns(PYTHON_IMAGES))
def test_pairs_in_python(row):
    with policy():
        pair = read_pair(row)
        for side in ("chosen", "rejected"):
            is_ready(
                {"messages": pair[side], "images": [], "output_images": pair[f"{side}_images"], "output_image_codes": pair.get(f"{side}_codes")}
            )


@fuzzed(rows=st.lists(columns(PYTHON_IMAGES) | JSON, max_size=3))
def test_lists_of_rows(rows):
    for convert in (to_rows, to_pairs):
        with policy():
            assert len(convert(rows)) == len(rows)


def told(error, file):
    assert f" of {file}" in str(error) and str(error).startswith("Row ") or str(file) in str(error), str(error)


@fuzzed(
    rows=st.lists((columns(IMAGES) | JSON).map(json.dumps) | st.text(max_size=10), max_size=4),
    ending=st.sampled_from(["jsonl", "json"]),
    cut=st.integers(0, 10_000),
    streaming=st.booleans(),
)
def test_files_of_rows(rows, ending, cut, streaming):
    """Ahead and streamed; with faults kept, every row comes, and with as many faults as reading row by row finds."""
    with tempfile.TemporaryDirectory() as folder, policy(cpu_seconds=30):
        file = Path(folder) / f"rows.{ending}"
        text = "\n".join(rows) if ending == "jsonl" else f"[{', '.join(rows)}]"
        file.write_bytes(text.encode("utf-8", "surrogatepass")[: len(text) - (cut if cut < len(text) else 0)])
        if not streaming:
            try:
                found = list(undecoded(load_rows(file, streaming=True, keep_faults=True)))
            except ValueError as error:
                told(error, file)
                return
            faults = [row["fault"] for row in found if row["fault"]]
            for fault in faults:
                told(fault, file)
        try:
            rows_read = len(list(undecoded(load_rows(file, streaming=streaming))))
        except ValueError as error:
            told(error, file)
            raise
        assert streaming or (rows_read == len(found) and not faults)
