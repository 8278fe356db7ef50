"""Drawing and editing by OpenAI's own client."""

import urllib.request

import numpy as np
import openai
import pytest
from PIL import Image
from served import PROMPT, image_of, png

from vargpt_hf.inference.drawing import answer
from vargpt_hf.serving.image_files import facts_of
from vargpt_hf.tiny.shapes import Scene, SceneObject, render


@pytest.fixture(scope="module")
def scene():
    """A red circle above a blue square, drawn by hand."""
    return render(Scene((SceneObject("circle", "red", "large", (0, 0)), SceneObject("square", "blue", "large", (1, 0)))))


def test_draws_what_the_model_draws(client, tiny):
    made = client.images.generate(prompt=PROMPT, extra_body={"seed": 5})
    (here,) = answer(*tiny, [PROMPT], "image", seeds=[5], do_sample=True).images
    assert image_of(made.data[0].b64_json).tobytes() == here.tobytes()
    assert (made.size, made.output_format, made.data[0].seed, made.usage.output_tokens) == ("48x48", "png", 5, 48)


def test_several_images_are_those_of_the_seeds_that_follow(client):
    several = client.images.generate(prompt=PROMPT, n=3, extra_body={"seed": 7}).data
    single = [client.images.generate(prompt=PROMPT, extra_body={"seed": seed}).data[0] for seed in (7, 8, 9)]
    assert [image.seed for image in several] == [7, 8, 9]
    for one, other in zip(several, single):
        assert np.abs(np.asarray(image_of(one.b64_json), int) - np.asarray(image_of(other.b64_json), int)).max() <= 1


def test_without_a_seed_images_differ_and_say_theirs(client):
    first, second = (client.images.generate(prompt="a digit").data[0] for _ in range(2))
    assert first.seed != second.seed
    again = client.images.generate(prompt="a digit", extra_body={"seed": first.seed}).data[0]
    assert image_of(again.b64_json).tobytes() == image_of(first.b64_json).tobytes()


def test_a_png_says_what_it_was_drawn_from(client):
    more = {"seed": 3, "guidance_scale": 2.0, "negative_prompt": "a digit"}
    facts = facts_of(image_of(client.images.generate(prompt=PROMPT, extra_body=more).data[0].b64_json))
    assert facts == {"model": "vargpt-tiny", "prompt": PROMPT, "size": "48x48", "guidance_scale": 2.0, "negative_prompt": "a digit", "seed": 3}


@pytest.mark.parametrize("wanted", [None, 0, 1, 2, 9])
def test_streams_an_image_of_every_scale(client, wanted):
    """As many partial images as are wanted, at most one for each scale before the last; the whole one is that of a plain request."""
    more = {} if wanted is None else {"partial_images": wanted}
    *partial, whole = client.images.generate(prompt=PROMPT, stream=True, extra_body={"seed": 5}, **more)
    assert [event.type for event in partial] == ["image_generation.partial_image"] * (2 if wanted is None else min(wanted, 2))
    assert [event.partial_image_index for event in partial] == list(range(len(partial)))
    assert [event.scale for event in partial] == ([1] if wanted == 1 else list(range(len(partial))))
    assert whole.type == "image_generation.completed" and whole.usage.output_tokens == 48
    plain = client.images.generate(prompt=PROMPT, extra_body={"seed": 5}).data[0]
    assert image_of(whole.b64_json).tobytes() == image_of(plain.b64_json).tobytes()
    assert len({image_of(event.b64_json).tobytes() for event in (*partial, whole)}) == len(partial) + 1


def test_streams_several_images_of_one_request(client):
    events = list(client.images.generate(prompt=PROMPT, n=2, stream=True, extra_body={"seed": 1}))
    assert sorted((event.index, event.type.rpartition(".")[2]) for event in events) == sorted(
        (index, kind) for index in (0, 1) for kind in ("partial_image", "partial_image", "completed")
    )


