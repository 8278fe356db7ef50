"""One function draws and asks: what it returns is what the processor and `generate` say, in the order of the chats."""

import numpy as np
import pytest
import torch

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.inference.drawing import answer, prompt_inputs
from vargpt_hf.tiny import TINY_FOLDER

TEXTS = ["a red circle", "a green cross left of a yellow circle"]


@pytest.fixture(scope="module")
def tiny():
    return VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32").eval(), VargptProcessor.from_pretrained(TINY_FOLDER)


def test_it_draws_what_processor_and_generate_draw(tiny):
    model, processor = tiny
    drawn = answer(model, processor, TEXTS, "image", seeds=[3, 4], do_sample=True)
    inputs = processor.apply_chat_template(
        [[{"role": "user", "content": text}] for text in TEXTS],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    by_hand = model.generate(**inputs, generation_mode="image", generator=generators, do_sample=True, return_dict_in_generate=True)
    assert torch.equal(drawn.output.sequences, by_hand.sequences) and torch.equal(drawn.output.output_image_codes, by_hand.output_image_codes)
    for image, expected in zip(drawn.images, processor.output_image_processor.post_process(by_hand.output_images), strict=True):
        assert image.tobytes() == expected.tobytes()
    assert [part["type"] for parts in drawn.parts for part in parts] == ["output_image"] * 2 and drawn.texts == ["", ""]


def test_an_image_is_that_of_its_seed_wherever_it_stands(tiny):
    orders = ((TEXTS, [3, 4]), (TEXTS[::-1], [4, 3]), (TEXTS, [5, 6]))
    settings = {"do_sample": True, "output_image_temperature": 2.0}
    drawn = (answer(*tiny, texts, "image", seeds=seeds, **settings).output for texts, seeds in orders)
    one, turned, of_other_seeds = (output.output_image_codes for output in drawn)
    assert torch.equal(one, turned.flip(0)) and not torch.equal(one, of_other_seeds)


def test_it_asks_about_images(tiny):
    model, processor = tiny
    (image,) = answer(model, processor, ["a red circle"], "image", do_sample=False).images
    question = [{"type": "image"}, {"type": "text", "text": "what is in the picture"}]
    chats = [[{"role": "user", "content": question}], [{"role": "user", "content": "hello"}]]
    answers = answer(model, processor, chats, "text", images=[[image], []], do_sample=False, max_new_tokens=32)
    assert answers.texts[0] == "a red circle" and answers.texts[1].startswith("hello")
    assert answers.images == [] and answers.parts[0] == [{"type": "text", "text": "a red circle"}]


def test_left_to_itself_it_does_both(tiny):
    answers = answer(*tiny, ["draw a red circle", "hello"], do_sample=False, max_new_tokens=32)
    kinds = [{part["type"] for part in parts} for parts in answers.parts]
    assert "output_image" in kinds[0] and kinds[1] == {"text"} and len(answers.images) == 1
    assert np.asarray(answers.images[0]).shape == (48, 48, 3)


def test_left_to_itself_it_keeps_to_the_mode_saved_with_the_model(tiny, monkeypatch):
    monkeypatch.setattr(tiny[0].generation_config, "generation_mode", "text")
    assert answer(*tiny, ["draw a red circle"], do_sample=False, max_new_tokens=8).images == []
    assert len(answer(*tiny, ["draw a red circle"], "auto", do_sample=False, max_new_tokens=8).images) == 1


@pytest.mark.parametrize(
    ("chats", "options", "error", "message"),
    [
        ([], {}, ValueError, "`chats` is empty"),
        ("a red circle", {}, TypeError, "must be a list of chats"),
        ([{"role": "user", "content": "hello"}], {}, TypeError, "must be a list of chats"),
        ([" "], {}, ValueError, "the prompt is empty"),
        (TEXTS, {"seeds": [1]}, ValueError, "1 seeds for 2 chats"),
        (TEXTS, {"seeds": [1, 2], "generator": torch.Generator()}, ValueError, "either `seeds` or a `generator`"),
        (TEXTS, {"seeds": [1, -(2**64)]}, ValueError, "A seed must be from"),
        (TEXTS, {"seeds": [1, "2"]}, TypeError, "A seed must be a whole number"),
    ],
)
def test_what_cannot_be_answered_is_said(tiny, chats, options, error, message):
    with pytest.raises(error, match=message):
        answer(*tiny, chats, "image", **options)


def test_prompts_are_padded_on_the_left(tiny):
    _, processor = tiny
    inputs = prompt_inputs(processor, TEXTS)
    assert inputs["attention_mask"][:, -1].tolist() == [1, 1] and inputs["attention_mask"][0, 0] == 0
