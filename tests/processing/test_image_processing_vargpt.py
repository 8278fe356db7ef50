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
from noise_images import noise_image
from PIL import Image
from processing_helpers import SIDE, make_processor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vargpt_hf import ScaleSchedule
from vargpt_hf.modeling.scales_vargpt import nearest_schedule
from vargpt_hf.processing import VargptCLIPImageProcessor, VargptImageProcessor, image_loading_vargpt
from vargpt_hf.processing.image_loading_vargpt import fetch_images


@pytest.fixture(scope="module")
def image_processor() -> VargptImageProcessor:
    return VargptImageProcessor(schedules=[[1, 3]], downsampling=16)  # of 48 pixels


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixel data."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\0IDAT"


def test_reading_is_clips_by_pillow():
    images = [noise_image(0, 71, 50), noise_image(1, 30, 90), noise_image(2, 32, 32)]
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    reference = CLIPImageProcessorPil(**sizes)
    expected = reference(images, return_tensors="pt")["pixel_values"]
    found = VargptCLIPImageProcessor(**sizes)(images, return_tensors="pt")["pixel_values"]
    assert found.shape == (3, 3, 32, 32) and found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_default_size():
    image_processor = VargptImageProcessor()
    output = image_processor(noise_image(0, 500, 400), return_tensors="pt")
    assert output["output_pixel_values"].shape == (1, 3, 256, 256)


def test_output_is_resized_then_center_cropped(image_processor):
    image = noise_image(3, 100, 80)
    resized = image.resize((int(54 * 100 / 80), 54), Image.Resampling.LANCZOS)  # 54 = 1.125 * 48, width 67
    expected = np.asarray(resized.crop((10, 3, 58, 51)), dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1
    found = image_processor(image, return_tensors="pt")["output_pixel_values"]
    assert found.dtype == torch.float32 and found.min() >= -1 and found.max() <= 1
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)


def test_output_of_right_size_is_untouched_and_comes_back():
    image_processor = VargptImageProcessor(schedules=[[1, 3]], resize_factor=1.0)
    images = [noise_image(0), noise_image(1)]
    pixels = image_processor(images, return_tensors="pt")["output_pixel_values"]
    for image, returned in zip(images, image_processor.post_process(pixels), strict=True):
        assert returned.mode == "RGB" and returned.tobytes() == image.tobytes()


def test_random_crop_is_seeded(image_processor):
    image = noise_image(4, 100, 100)

    def crop(**options):
        return image_processor(image, **options)["output_pixel_values"]

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


def test_every_form_gives_the_same_image(image_processor, tmp_path):
    image = noise_image(6, 40, 30)
    path, data = tmp_path / "image.png", encode(image)
    path.write_bytes(data)
    array, text = np.asarray(image), base64.b64encode(data).decode()
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms = [image, path, str(path), data, bytearray(data), text, f"data:image/png;base64,{text}", {"bytes": data}]
    forms += [{"bytes": None, "path": str(path)}, array, array.transpose(2, 0, 1), array / 255.0, tensor, tensor / 255]
    forms += [array.astype(np.int64), array.astype(np.uint16) * 257, tensor.permute(1, 2, 0)]
    for index, found in enumerate(fetch_images(forms)):
        assert found.mode == "RGB" and found.tobytes() == image.tobytes(), index
    batch = fetch_images([torch.stack([tensor, tensor])])
    assert [len(batch), len(batch[0])] == [1, 2]


