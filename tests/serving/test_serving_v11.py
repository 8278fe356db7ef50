"""`vargpt serve` with the parts of VARGPT v1.1, a bitwise image tokenizer and Infinity's decoder: toy weights, two sizes of images, asked by
OpenAI's own client."""

import numpy as np
import pytest
from noise_images import noise_image
from openai import OpenAI
from PIL import Image
from served import image_of, png, url_of, vargpt
from toy_v11 import write_toy_v11_folder

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.inference.drawing import answer

PROMPT = "draw a red circle"
SIZES = {"16x16": (16, 16), "16x8": (8, 16)}  # (height, width)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder."""
    return write_toy_v11_folder(tmp_path_factory.mktemp("v11") / "toy-v1.1")


@pytest.fixture(scope="module")
def here(toy):
    """Its model and processor, in this process."""
    return VargptForConditionalGeneration.from_pretrained(toy).eval(), VargptProcessor.from_pretrained(toy)


@pytest.fixture(scope="module")
def v11(toy):
    """A client of the command, which ends by SIGTERM and says nothing more."""
    process, address = vargpt("serve", "--port", 0, "--model", toy, "--device", "cpu")
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client
    process.terminate()
    assert process.communicate(timeout=60)[0] == ""


def close(one, other):
    """Whether images are equal but for a level here and there: batches may be cut otherwise."""
    return one.size == other.size and np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


@pytest.mark.parametrize("size", SIZES)
def test_draws_both_sizes(v11, here, size):
    made = v11.images.generate(prompt=PROMPT, size=size, n=2, extra_body={"seed": 3})
    drawn = answer(*here, [PROMPT] * 2, "image", seeds=[3, 4], do_sample=True, output_image_size=SIZES[size]).images
    assert made.size == size and [image.seed for image in made.data] == [3, 4]
    assert all(close(image_of(image.b64_json), there) for image, there in zip(made.data, drawn))


def test_streams_an_image_of_every_scale(v11):
    *partial, whole = v11.images.generate(prompt=PROMPT, stream=True, extra_body={"seed": 3})
    assert [(event.type.rpartition(".")[2], event.scale) for event in partial] == [("partial_image", 0), ("partial_image", 1)]
    plain = v11.images.generate(prompt=PROMPT, extra_body={"seed": 3}).data[0]
    assert close(image_of(whole.b64_json), image_of(plain.b64_json)) and whole.type == "image_generation.completed"
    assert len({image_of(event.b64_json).tobytes() for event in (*partial, whole)}) == 3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stream", [False, True])
def test_edits_keep_what_is_not_masked(v11, size, stream):
    """In the size that is nearest to the image."""
    height, width = SIZES[size]
    image, mask = noise_image(0, width, height), Image.new("L", (width, height))
    mask.paste(255, (width // 2, 0, width, height))
    made = v11.images.edit(image=("image.png", png(image)), mask=("mask.png", png(mask)), prompt=PROMPT, stream=stream)
    edited = [event.b64_json for event in made] if stream else [made.data[0].b64_json]
    assert len(edited) == (3 if stream else 1)
    for before, after in ((np.asarray(image, int), np.asarray(image_of(one), int)) for one in edited):
        assert np.array_equal(before[:, : width // 2], after[:, : width // 2])
        assert np.abs(before[:, width // 2 :] - after[:, width // 2 :]).mean() > 5


def test_edits_read_the_image_where_there_is_no_mask(v11, here):
    """Each as it is drawn here. One image in five changes none of the few codes, so that several are asked for."""
    prompt, drawings = "make the red circle blue", set()
    for image in [noise_image(seed, 16, 16) for seed in range(6)]:
        made = image_of(v11.images.edit(image=("image.png", png(image)), prompt=prompt, extra_body={"seed": 3}).data[0].b64_json)
        asked = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
        (there,) = answer(*here, [[{"role": "user", "content": asked}]], "image", seeds=[3], do_sample=True).images
        assert close(made, there)
        drawings.add(there.tobytes())
    assert len(drawings) > 1


def asked_about(image):
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url_of(image)}}, {"type": "text", "text": "what is this"}]}]


@pytest.mark.parametrize("stream", [False, True])
def test_chats_with_images_both_ways(v11, here, stream):
    """An image is read and a text comes, or an image, which can be sent back."""
    image = noise_image(0, 16, 16)
    asked = asked_about(image)
    said = v11.chat.completions.create(messages=asked, model="toy-v1.1", max_tokens=12, stream=stream)
    text = "".join(part.choices[0].delta.content or "" for part in said) if stream else said.choices[0].message.content
    chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "what is this"}]}]
    (expected,) = answer(*here, [chat], "text", max_new_tokens=12, do_sample=True, top_k=1).texts
    assert text.strip() == expected.rstrip("\N{REPLACEMENT CHARACTER}").strip()  # what the limit cut in the middle of a character

    drawn = v11.chat.completions.create(messages=asked, model="", modalities=["image"], seed=3, stream=stream)
    if stream:
        images = [entry for part in drawn for entry in getattr(part.choices[0].delta, "images", None) or []]
    else:
        images = drawn.choices[0].message.images
    (there,) = answer(*here, [chat], "image", seeds=[3], do_sample=True, output_image_top_k=1, output_image_top_p=0.0).images
    assert len(images) == 1 and close(image_of(images[0]["image_url"]["url"]), there)
    back = {"role": "assistant", "content": None, "images": images}
    more = v11.chat.completions.create(messages=[*asked, back, {"role": "user", "content": "say hello"}], model="", max_tokens=4)
    assert more.usage.prompt_tokens > 21 and more.choices[0].finish_reason in ("stop", "length")
