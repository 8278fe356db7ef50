"""The vargpt-tiny model included in the package: what the README promises."""

import json

import pytest
import torch
from transformers import AutoConfig

from vargpt_hf import VargptForConditionalGeneration, VargptProcessor
from vargpt_hf.evaluation.shapes_and_digits import answer_rows, draw_rows, drawing_figures, same_answer
from vargpt_hf.tiny import TINY_FOLDER
from vargpt_hf.tiny.digits import digit_image, load_split
from vargpt_hf.tiny.judges import DigitJudge, detect
from vargpt_hf.tiny.rows import rows

TWELVE_MEGABYTES = 12_000_000


@pytest.fixture(scope="module")
def tiny():
    """Model and processor."""
    model = VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32").eval()
    return model, VargptProcessor.from_pretrained(TINY_FOLDER)


def chat(text, *images):
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]
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
    """A text answer, one image, two images, and a question about an image; by default settings, sampled."""
    digit = digit_image(load_split("test")[0][0])
    chats = [
        chat("what can you do"),
        chat("draw a red circle above a blue square and say what you drew"),
        chat("draw a green cross and then a yellow circle"),
        chat("which digit is this", digit),
    ]
    processor = tiny[1]
    length, together = generate(tiny, chats)
    assert together.output_image_rows.tolist() == [1, 2, 2]
    parts = processor.post_process_interleaved(together, prompt_length=length)
    for row, one in enumerate(chats):
        own_length, alone = generate(tiny, [one])
        own = together.output_image_rows == row
        assert torch.equal(together.output_image_codes[own], alone.output_image_codes)
        torch.testing.assert_close(together.output_images[own], alone.output_images)
        texts = [part["text"] for part in parts[row] if part["type"] == "text"]
        alone_parts = processor.post_process_interleaved(alone, prompt_length=own_length)[0]
        assert texts == [part["text"] for part in alone_parts if part["type"] == "text"]
        assert bool(texts) == (row != 2)


SENTENCES = {  # what each shows: (colour, shape, column, row) on a board of three squares a side
    "a red circle above a blue square": [("red", "circle", 1, 0), ("blue", "square", 1, 2)],
    "a green cross left of a yellow circle": [("green", "cross", 0, 1), ("yellow", "circle", 2, 1)],
    "a purple triangle below an orange cross": [("purple", "triangle", 1, 2), ("orange", "cross", 1, 0)],
    "three orange squares": [("orange", "square", 0, 0), ("orange", "square", 2, 0), ("orange", "square", 1, 2)],
    "a red triangle, a blue circle and a green square": [("red", "triangle", 0, 0), ("blue", "circle", 2, 0), ("green", "square", 1, 2)],
    "a blue cross at the top left": [("blue", "cross", 0, 0)],
}


@pytest.mark.parametrize("sentence", SENTENCES)
def test_it_draws_what_a_sentence_says(tiny, sentence):
    model, processor = tiny
    for seed in range(3):
        (image,) = draw_rows(model, processor, [{"messages": chat(sentence)}], seed, 1)
        found = [(item.colour, item.shape, int(item.centre[0] // 16), int(item.centre[1] // 16)) for item in detect(image)]
        assert sorted(found) == sorted(SENTENCES[sentence])


def test_it_draws_and_reads_digits(tiny):
    model, processor = tiny
    judge = DigitJudge(*load_split("train"))
    written = list(rows({"draw_digit": 1.0}, 40, 7, "test"))
    drawn = draw_rows(model, processor, written, 0, 40)
    assert sum(drawing_figures(p, json.loads(row["truth"]), judge)["digit"] for p, row in zip(drawn, written, strict=True)) >= 34
    read = list(rows({"read_digit": 1.0}, 100, 7, "test"))
    answers = answer_rows(model, processor, read, 50)
    assert sum(same_answer(answer, json.loads(row["truth"])["answer"]) for answer, row in zip(answers, read, strict=True)) >= 88


def test_it_answers_questions(tiny):
    asked = list(rows({"ask": 1.0}, 200, 7, "test"))
    answers = answer_rows(*tiny, asked, 50)
    assert sum(same_answer(answer, json.loads(row["truth"])["answer"]) for answer, row in zip(answers, asked, strict=True)) >= 182