def test_url(image_processor, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    image = noise_image(7)
    (tmp_path / "image.png").write_bytes(encode(image))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        assert fetch_images(f"{address}/image.png").tobytes() == image.tobytes()
        with pytest.raises(ValueError, match=r"images \('http.*absent.png'\) cannot be fetched: .*404"):
            fetch_images(f"{address}/absent.png")
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
        monkeypatch.setattr(image_loading_vargpt, name, value)
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
            fetch_images(f"http://127.0.0.1:{server.server_port}{path}")
        assert type(caught.value) is ValueError and time.monotonic() - start < 4
    finally:
        stopped.set()
        server.shutdown()
        server.server_close()


def color_of(image_processor, image) -> tuple[int, ...]:
    return fetch_images(image).getpixel((0, 0))


def test_modes_become_rgb(image_processor):
    def flat(mode, color):
        return Image.new(mode, (4, 3), color)

    palette = Image.new("P", (4, 3), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    clear_palette = palette.copy()
    clear_palette.info["transparency"] = 1
    cases = [
        (flat("RGBA", (255, 0, 0, 0)), (255, 255, 255)),
        (flat("RGBA", (200, 0, 0, 51)), (244, 204, 204)),  # a fifth of the color on white
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
    for index, (image, expected) in enumerate(cases):
        assert color_of(image_processor, image) == expected, index


def test_files_of_unusual_modes(image_processor):
    deep = Image.fromarray(np.full((4, 3), 65535, np.uint16))
    assert color_of(image_processor, encode(deep)) == (255, 255, 255)
    assert color_of(image_processor, encode(deep, "TIFF")) == (255, 255, 255)
    red = color_of(image_processor, encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    assert red[0] > 230 and max(red[1:]) < 25


def test_exif_orientation(image_processor):
    image = noise_image(8, 40, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    found = fetch_images(encode(image, exif=exif))
    assert found.size == (30, 40)
    assert found.tobytes() == image.transpose(Image.Transpose.ROTATE_270).tobytes()
    assert fetch_images(found).size == (30, 40)  # not turned once more


def test_camera_photograph_with_previews_is_accepted(image_processor):
    data = encode(noise_image(0), "MPO", save_all=True, append_images=[noise_image(1, 8, 8)])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert fetch_images(data).size == (SIDE, SIDE)


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


def refused_images():
    jpeg = encode(noise_image(0, 200, 200), "JPEG")
    frames = [Image.new("L", (8, 8), 60 * index) for index in range(3)]
    gif = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    return {
        "truncated": (jpeg[: len(jpeg) // 2], "cannot be decoded: .*truncated.*save it anew"),
        "garbage": (b"no image at all", "cannot be read as an image .15 bytes.*Check"),
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


@pytest.mark.parametrize("case", refused_images())
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_refusals_name_image_reason_and_cure(image_processor, case):
    image, message = refused_images()[case]
    with pytest.raises(ValueError, match=r"(?s)^images\[1\]\[0\].*" + message):
        fetch_images([[], [image]])


def test_picked_frame_is_accepted(image_processor):
    frames = [Image.new("L", (8, 8), 60 * index) for index in range(3)]
    animation = Image.open(io.BytesIO(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    animation.seek(1)
    assert color_of(image_processor, animation.copy()) == (60, 60, 60)


def test_max_pixels_is_a_setting():
    with pytest.raises(ValueError, match="48x48 is 2304 pixels, the limit is 2303"):
        VargptImageProcessor(max_pixels=2303)(noise_image(0))
    with pytest.raises(ValueError, match="48x48 is 2304 pixels, the limit is 2303"):
        make_processor({"max_pixels": 2303})(text="<image>", images=noise_image(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resize_factor": 0.5}, "resize_factor must be at least 1.*0.5"),
        ({"schedules": []}, "schedules must be"),
        ({"schedules": [[1, 0]]}, "schedules must be"),
        ({"schedules": [[1, 2], []]}, "schedules must be"),
        ({"downsampling": 0}, "downsampling"),
        ({"max_pixels": 0}, "max_pixels"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        VargptImageProcessor(**settings)


SEVERAL = {"schedules": [[1, 2, 4], [[1, 1], [2, 3], [4, 6]], [[1, 1], [3, 2], [6, 4]]], "downsampling": 8, "resize_factor": 1.25}


def test_schedules_agree_with_the_models():
    """The processor counts and chooses as `ScaleSchedule` and `nearest_schedule` do."""
    ours, theirs = VargptImageProcessor(**SEVERAL), [ScaleSchedule.of(scales) for scales in SEVERAL["schedules"]]
    assert ours.num_positions == [schedule.num_positions for schedule in theirs]
    assert ours.grids == [list(schedule.grids) for schedule in theirs]
    assert ours.sizes == [(32, 32), (32, 48), (48, 32)]
    for height, width in [(10, 10), (10, 12), (10, 13), (13, 10), (1, 100), (99, 1), (40, 33), (480, 640)]:
        assert ours.nearest_schedule(height, width) == nearest_schedule(theirs, height / 8, width / 8)


def test_sizes_by_aspect_ratio():
    image_processor = VargptImageProcessor(**SEVERAL)
    images = [noise_image(0, 90, 60), noise_image(1, 50, 50), noise_image(2, 60, 91)]
    out = image_processor(images, return_tensors="pt")
    pixels = out["output_pixel_values"]
    assert out["output_image_schedule_ids"].tolist() == [1, 0, 2] and pixels.shape == (3, 3, 48, 48)
    for index, (height, width) in enumerate([(32, 48), (32, 32), (48, 32)]):
        assert pixels[index, :, :height, :width].std() > 0.1
        assert not pixels[index, :, height:].any() and not pixels[index, :, :, width:].any()
    first = images[0].resize((60, 40), Image.Resampling.LANCZOS).crop((6, 4, 54, 36))  # 1.25 times 48 and 32
    assert image_processor.post_process([pixels[0, :, :32]])[0].tobytes() == first.tobytes()
    given = image_processor(images, schedule_ids=[0, 0, 2], return_tensors="pt")
    assert given["output_image_schedule_ids"].tolist() == [0, 0, 2]
    assert image_processor(images, schedule_ids=1)["output_pixel_values"].shape == (3, 3, 32, 48)
    for wrong in ([0, 0], [0, 0, 3], [0, 0, -1]):
        with pytest.raises(ValueError, match="numbers from 0 to 2, one for each of the 3"):
            image_processor(images, schedule_ids=wrong)


def test_every_shape_covers_its_crop():
    image_processor = VargptImageProcessor(**SEVERAL)
    for width in range(20, 120, 7):
        for height in range(20, 120, 9):
            for schedule in range(3):
                pixels = image_processor(Image.new("RGB", (width, height), (255, 255, 255)), schedule_ids=schedule)["output_pixel_values"]
                assert (pixels == 1).all()


def test_saving_and_loading(tmp_path):
    image_processor = VargptImageProcessor(**SEVERAL, max_pixels=10_000)
    image_processor.save_pretrained(tmp_path)
    loaded = VargptImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == image_processor.to_dict()
    image = noise_image(9, 60, 50)
    assert np.array_equal(loaded(image)["output_pixel_values"], image_processor(image)["output_pixel_values"])
    assert loaded.max_pixels == 10_000
