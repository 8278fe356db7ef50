"""The visual decoder and the generation projectors against the released ones."""

import pytest
import torch
from golden_helpers import assert_close_to_golden, golden, golden_json

from vargpt_hf.modeling.visual_decoder_vargpt import GENERATE_CONDITION, NULL_CONDITION, DecoderCache


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


def new_cache(model) -> DecoderCache:
    return DecoderCache(model.config, num_pictures=2, dtype=torch.float32, device=torch.device("cpu"))


@torch.no_grad()
def test_embeddings(model, condition_ids):
    decoder = model.visual_decoder
    assert_close_to_golden("decoder/cond_BD", decoder.condition_embedding(condition_ids))
    assert_close_to_golden("decoder/lvl_pos", decoder.position_embeddings()[None])
    assert_close_to_golden("decoder/embed_x_BLC", decoder.embed(golden("vqvae/var_input"), condition_ids))


@torch.no_grad()
def test_layers_and_logits_of_whole_pictures(model, condition_ids):
    layers = model.visual_decoder.layers
    outputs = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, output, index=index: outputs.update({index: output})) for index, layer in enumerate(layers)
    ]
    logits = model.visual_decoder(golden("decoder/x_BLC"), condition_ids)
    for hook in hooks:
        hook.remove()
    for index in range(len(layers)):
        assert_close_to_golden(f"decoder/block_{index}_out", outputs[index])
    assert_close_to_golden("decoder/logits", logits)


@torch.no_grad()
def test_logits_scale_by_scale_with_the_cache(model, condition_ids):
    cache, modulations = new_cache(model), model.visual_decoder.modulations(condition_ids)
    logits = [
        model.visual_decoder(tokens, condition_ids, cache=cache, modulations=modulations)
        for tokens in golden("decoder/x_BLC").split(model.visual_decoder.sizes, dim=1)
    ]
    assert_close_to_golden("decoder/logits_kvcache", torch.cat(logits, dim=1))


@torch.no_grad()
def test_without_a_mask_every_place_sees_all(model, condition_ids):
    logits = model.visual_decoder(golden("decoder/x_BLC"), condition_ids, cache=new_cache(model))
    assert_close_to_golden("decoder/logits_nomask", logits)


@torch.no_grad()
def test_generation_projectors(model):
    assert_close_to_golden("decoder/proj_in", model.projector_to_llm(golden("decoder/x_BLC")))
    assert_close_to_golden("decoder/proj_out", model.projector_to_decoder(golden("decoder/h_BLH")))
