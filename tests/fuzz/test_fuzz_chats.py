"""Chats, texts, images and codes of any form: made into tensors that fit each other, or refused in words."""

import numpy as np
import torch
from fuzzing import fuzzed, policy
from hypothesis import strategies as st
from PIL import Image

from vargpt_hf import VargptProcessor
from vargpt_hf.tiny import TINY_FOLDER

PROCESSOR = VargptProcessor.from_pretrained(TINY_FOLDER)
IMAGE = Image.new("RGB", (8, 8), "red")
TOKENS = [PROCESSOR.image_token, PROCESSOR.output_image_start_token, PROCESSOR.output_image_token, PROCESSOR.output_image_end_token]
CODES = [0] * PROCESSOR.output_image_processor.num_positions[0]

TEXTS = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(), max_size=5),  # surrogates, too
    st.lists(st.sampled_from([*TOKENS, "".join(TOKENS[1:]), "a ", "</s>", "{{ 7 }}", "{% if %}"]), max_size=5).map("".join),
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.binary(max_size=5)
IMAGES = st.sampled_from([IMAGE, b"", "no.png", "data:,", np.zeros((4, 4, 3), np.uint8), {"bytes": None}, 7, [IMAGE], None])
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image", "output_image", "image_url", "video", "tool"]) | SCALARS},
    optional={
        "text": TEXTS | SCALARS,
        "image": IMAGES,
        "url": IMAGES,
        "image_url": IMAGES | st.fixed_dictionaries({}, optional={"url": SCALARS | IMAGES}),
        "codes": st.just(CODES) | SCALARS | st.lists(SCALARS, max_size=3),
    },
)
GOOD_PARTS = st.sampled_from(
    [
        {"type": "text", "text": "a"},
        {"type": "image", "image": IMAGE},
        {"type": "image"},
        {"type": "output_image"},
        {"type": "output_image", "image": IMAGE},
        {"type": "output_image", "codes": CODES},
    ]
)
CONTENTS = (
    TEXTS
    | st.lists(PARTS | GOOD_PARTS, max_size=3)
    | st.lists(GOOD_PARTS, max_size=4)
    | SCALARS
    | st.dictionaries(st.text(max_size=3), SCALARS)
)
ROLES = st.sampled_from(["user", "assistant", "system", "user", "assistant", "tool", "human", "gpt"]) | SCALARS | st.just(["user"])
MESSAGES = st.one_of(
    st.fixed_dictionaries({"role": ROLES, "content": CONTENTS}, optional={"name": SCALARS, "tool_calls": SCALARS}),
    st.fixed_dictionaries({"from": ROLES, "value": CONTENTS}),
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.lists(GOOD_PARTS, max_size=3)}),
    st.dictionaries(st.sampled_from(["role", "content", "from", "value", "x"]), SCALARS),
    SCALARS,
)
CHATS = st.lists(MESSAGES, max_size=4) | SCALARS
LISTS = st.recursive(IMAGES, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner), max_leaves=5)
CODE_LISTS = st.recursive(st.just(CODES) | st.just(torch.tensor([CODES])) | SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=5)


def fits(inputs):
    """As many images as places for them, in tensors of the shapes that the model takes."""
    ids = inputs["input_ids"]
    assert (ids == PROCESSOR.image_token_id).sum() == PROCESSOR.typical_lengths()["image"] * len(inputs.get("pixel_values", ()))
    drawn = [inputs[name] for name in ("output_pixel_values", "output_image_codes") if name in inputs]
    assert (ids == PROCESSOR.output_image_token_id).sum() == PROCESSOR.output_image_processor.num_positions[0] * sum(map(len, drawn)) and len(
        drawn
    ) < 2


@fuzzed(
    chat=CHATS | st.lists(CHATS, max_size=3) | SCALARS | st.dictionaries(st.text(max_size=3), SCALARS),
    images=st.none() | LISTS,
    output_images=st.none() | LISTS,
    prompt=st.booleans(),
    continued=st.booleans(),
    mask=st.booleans(),
)
def test_chats_of_any_form(chat, images, output_images, prompt, continued, mask):
    given = {name: value for name, value in (("images", images), ("output_images", output_images)) if value is not None}
    with policy():
        fits(
            PROCESSOR.apply_chat_template(
                chat,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                add_generation_prompt=prompt and not continued,
                continue_final_message=continued,
                return_assistant_tokens_mask=mask,
                processor_kwargs={"padding": True, **given},
            )
        )


@fuzzed(
    chat=st.lists(MESSAGES, min_size=1, max_size=3), template=TEXTS | st.sampled_from(["{{ messages[9].a.b }}", "{{ 1 / 0 }}", "{% for %}"])
)
def test_templates_of_any_form(chat, template):
    with policy():
        assert isinstance(PROCESSOR.apply_chat_template(chat, template), str)


@fuzzed(text=TEXTS | st.lists(TEXTS, max_size=3) | SCALARS | st.lists(SCALARS, max_size=2), images=LISTS, output_images=LISTS, codes=CODE_LISTS)
def test_texts_of_any_form(text, images, output_images, codes):
    for given in (
        {"images": images},
        {"output_images": output_images},
        {"output_image_codes": codes},
        {"images": images, "output_image_codes": codes},
    ):
        with policy():
            inputs = PROCESSOR(text=text, padding=True, return_tensors="pt", **given)
            if text is not None:
                fits(inputs)
