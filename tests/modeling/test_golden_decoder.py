"""The visual decoder and the generation projectors against the released ones."""

import pytest
import torch
from golden_helpers import assert_close_to_golden, golden, golden_json

from vargpt_hf.modeling.visual_decoder_vargpt import GENERATE_CONDITION, NULL_CONDITION


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request, golden_folder, golden_model):
    """The inner model, with both kinds of attention."""
    if request.param == "sdpa":
        return golden_model.model
    return type(golden_model).from_pretrained(golden_folder, attn_implementation=request.param).eval().model


@pytest.fixture(scope="module")
def condition_ids():
    """Ours for the released labels: image-start is "generate", the row after it is the null one."""
    start = golden_json("config")["special"]["image_gen_start_token_id"]
    assert golden("decoder/label_B").tolist() == [start, start + 1]
    return torch.tensor([GENERATE_CONDITION, NULL_CONDITION])


@torch.no_grad()
def test_embeddings(model, condition_ids):
    decoder, (schedule,) = model.visual_decoder, model.schedules
    assert_close_to_golden("decoder/cond_BD", decoder.condition_embedding(condition_ids))
    levels = decoder.scale_embedding(schedule.scale_of_position())
    assert_close_to_golden("decoder/lvl_pos", (levels + decoder.position_embedding)[None])
    inputs = golden("vqvae/var_input")
    assert_close_to_golden("decoder/embed_x_BLC", decoder.embed(inputs, condition_ids, schedule))
    of_scales = [None, *inputs.split(schedule.areas[1:], dim=1)]
    singly = [decoder.embed_scale(part, condition_ids, scale, schedule) for scale, part in enumerate(of_scales)]
    assert_close_to_golden("decoder/embed_x_BLC", torch.cat(singly, dim=1))


@torch.no_grad()
def test_layers_and_logits_of_whole_images(model, condition_ids):
    layers = model.visual_decoder.layers
    outputs = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, output, index=index: outputs.update({index: output})) for index, layer in enumerate(layers)
    ]
    logits = model.visual_decoder(golden("decoder/x_BLC"), condition_ids, model.schedules[0])
    for hook in hooks:
        hook.remove()
    for index in range(len(layers)):
        assert_close_to_golden(f"decoder/block_{index}_out", outputs[index])
    assert_close_to_golden("decoder/logits", logits.squeeze(2))


@torch.no_grad()
def test_logits_scale_by_scale_with_the_cache(model, condition_ids):
    schedule = model.schedules[0]
    state = model.visual_decoder.begin(condition_ids, schedule)
    logits = [model.visual_decoder(tokens, condition_ids, schedule, state=state) for tokens in schedule.split(golden("decoder/x_BLC"))]
    assert_close_to_golden("decoder/logits_kvcache", torch.cat(logits, dim=1).squeeze(2))


@torch.no_grad()
def test_without_a_mask_every_place_sees_all(model, condition_ids):
    state = model.visual_decoder.begin(condition_ids, model.schedules[0])
    logits = model.visual_decoder(golden("decoder/x_BLC"), condition_ids, model.schedules[0], state=state)
    assert_close_to_golden("decoder/logits_nomask", logits.squeeze(2))


@torch.no_grad()
def test_generation_projectors(model):
    assert_close_to_golden("decoder/proj_in", model.projector_to_llm(golden("decoder/x_BLC")))
    assert_close_to_golden("decoder/proj_out", model.projector_to_decoder(golden("decoder/h_BLH")))
