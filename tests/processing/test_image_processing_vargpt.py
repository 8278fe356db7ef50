"""Images in every form and mode to pixel values, refusals, and pixels back to images."""

import base64
import functools
import http.server
import io
import os
import struct
import tempfile
import threading
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from processing_helpers import SIDE, noise_picture
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vargpt_hf.processing import VargptImageProcessor, image_processing_vargpt


@pytest.fixture(scope="module")
def image_processor() -> VargptImageProcessor:
    return VargptImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, output_size=SIDE)


def encode(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixel data."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\0IDAT"


def test_understanding_equals_clip(image_processor):
    pictures = [noise_picture(0, 71, 50), noise_picture(1, 30, 90), noise_picture(2, 32, 32)]
    reference = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    expected = reference(pictures, return_tensors="pt")["pixel_values"]
    found = image_processor(pictures, return_tensors="pt")["pixel_values"]
    assert found.shape == (3, 3, 32, 32) and found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_default_sizes():
    image_processor = VargptImageProcessor()
    assert image_processor(noise_picture(0, 500, 400), return_tensors="pt")["pixel_values"].shape == (1, 3, 336, 336)
    output = image_processor.preprocess_output(noise_picture(0, 500, 400), return_tensors="pt")
    assert output["output_pixel_values"].shape == (1, 3, 256, 256)


def test_output_is_resized_then_centre_cropped(image_processor):
    picture = noise_picture(3, 100, 80)
    resized = picture.resize((int(54 * 100 / 80), 54), Image.Resampling.LANCZOS)  # 54 = 1.125 * 48, width 67
    expected = np.asarray(resized.crop((10, 3, 58, 51)), dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1
    found = image_processor.preprocess_output(picture, return_tensors="pt")["output_pixel_values"]
    assert found.dtype == torch.float32 and found.min() >= -1 and found.max() <= 1
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)


def test_output_of_right_size_is_untouched_and_comes_back():
    image_processor = VargptImageProcessor(output_size=SIDE, output_resize_factor=1.0)
    pictures = [noise_picture(0), noise_picture(1)]
    pixels = image_processor.preprocess_output(pictures, return_tensors="pt")["output_pixel_values"]
    for picture, returned in zip(pictures, image_processor.post_process(pixels), strict=True):
        assert returned.mode == "RGB" and returned.tobytes() == picture.tobytes()


def test_random_crop_is_seeded(image_processor):
    picture = noise_picture(4, 100, 100)

    def crop(**options):
        return image_processor.preprocess_output(picture, **options)["output_pixel_values"]

    assert np.array_equal(crop(random_crop=True, generator=5), crop(random_crop=True, generator=5))
    generator = torch.Generator().manual_seed(5)
    first, second = (crop(random_crop=True, generator=generator) for _ in range(2))
    assert np.array_equal(first, crop(random_crop=True, generator=5))
    assert not np.array_equal(first, second)
    assert np.array_equal(crop(generator=5), crop())  # without random_crop nothing is random


def test_post_process_clamps_and_rounds(image_processor):
    values = torch.tensor([-1.5, -1.0, 0.0, 1.0, 1.5, (100.4 / 127.5) - 1, (100.6 / 127.5) - 1])
    pixels = values.view(1, 1, 1, -1).expand(1, 3, 1, -1)
    assert np.asarray(image_processor.post_process(pixels)[0])[0, :, 0].tolist() == [0, 0, 128, 255, 255, 100, 101]
    assert image_processor.post_process(pixels.to(torch.bfloat16))[0].size == (7, 1)
    with pytest.raises(ValueError, match="NaN"):
        image_processor.post_process(torch.full((1, 3, 2, 2), torch.nan))
    with pytest.raises(ValueError, match=r"\(3, 2, 2\)"):
        image_processor.post_process(torch.zeros(3, 2, 2))
    with pytest.raises(TypeError, match="tensor of floating-point numbers .*got list"):
        image_processor.post_process([0.0])
    with pytest.raises(TypeError, match="got torch.uint8"):
        image_processor.post_process(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))


def test_every_form_gives_the_same_picture(image_processor, tmp_path):
    picture = noise_picture(6, 40, 30)
    path, data = tmp_path / "picture.png", encode(picture)
    path.write_bytes(data)
    array, text = np.asarray(picture), base64.b64encode(data).decode()
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms = [picture, path, str(path), data, bytearray(data), text, f"data:image/png;base64,{text}", {"bytes": data}]
    forms += [{"bytes": None, "path": str(path)}, array, array.transpose(2, 0, 1), array / 255.0, tensor, tensor / 255]
    forms += [array.astype(np.int64), array.astype(np.uint16) * 257, tensor.permute(1, 2, 0)]
    for index, found in enumerate(image_processor.fetch_images(forms)):
        assert found.mode == "RGB" and found.tobytes() == picture.tobytes(), index
    batch = image_processor.fetch_images([torch.stack([tensor, tensor])])
    assert [len(batch), len(batch[0])] == [1, 2]


