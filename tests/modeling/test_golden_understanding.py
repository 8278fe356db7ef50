"""Reading images and text, against the released system."""

import pytest
import torch
import torch.nn.functional as F
from golden_helpers import assert_close_to_golden, assert_golden_choices, golden, golden_tolerance


@pytest.fixture(scope="module")
def padded():
    """A left-padded batch of two rows, each with an image."""
    return {
        "input_ids": golden("understanding/pad.input_ids"),
        "attention_mask": golden("understanding/pad.attention_mask"),
        "pixel_values": golden("understanding/pixel_values"),
    }


@torch.no_grad()
def test_image_features(golden_model):
    pixels = golden("understanding/pixel_values")
    states = golden_model.model.vlm.vision_tower(pixels, output_hidden_states=True).hidden_states
    assert_close_to_golden("understanding/vision_selected", states[-2])
    features = golden_model.get_image_features(pixels).pooler_output
    assert_close_to_golden("understanding/image_features", torch.stack(list(features)))


@torch.no_grad()
def test_one_row(golden_model):
    input_ids, pixels = golden("understanding/single.input_ids"), golden("understanding/pixel_values")[:1]
    output = golden_model(input_ids=input_ids, pixel_values=pixels)
    assert_close_to_golden("understanding/single.logits", output.logits)
    hidden = golden_model.model(input_ids=input_ids, pixel_values=pixels).last_hidden_state
    assert_close_to_golden("understanding/single.hidden", hidden)


@torch.no_grad()
def test_text_alone(golden_model):
    output = golden_model(input_ids=golden("understanding/text.input_ids"))
    assert_close_to_golden("understanding/text.logits", output.logits)


@torch.no_grad()
def test_left_padding(golden_model, padded):
    mask = padded["attention_mask"]
    assert_close_to_golden("understanding/pad.logits", golden_model(**padded).logits, where=mask)
    positions = golden("understanding/pad.position_ids")
    logits = golden_model(**padded, position_ids=positions).logits
    assert_close_to_golden("understanding/pad.logits_pos", logits, where=mask)


@torch.no_grad()
def test_loss_with_padding(golden_model, padded):
    """The released loss also asks for the image tokens that stand among the labels; ours leaves them out, on purpose."""
    labels = golden("understanding/pad.labels")
    output = golden_model(**padded, labels=labels)
    targets = labels[:, 1:].flatten()
    losses = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), targets, reduction="none")
    kept = targets != -100
    assert_close_to_golden("understanding/pad.loss", losses[kept].mean())
    assert (targets == golden_model.config.image_token_id).sum() == 1
    kept &= targets != golden_model.config.image_token_id
    torch.testing.assert_close(output.loss, losses[kept].mean())
    torch.testing.assert_close(output.text_loss, output.loss)


def test_greedy_answers_of_a_padded_batch(golden_model, padded):
    output = golden_model.generate(
        **padded,
        generation_mode="text",
        do_sample=False,
        max_new_tokens=8,
        return_dict_in_generate=True,
        output_logits=True,
    )
    name, length = "understanding/pad.generated", padded["input_ids"].shape[1]
    scores, allowed = golden(f"{name}_scores"), golden_tolerance(f"{name}_scores")
    (found, given), (expected, prompt) = ((ids[:, length:], ids[:, :length]) for ids in (output.sequences, golden(name)))
    assert torch.equal(given, prompt)
    if assert_golden_choices(name, found, expected, scores, allowed, [1] * found.shape[1]):
        assert_close_to_golden(f"{name}_scores", torch.stack(output.logits, dim=1))
