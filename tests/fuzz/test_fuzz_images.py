"""Images and arrays of any kind: read as plain RGB, or refused in words."""

import base64
import functools
import io
import subprocess
import sys

import numpy as np
import torch
from fuzzing import fuzzed, policy
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from vargpt_hf.processing import VargptCLIPImageProcessor, VargptImageProcessor

PROCESSOR = VargptImageProcessor(schedules=[[1, 2]], downsampling=8, resize_factor=1.0, max_pixels=1_000_000)
READER = VargptCLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "RGBa", "La", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F")
KINDS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "ICO", "TGA", "JPEG2000", "AVIF", "EPS", "PCX", "SGI", "DDS", "PDF")
DTYPES = [
    "uint8",
    "int8",
    "uint16",
    "int32",
    "int64",
    "uint64",
    "bool",
    "float16",
    "float32",
    "float64",
    "complex64",
    "S2",
    "U2",
    "datetime64[s]",
    "object",
]
SIDES = st.one_of(st.integers(0, 9), st.sampled_from([1, 3, 4, 16, 300]))


def look(given):
    """What is accepted is an RGB image within the limits, and goes both ways through the processor."""
    found = PROCESSOR.fetch_images(given)
    if isinstance(found, Image.Image):
        assert found.mode == "RGB" and 0 < found.width * found.height <= PROCESSOR.max_pixels
        assert np.isfinite(READER(found, return_tensors="np")["pixel_values"]).all()
        pixels = PROCESSOR(given, return_tensors="pt")["output_pixel_values"]
        assert pixels.shape == (1, 3, 16, 16) and pixels.abs().max() <= 1


@functools.cache
def avif_files() -> list[bytes]:
    """AVIF files of several modes and sizes, written by a process of its own: the encoder has crashed whole test processes."""
    code = """
import base64, io
from PIL import Image
for mode in ("L", "RGB", "RGBA"):
    for size, more in (((1, 1), {}), ((40, 7), {}), ((9, 30), {"save_all": True, "append_images": [Image.new(mode, (9, 30), 1)]})):
        file = io.BytesIO()
        Image.new(mode, size).save(file, "AVIF", max_threads=1, **more)
        print(base64.b64encode(file.getvalue()).decode())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [base64.b64decode(line) for line in done.stdout.split()]


def written(mode: str, size: tuple[int, int], colour: int, kind: str, options: dict) -> bytes | None:
    """A file of one kind; None where Pillow cannot write the mode as it."""
    file = io.BytesIO()
    try:
        Image.new(mode, size, colour).save(file, kind, **options)
    except Exception:  # of as many kinds as there are writers
        return None
    return file.getvalue()


@st.composite
def files(draw):
    """Files of every kind and mode, of several frames, turned, cut short, with bytes changed."""
    size = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    mode, kind = draw(st.sampled_from(MODES)), draw(st.sampled_from(KINDS))
    colour = draw(st.sampled_from([0, 1]))
    options = {}
    if draw(st.booleans()):
        exif = Image.Exif()
        exif[0x0112] = draw(st.integers(-1, 2**16 - 1))
        options["exif"] = exif
    if draw(st.integers(0, 4)) == 0:
        options |= {"save_all": True, "append_images": [Image.new(mode, size, 1)]}
    content = draw(st.sampled_from(avif_files())) if kind == "AVIF" else written(mode, size, colour, kind, options)
    assume(content is not None)
    content = bytearray(content)
    for place, value in draw(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6)):
        content[place % len(content)] = value
    if draw(st.booleans()):
        del content[draw(st.integers(0, len(content))) :]
    return bytes(content)


@fuzzed(content=files(), form=st.sampled_from(["bytes", "base64", "url", "dict", "text in dict", "view"]))
def test_files_of_every_kind(content, form):
    text = base64.b64encode(content).decode()
    given = {
        "bytes": content,
        "base64": text,
        "url": f"data:image/png;base64,{text}",
        "dict": {"bytes": content, "path": None},
        "text in dict": {"base64": text},
        "view": memoryview(content),
    }[form]
    with policy():
        look(given)


@fuzzed(
    array=st.tuples(st.sampled_from(DTYPES), st.lists(SIDES, max_size=5).map(tuple), st.floats() | st.integers(-300, 70000)),
    as_tensor=st.booleans(),
)
def test_arrays_of_every_kind(array, as_tensor):
    dtype, shape, value = array
    assume(np.prod(shape, dtype=float) <= 200_000)
    try:
        given = np.full(shape, value).astype(dtype)
        given = torch.from_numpy(given) if as_tensor else given
    except (TypeError, ValueError, OverflowError):  # no such array
        assume(False)
    with policy():
        look(given)


@fuzzed(array=arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=3, max_side=20)))
def test_small_arrays_keep_their_values(array):
    with policy():
        found = PROCESSOR.fetch_images(array)
        if array.ndim == 3 and array.shape[2] == 3:
            assert np.array_equal(np.asarray(found), array)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=20)
PATHS = st.sampled_from(
    [
        "/dev/zero",
        "/dev/stdin",
        "/proc/self/mem",
        "/",
        ".",
        "a\0b",
        "x" * 5000,
        "data:,",
        "data:image/png;base64,",
        "https://",
        "file:///etc/passwd",
    ]
)
ANYTHING = st.recursive(
    SCALARS | PATHS | st.sets(st.integers()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(st.sampled_from(["bytes", "path", "url", "base64", "image", "a"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@fuzzed(given=ANYTHING)
def test_what_is_no_image(given):
    with policy():
        look(given)
        PROCESSOR(given)