def test_url(image_processor, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    picture = noise_picture(7)
    (tmp_path / "picture.png").write_bytes(encode(picture))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        assert image_processor.fetch_images(f"{address}/picture.png").tobytes() == picture.tobytes()
        with pytest.raises(ValueError, match=r"images \('http.*absent.png'\) cannot be fetched: .*404"):
            image_processor.fetch_images(f"{address}/absent.png")
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/endless", "it sends more than 1,000,000 bytes"),
        ("/drip", "it has not sent all within 0.5 seconds"),
        ("/silent", "timed out"),
        ("/to-a-file", "cannot be fetched: .*file"),
        ("/to-ftp", "cannot be fetched: .*ftp"),
        ("/round", "cannot be fetched: .*redirect"),
        ("/no-http", "cannot be fetched: "),
    ],
)
def test_addresses_that_do_not_end(image_processor, monkeypatch, path, message):
    """Bodies have a limit of bytes and of time, redirections stay with http."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name, value in (("MAX_FILE_BYTES", 1_000_000), ("URL_SECONDS_IN_ALL", 0.5), ("URL_TIMEOUT_SECONDS", 1)):
        monkeypatch.setattr(image_processing_vargpt, name, value)
    stopped = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            to = {"/to-a-file": "file:///etc/hostname", "/to-ftp": "ftp://127.0.0.1/a", "/round": "/round"}.get(self.path)
            if self.path == "/no-http":
                self.wfile.write(b"\0\0nonsense\n\n")
                return
            if self.path == "/silent":
                stopped.wait(5)
                return
            self.send_response(302 if to else 200)
            if to:
                self.send_header("Location", to)
            self.end_headers()
            try:
                while not to and not stopped.is_set():
                    self.wfile.write(b"a" * (2**16 if self.path == "/endless" else 1))
                    stopped.wait(0.0 if self.path == "/endless" else 0.1)
            except OSError:
                pass

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    start = time.monotonic()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            image_processor.fetch_images(f"http://127.0.0.1:{server.server_port}{path}")
        assert type(caught.value) is ValueError and time.monotonic() - start < 4
    finally:
        stopped.set()
        server.shutdown()
        server.server_close()


def colour_of(image_processor, picture) -> tuple[int, ...]:
    return image_processor.fetch_images(picture).getpixel((0, 0))


def test_modes_become_rgb(image_processor):
    def flat(mode, colour):
        return Image.new(mode, (4, 3), colour)

    palette = Image.new("P", (4, 3), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    clear_palette = palette.copy()
    clear_palette.info["transparency"] = 1
    cases = [
        (flat("RGBA", (255, 0, 0, 0)), (255, 255, 255)),
        (flat("RGBA", (200, 0, 0, 51)), (244, 204, 204)),  # a fifth of the colour on white
        (flat("LA", (0, 0)), (255, 255, 255)),
        (flat("L", 7), (7, 7, 7)),
        (flat("1", 1), (255, 255, 255)),
        (palette, (10, 20, 30)),
        (clear_palette, (255, 255, 255)),
        (flat("CMYK", (0, 255, 255, 0)), (255, 0, 0)),
        (flat("I;16", 32896), (128, 128, 128)),
        (flat("I", 65535), (255, 255, 255)),
        (np.full((4, 3), 257 * 9, np.uint16), (9, 9, 9)),
        (np.ones((4, 3), bool), (255, 255, 255)),
        (np.full((4, 3, 1), 0.5), (128, 128, 128)),
        (np.full((3, 4, 3), (1, 2, 3), np.uint8), (1, 2, 3)),  # either layout fits: arrays have channels last,
        (torch.tensor([1, 2, 3]).view(3, 1, 1).repeat(1, 4, 3), (1, 2, 3)),  # tensors have them first
    ]
    for index, (picture, expected) in enumerate(cases):
        assert colour_of(image_processor, picture) == expected, index


def test_files_of_unusual_modes(image_processor):
    deep = Image.fromarray(np.full((4, 3), 65535, np.uint16))
    assert colour_of(image_processor, encode(deep)) == (255, 255, 255)
    assert colour_of(image_processor, encode(deep, "TIFF")) == (255, 255, 255)
    red = colour_of(image_processor, encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert red[0] > 230 and max(red[1:]) < 25


def test_exif_orientation(image_processor):
    picture = noise_picture(8, 40, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    found = image_processor.fetch_images(encode(picture, exif=exif))
    assert found.size == (30, 40)
    assert found.tobytes() == picture.transpose(Image.Transpose.ROTATE_270).tobytes()
    assert image_processor.fetch_images(found).size == (30, 40)  # not turned once more


def test_camera_photograph_with_previews_is_accepted(image_processor):
    data = encode(noise_picture(0), "MPO", save_all=True, append_images=[noise_picture(1, 8, 8)])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert image_processor.fetch_images(data).size == (SIDE, SIDE)


def _pipe() -> str:
    path = os.path.join(tempfile.mkdtemp(), "pipe.png")
    os.mkfifo(path)
    return path


def _sparse_file() -> str:
    """A file of 300 MiB that takes no room."""
    path = os.path.join(tempfile.mkdtemp(), "large.png")
    with open(path, "wb") as file:
        file.truncate(300 * 2**20)
    return path


def refused_pictures():
    jpeg = encode(noise_picture(0, 200, 200), "JPEG")
    frames = [Image.new("L", (8, 8), 60 * index) for index in range(3)]
    gif = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    return {
        "truncated": (jpeg[: len(jpeg) // 2], "cannot be decoded: .*truncated.*save it anew"),
        "garbage": (b"no image at all", "cannot be read as an image .17 bytes.*Check"),
        "no bytes": (b"", "cannot be read as an image .0 bytes"),
        "gigantic": (png_header(10_000, 8_000), "too large: 10000x8000 is 80000000 pixels, the limit is 67108864"),
        "bomb": (png_header(60_000, 60_000), "too large: .*3600000000 pixels.*Make it smaller"),
        "empty image": (Image.new("RGB", (0, 5)), "no pixels: it is 0x5"),
        "empty array": (np.zeros((0, 5, 3), np.uint8), r"no pixels: its shape is \(0, 5, 3\)"),
        "strip": (Image.new("RGB", (2000, 2)), "2000x2: one side is more than 200 times"),
        "animated": (gif, r"animated.*3 frames.*image.seek\(0\); pass image.copy"),
        "absent": ("no/such/file.png", "'no/such/file.png'.*neither an existing file.*Check the path"),
        "model pixels": (torch.full((3, 4, 4), -0.5), "values from -0.5 to -0.5.*post_process"),
        "NaN": (np.full((4, 4, 3), np.nan), "values from nan"),
        "beyond 8 bits": (np.full((4, 4, 3), 256), "outside 0..255"),
        "shape": (np.zeros((6, 6, 5), np.uint8), r"shape \(6, 6, 5\)"),
        "number": (7, "is a int, which is no image"),
        "pipe": (_pipe(), "cannot be fetched: it is no regular file"),
        "device": ("/dev/zero", "it is no regular file"),
        "folder": ("/tmp", "it is no regular file"),
        "file beyond limits": (_sparse_file(), "it holds more than 268,435,456 bytes"),
        "animated WebP": (encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]), "animated.*3 frames"),
        "PostScript": (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
            "cannot be read as an image.*of a format that is read",
        ),
        "meta tensor": (torch.empty(3, 4, 4, device="meta"), "tensor that cannot be made into an array"),
        "sparse tensor": (torch.eye(4).to_sparse(), "tensor that cannot be made into an array"),
        "complex": (np.zeros((4, 4, 3), complex), "dtype complex128"),
        "objects": (np.full((4, 4, 3), None), "dtype object"),
        "infinity": (np.full((4, 4), np.inf, np.float16), "values from inf"),
        "empty dict": ({"bytes": None, "path": None}, "is a dict, which is no image"),
        "deep lists": (functools.reduce(lambda inner, _: [inner], range(50), 0), "nested more than 8 lists deep"),
        "float mode": (Image.new("F", (4, 4)), "mode F .* no fixed range"),
    }


@pytest.mark.parametrize("case", refused_pictures())
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_refusals_name_picture_reason_and_cure(image_processor, case):
    picture, message = refused_pictures()[case]
    with pytest.raises(ValueError, match=r"(?s)^images\[1\]\[0\].*" + message):
        image_processor.fetch_images([[], [picture]])


def test_picked_frame_is_accepted(image_processor):
    frames = [Image.new("L", (8, 8), 60 * index) for index in range(3)]
    animation = Image.open(io.BytesIO(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    animation.seek(1)
    assert colour_of(image_processor, animation.copy()) == (60, 60, 60)


def test_max_pixels_is_a_setting():
    with pytest.raises(ValueError, match="48x48 is 2304 pixels, the limit is 2303"):
        VargptImageProcessor(max_pixels=2303)(noise_picture(0))


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="output_resize_factor must be at least 1.*0.5"):
        VargptImageProcessor(output_resize_factor=0.5)
    with pytest.raises(ValueError, match="output_size"):
        VargptImageProcessor(output_size=0)


def test_saving_and_loading(tmp_path):
    image_processor = VargptImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40}, image_mean=[0.5] * 3, image_std=[0.25] * 3,
        output_size=24, output_resize_factor=1.5, max_pixels=10_000,
    )  # fmt: skip
    image_processor.save_pretrained(tmp_path)
    loaded = VargptImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == image_processor.to_dict()
    picture = noise_picture(9, 60, 50)
    assert np.array_equal(loaded(picture)["pixel_values"], image_processor(picture)["pixel_values"])
    assert loaded.preprocess_output(picture)["output_pixel_values"].shape == (1, 3, 24, 24)
    assert loaded.max_pixels == 10_000
