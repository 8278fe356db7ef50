"""What fails or goes wrong in the released VARGPT v1.1, one test for each; permuted rows and shared draws of DPO have theirs elsewhere.

`test_golden_v11.py` permutes rows and draws after text, `tests/training/test_training_v11.py` shares the draws of policy and reference.
"""

import pytest
import torch
import torch.nn.functional as F
from golden_v11_helpers import golden_v11, golden_v11_model

from vargpt_hf.modeling.visual_decoder_vargpt import NULL_CONDITION

L, PAD = 30, 301


@pytest.fixture(scope="module")
def model():
    return golden_v11_model()


def words(seed: int, count: int) -> list[int]:
    return torch.randint(5, 290, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def drawing(model) -> list[int]:
    config = model.config
    return [config.output_image_start_token_id, *[config.output_image_token_id] * L, config.output_image_end_token_id]


def codes(count: int, seed: int = 0) -> torch.LongTensor:
    return torch.randint(2**8, (count, L), generator=torch.Generator().manual_seed(seed))


def batch(rows: list[list[int]], left: bool = False) -> dict[str, torch.Tensor]:
    """Rows padded on one side, with plain positions that count what is seen."""
    longest = max(map(len, rows))
    padded = [[PAD] * (longest - len(row)) + row if left else row + [PAD] * (longest - len(row)) for row in rows]
    seen = [[0] * (longest - len(row)) + [1] * len(row) if left else [1] * len(row) + [0] * (longest - len(row)) for row in rows]
    mask = torch.tensor(seen)
    return {"input_ids": torch.tensor(padded), "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def assert_close(first: torch.Tensor, second: torch.Tensor) -> None:
    torch.testing.assert_close(first, second, atol=5e-5, rtol=1e-4)


@torch.no_grad()
def test_padding_on_the_left_is_not_in_the_context(model):
    """There the context begins at column 0 of a row, padding or not."""
    rows = [[*words(1, 12), *drawing(model)], [*words(2, 4), *drawing(model), *words(3, 3)]]
    right, left = (model(**batch(rows, side), output_image_codes=codes(2)) for side in (False, True))
    assert_close(left.output_image_logits, right.output_image_logits)
    masks = [batch(rows, side)["attention_mask"].bool() for side in (False, True)]
    for index in range(2):
        assert_close(left.logits[index][masks[1][index]], right.logits[index][masks[0][index]])


@torch.no_grad()
def test_several_images_and_text_in_one_row(model):
    """There two drawn images in a row fail. Each image sees what is before it, the first one among it, and nothing behind."""
    first = [*words(1, 6), *drawing(model)]
    whole = [*first, *words(2, 4), *drawing(model), *words(3, 5)]
    both = model(**batch([whole]), output_image_codes=codes(2))
    alone = model(**batch([first]), output_image_codes=codes(2)[:1])
    assert both.output_image_logits.shape[0] == 2
    assert_close(both.output_image_logits[:1], alone.output_image_logits)
    assert_close(both.logits[:, : len(first)], alone.logits)
    other = codes(2)
    other[0] = codes(1, seed=9)[0]
    changed = model(**batch([whole]), output_image_codes=other)
    assert (changed.output_image_logits[1] - both.output_image_logits[1]).abs().max() > 1e-3  # the second image knows the first
    assert (changed.logits[0, len(first) :] - both.logits[0, len(first) :]).abs().max() > 1e-3  # and so does the text behind it
    reworded = model(**batch([[*whole[:-5], *words(8, 5)]]), output_image_codes=codes(2))
    assert_close(reworded.output_image_logits, both.output_image_logits)


@torch.no_grad()
def test_the_context_is_the_row_s_own(model):
    """Held against the decoder by itself, with the projected states of all that stands before image-start."""
    start = [*words(1, 6), *drawing(model), *words(2, 4)]
    inputs = batch([[*start, *drawing(model)]])
    output = model(**inputs, output_image_codes=codes(2), output_last_hidden_state=True)
    inner, schedule = model.model, model.model.schedules[0]
    states = inner.projector_to_decoder(output.last_hidden_state)
    positions = slice(len(start) + 1, len(start) + 1 + L)
    alone = inner.visual_decoder(states[:, positions], torch.tensor([0]), schedule, states[:, : len(start)], torch.ones(1, len(start)))
    assert_close(output.output_image_logits[1:], alone)


@torch.no_grad()
def test_more_tokens_before_an_image_than_stored_rows(model):
    """Here 40 rows are stored, and 100 tokens stand before the image, also under the null condition."""
    row = [*words(1, 100), *drawing(model)]
    for condition in (0, NULL_CONDITION):
        output = model(
            **batch([row, [*words(2, 3), *drawing(model)]]),
            output_image_codes=codes(2),
            output_image_condition_ids=torch.tensor([condition] * 2),
        )
        alone = model(**batch([row]), output_image_codes=codes(2)[:1], output_image_condition_ids=torch.tensor([condition]))
        assert_close(output.output_image_logits[:1], alone.output_image_logits)


@torch.no_grad()
def test_text_is_scored_where_labels_say(model):
    """There all tokens of rows that draw are targets: system prompt, request, padding."""
    rows = [[*words(1, 8), *drawing(model), *words(2, 4)], [*words(3, 9)]]
    inputs = batch(rows)
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[0, 6:8], labels[0, 40:44], labels[1, 7:9] = (inputs["input_ids"][0, 6:8], inputs["input_ids"][0, 40:44], inputs["input_ids"][1, 7:9])
    output = model(**inputs, labels=labels, output_image_codes=codes(1))
    assert (labels != -100).sum() == 8
    by_hand = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.text_loss, by_hand)
    whole = model(**inputs, labels=inputs["input_ids"], output_image_codes=codes(1))
    assert not torch.isclose(whole.text_loss, output.text_loss) and torch.isclose(whole.output_image_loss, output.output_image_loss)
    torch.testing.assert_close(output.loss, output.text_loss + 3 * output.output_image_loss)


@torch.no_grad()
def test_evaluation_mode_and_tuples_have_image_losses(model):
    """There evaluation gives no scores of images, and outputs as tuples fail."""
    inputs = batch([[*words(1, 6), *drawing(model)]]) | {"output_image_codes": codes(1)}
    assert not model.training and model(**inputs).output_image_loss.isfinite()
    found = [value for value in model(**inputs, return_dict=False) if isinstance(value, torch.Tensor)]
    assert any(value.shape == (1, L, 8, 2) for value in found)


def test_bfloat16_draws_outside_of_autocast():
    """There the rotary table stays in float32, and queries and values have other types."""
    model = golden_v11_model().bfloat16()
    for guidance in ("none", "scale", "prompt"):
        output = model.generate(
            golden_v11("generation/plain.prompt_ids"),
            generation_mode="image",
            do_sample=False,
            output_image_guidance_type=guidance,
            output_image_unconditional_ids=[PAD, 5],
            return_dict_in_generate=True,
        )
        assert output.output_images.shape == (1, 3, 64, 64) and output.output_images.isfinite().all()
