"""vargpt-tiny, the model that comes along: what the README promises of it."""

import json

import pytest
import torch
from transformers import AutoConfig

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.evaluation.judges import DigitJudge, detect
from vargpt_hf.evaluation.report import answer_rows, draw_rows, drawing_figures, same_answer
from vargpt_hf.tiny import TINY_FOLDER
from vargpt_hf.tiny.digits import digit_image, load_split
from vargpt_hf.tiny.rows import rows

TWELVE_MEGABYTES = 12_000_000


@pytest.fixture(scope="module")
def tiny():
    """Model and processor."""
    model = VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32").eval()
    return model, VargptProcessor.from_pretrained(TINY_FOLDER)


def chat(text, *pictures):
    content = [*({"type": "image", "image": picture} for picture in pictures), {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def generate(tiny, chats, **settings):
    model, processor = tiny
    inputs = processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs={"padding": True}
    )
    generators = [torch.Generator().manual_seed(3) for _ in chats]
    output = model.generate(**inputs, max_new_tokens=40, generator=generators, return_dict_in_generate=True, **settings)
    return inputs["input_ids"].shape[1], output


def test_size():
    assert (TINY_FOLDER / "model.safetensors").stat().st_size <= TWELVE_MEGABYTES
    assert AutoConfig.from_pretrained(TINY_FOLDER).dtype == torch.float16


def test_a_batch_of_four_gives_what_four_calls_give(tiny):
    """A text answer, one picture, two pictures, and a question about a picture; by default settings, sampled."""
    digit = digit_image(load_split("test")[0][0])
    chats = [
        chat("what can you do"),
        chat("draw a red circle above a blue square and say what you drew"),
        chat("draw a green cross and then a yellow circle"),
        chat("which digit is this", digit),
    ]
    processor = tiny[1]
    length, together = generate(tiny, chats)
    assert together.image_rows.tolist() == [1, 2, 2]
    parts = processor.post_process_interleaved(together, prompt_length=length)
    for row, one in enumerate(chats):
        own_length, alone = generate(tiny, [one])
        own = together.image_rows == row
        assert torch.equal(together.image_codes[own], alone.image_codes)
        torch.testing.assert_close(together.images[own], alone.images)
        texts = [part["text"] for part in parts[row] if part["type"] == "text"]
        alone_parts = processor.post_process_interleaved(alone, prompt_length=own_length)[0]
        assert texts == [part["text"] for part in alone_parts if part["type"] == "text"]
        assert bool(texts) == (row != 2)


@pytest.mark.parametrize(("colour", "shape"), [("red", "triangle"), ("blue", "cross"), ("purple", "triangle")])
def test_it_draws_single_shapes(tiny, colour, shape):
    model, processor = tiny
    for seed in range(3):
        (picture,) = draw_rows(model, processor, [{"messages": chat(f"a {colour} {shape}")}], seed, 1)
        assert [(item.colour, item.shape) for item in detect(picture)] == [(colour, shape)]


def test_it_draws_and_reads_digits(tiny):
    model, processor = tiny
    judge = DigitJudge(*load_split("train"))
    written = list(rows({"draw_digit": 1.0}, 20, 7, "test"))
    drawn = draw_rows(model, processor, written, 0, 20)
    assert sum(drawing_figures(p, json.loads(row["truth"]), judge)["digit"] for p, row in zip(drawn, written, strict=True)) >= 16
    read = list(rows({"read_digit": 1.0}, 100, 7, "test"))
    answers = answer_rows(model, processor, read, 50)
    assert sum(same_answer(answer, json.loads(row["truth"])["answer"]) for answer, row in zip(answers, read, strict=True)) >= 75