@pytest.mark.parametrize(("file_format", "name"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_formats_and_addresses(client, file_format, name):
    made = client.images.generate(prompt=PROMPT, output_format=file_format, response_format="url")
    with urllib.request.urlopen(made.data[0].url) as answered:
        assert answered.headers["Content-Type"] == f"image/{file_format}"
        assert Image.open(answered).format == name


def test_guidance_is_heeded(client):
    def drawn(**more):
        return image_of(client.images.generate(prompt=PROMPT, extra_body={"seed": 2, **more}).data[0].b64_json).tobytes()

    assert drawn(guidance_scale=20) != drawn() and drawn(guidance_scale=20) != drawn(guidance_scale=20, negative_prompt="a red circle")
    assert drawn(image_temperature=0) == drawn(image_temperature=0, seed=3) != drawn(image_temperature=5)
    with pytest.raises(openai.BadRequestError, match='needs `guidance_type` "prompt"'):
        drawn(negative_prompt="a digit", guidance_type="noise")


def halves(scene, transparent=True):
    """A mask of the lower half: transparent there, or white."""
    alpha = np.full((scene.height, scene.width), 255, np.uint8)
    alpha[scene.height // 2 :] = 0
    if transparent:
        return Image.merge("RGBA", [*scene.split(), Image.fromarray(alpha)])
    return Image.fromarray(255 - alpha)


@pytest.mark.parametrize("way", ["transparent", "white", "in the image"])
def test_only_what_is_masked_changes(client, scene, way):
    """And there it does. Whatever lies outside is the image as it was sent, to the last bit."""
    mask = {} if way == "in the image" else {"mask": ("mask.png", png(halves(scene, way == "transparent")), "image/png")}
    image = halves(scene) if way == "in the image" else scene
    made = client.images.edit(image=("scene.png", png(image), "image/png"), prompt="a green triangle", extra_body={"seed": 1}, **mask)
    before, after = np.asarray(scene), np.asarray(image_of(made.data[0].b64_json))
    assert np.array_equal(before[:24], after[:24])
    assert np.abs(before[24:].astype(int) - after[24:]).mean() > 5


def test_a_mask_smaller_than_any_position_is_heeded(client, scene):
    mask = Image.new("L", scene.size)
    mask.putpixel((14, 33), 255)
    made = client.images.edit(image=("scene.png", png(scene)), mask=("mask.png", png(mask)), prompt="a green triangle")
    changed = (np.asarray(scene) != np.asarray(image_of(made.data[0].b64_json))).any(-1)
    assert changed.sum() <= 1 and not changed.sum() - changed[33, 14]


def test_edits_stream_and_keep_the_rest_at_every_scale(client, scene):
    files = {"image": ("scene.png", png(scene)), "mask": ("mask.png", png(halves(scene)))}
    events = list(client.images.edit(prompt="a green triangle", stream=True, extra_body={"seed": 1}, **files))
    assert [event.type for event in events] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    for event in events:
        assert np.array_equal(np.asarray(scene)[:24], np.asarray(image_of(event.b64_json))[:24])


def test_without_a_mask_the_image_is_read(client, scene, tiny):
    """Several images are, too. vargpt-tiny has not learned to edit, so that its answer is compared with its own."""
    made = client.images.edit(image=[png(scene), png(scene)], prompt=PROMPT, extra_body={"seed": 4})
    parts = [*({"type": "image", "image": image} for image in (scene, scene)), {"type": "text", "text": PROMPT}]
    (here,) = answer(*tiny, [[{"role": "user", "content": parts}]], "image", seeds=[4], do_sample=True).images
    assert image_of(made.data[0].b64_json).tobytes() == here.tobytes()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"mask": Image.new("L", (48, 48))}, "The mask leaves nothing to draw"),
        ({"mask": Image.new("L", (24, 24), 255)}, "The mask is 24x24, the image 48x48"),
        ({"image": b"no image"}, "`image` cannot be read as an image"),
        ({"mask": b"no image"}, "`mask` cannot be read as an image"),
    ],
)
def test_files_that_cannot_be_edited(client, scene, files, message):
    files = {name: value if isinstance(value, bytes) else png(value) for name, value in {"image": scene, **files}.items()}
    with pytest.raises(openai.BadRequestError, match=message):
        client.images.edit(prompt="a circle", **files)
