import numpy as np
import pytest
from PIL import Image, ImageFilter

from vargpt_hf.tiny.digits import digit_image, load_split
from vargpt_hf.tiny.judges import DigitJudge, background, detect
from vargpt_hf.tiny.shapes import render, sample_scene


def distorted(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A little blurred, with noise, as an image tokenizer leaves images."""
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(0.6)), dtype=np.float64) + rng.normal(0, 8, (48, 48, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(("distort", "least"), [(False, 0.995), (True, 0.98)])
def test_the_judge_sees_what_was_drawn(distort, least):
    rng = np.random.default_rng(0)
    right = 0
    for _ in range(400):
        scene = sample_scene(rng)
        image = distorted(render(scene), rng) if distort else render(scene)
        found = sorted((detection.colour, detection.shape) for detection in detect(image))
        same = found == sorted((item.colour, item.shape) for item in scene.objects)
        right += same and background(image) == scene.background
    assert right / 400 >= least


def test_an_empty_image_shows_nothing():
    assert detect(Image.new("RGB", (48, 48), "white")) == []
    assert detect(Image.new("RGB", (48, 48), "gray")) == []


def test_places_are_centres():
    scene = sample_scene(np.random.default_rng(5), "relation")
    found = {(d.colour, d.shape): d.centre for d in detect(render(scene))}
    for item in scene.objects:
        x, y = found[item.colour, item.shape]
        assert abs(x - item.centre[0]) <= 2
        assert abs(y - item.centre[1]) <= 4  # a triangle's centre of mass lies below the middle of its box


def test_the_digit_judge_reads_digits_it_has_not_seen():
    judge = DigitJudge(*load_split("train"))
    images, labels = load_split("test")
    right = np.mean([judge.read(digit_image(image)) == label for image, label in zip(images, labels)])
    assert right >= 0.97
