"""`generation_mode="text_image"`: a plan in words, then one image, whatever the model would have done."""

import pytest
import torch
from transformers import AutoProcessor, StoppingCriteria, pipeline

from vargpt_hf import VargptForConditionalGeneration
from vargpt_hf.inference.drawing import answer
from vargpt_hf.testing import tiny_model
from vargpt_hf.tiny import TINY_FOLDER

EOS, START, END, PLACEHOLDER, L = 2, 61, 62, 63, 21
PROMPTS = [[1, 5, 6, 7], [1, 9, 10, 11], [1, 20, 21, 22]]


class Writer:
    """Logits processor that makes a model say a text, token by token, and then end it; each row with its own text."""

    def __init__(self, texts, prompt_length):
        self.texts, self.prompt_length = texts, prompt_length

    def __call__(self, ids, scores):
        said = ids.shape[1] - self.prompt_length
        scores = torch.full_like(scores, -50.0)
        for row, text in enumerate(self.texts):
            scores[row, text[said] if said < len(text) else EOS] = 0
        return scores


def generate(texts=([5, 6, 7], [8], [9, 10]), **settings):
    ids = torch.tensor(PROMPTS)
    settings = {"do_sample": False, "max_new_tokens": 12, "return_dict_in_generate": True, **settings}
    processor = [Writer(texts, ids.shape[1])] if texts else None
    return tiny_model().generate(input_ids=ids, generation_mode="text_image", logits_processor=processor, **settings)


def written(output, row):
    """Tokens of a row behind its prompt, without padding."""
    ids = output.sequences[row, len(PROMPTS[row]) :].tolist()
    return ids[: ids.index(END) + 1]


def image(text):
    return [*text, START, *[PLACEHOLDER] * L, END]


@pytest.mark.parametrize("sample", [False, True])
def test_a_plan_ends_in_its_image(sample):
    output = generate(do_sample=sample, top_k=0)
    assert [written(output, row) for row in range(3)] == [image([5, 6, 7]), image([8]), image([9, 10])]
    assert output.output_image_rows.tolist() == [0, 1, 2]
    assert EOS not in output.sequences[:, 4:]


def test_a_model_that_draws_by_itself_draws_once():
    output = generate([[5, START], [START], [5, 6]])
    assert [written(output, row) for row in range(3)] == [image([5]), image([]), image([5, 6])]
    assert len(output.output_images) == 3


@pytest.mark.parametrize("tokens", [2, 3, 6])
def test_a_plan_without_end_is_cut_before_the_room_for_the_image(tokens):
    output = generate([[5] * 40] * 3, max_new_tokens=tokens)
    assert [written(output, row) for row in range(3)] == [image([5] * (tokens - 2))] * 3


def test_plans_end_where_positions_end():
    model = tiny_model()
    room = model.config.text_config.max_position_embeddings
    output = model.generate(
        input_ids=torch.tensor([[1] * (room - L - 4)]),
        generation_mode="text_image",
        logits_processor=[Writer([[5] * 400], room - L - 4)],
        do_sample=False,
        max_new_tokens=300,
        return_dict_in_generate=True,
    )
    assert output.sequences[0, room - L - 4 :].tolist() == image([5, 5, 5])
    with pytest.raises(ValueError, match="beside an image the model has room for"):
        model.generate(input_ids=torch.tensor([[1] * (room - L)]), generation_mode="text_image")


class AfterTwo(StoppingCriteria):
    """Stops rows of two tokens."""

    def __call__(self, ids, scores, **kwargs):
        return torch.full((len(ids),), ids.shape[1] >= len(PROMPTS[0]) + 2)


def test_what_stops_a_text_stops_the_plan():
    output = generate([[5] * 40] * 3, stopping_criteria=[AfterTwo()])
    assert [written(output, row) for row in range(3)] == [image([5, 5])] * 3


def test_a_prompt_that_starts_an_image_draws_it():
    output = tiny_model().generate(
        input_ids=torch.tensor([[1, 5, START]]), generation_mode="text_image", do_sample=False, return_dict_in_generate=True
    )
    assert output.sequences[0, 3:].tolist() == [*[PLACEHOLDER] * L, END]


def test_an_image_needs_its_room():
    with pytest.raises(ValueError, match="an image takes 2"):
        generate(max_new_tokens=1)
    with pytest.raises(ValueError, match="asks for an image, but `max_output_images=0`"):
        generate(max_output_images=0)
    with pytest.raises(ValueError, match="must be one of"):
        tiny_model().generate(input_ids=torch.tensor([[1]]), generation_mode="image_text")


def test_the_shipped_model_always_draws():
    """Asked for words alone, it answers first and draws then."""
    model = VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32").eval()
    processor = AutoProcessor.from_pretrained(TINY_FOLDER)
    answers = answer(model, processor, ["what can you do", "draw a red circle"], "text_image", do_sample=False, max_new_tokens=40)
    assert [[part["type"] for part in parts] for parts in answers.parts] == [["text", "output_image"], ["output_image"]]
    assert answers.texts[0].startswith("i can draw shapes")
    pipe = pipeline("any-to-any", model=model, processor=processor)
    (record,) = pipe("what can you do", generation_mode="text_image", do_sample=False, max_new_tokens=40)
    assert [part["type"] for part in record["generated_content"]] == ["text", "output_image"]
