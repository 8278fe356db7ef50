"""What the Transformers backends of vLLM and SGLang ask of a model and its processor, tried without either.

Both build the base model by `AutoModel.from_config`, give its decoder an attention function of their own that needs no mask and is found by
name, feed one long row of embeddings with positions, and put features of images in the places that the processor announces.
"""

import pytest
import torch
from noise_images import noise_image
from transformers import AttentionInterface, AutoConfig, AutoModel, AutoProcessor

from vargpt_hf import VargptForConditionalGeneration
from vargpt_hf.tiny import TINY_FOLDER

NAME = "attention_of_an_engine"


@pytest.fixture(scope="module")
def calls():
    """What the engine's attention is called with: (layer, instances, whether a mask came)."""
    noted = []

    def attention(module, query, key, value, attention_mask, scaling=None, attention_instances=None, **kwargs):
        noted.append((module.layer_idx, attention_instances, attention_mask is not None))
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register(NAME, attention)
    yield noted
    AttentionInterface._global_mapping.pop(NAME, None)


@pytest.fixture(scope="module")
def whole():
    return VargptForConditionalGeneration.from_pretrained(TINY_FOLDER, dtype="float32").eval()


@pytest.fixture(scope="module")
def engine_s(whole, calls):
    """The base model as an engine builds it, with the weights of the whole one."""
    config = AutoConfig.from_pretrained(TINY_FOLDER)
    config.get_text_config()._attn_implementation = NAME
    config.dtype = torch.float32
    model = AutoModel.from_config(config, dtype=torch.float32).eval()
    model.load_state_dict(whole.model.state_dict())
    return model


@pytest.fixture(scope="module")
def inputs():
    """A prompt with an image, as an engine has its processor prepare it."""
    processor = AutoProcessor.from_pretrained(TINY_FOLDER)
    image = noise_image(0)
    options = {"return_tensors": "pt", "return_mm_token_type_ids": True, "return_text_replacement_offsets": True}
    return processor, processor(text=f"{processor.image_token} which digit is this", images=[image], **options)


@torch.no_grad()
def test_an_engine_s_attention_reads_what_the_model_reads(whole, engine_s, inputs, calls):
    """Embeddings with the image's features in their places; positions, no mask; a tuple back. The scores are those of the model."""
    processor, prepared = inputs
    features = engine_s.get_image_features(prepared["pixel_values"], return_dict=True).pooler_output
    embeds = engine_s.get_input_embeddings()(prepared["input_ids"])
    places = prepared["mm_token_type_ids"] == 1
    embeds[places] = torch.cat(list(features))
    calls.clear()
    instances = {"0": "an engine's own"}
    positions = torch.arange(embeds.shape[1])[None]
    given = {"input_ids": None, "inputs_embeds": embeds, "position_ids": positions, "use_cache": False, "return_dict": False}
    hidden = engine_s(**given, attention_instances=instances)[0]
    layers = engine_s.config.get_text_config().num_hidden_layers
    assert [call[0] for call in calls] == list(range(layers)) and all(call[1] is instances for call in calls)
    read = {name: prepared[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    assert torch.allclose(whole.lm_head(hidden), whole(**read).logits, atol=1e-4)


def test_what_the_model_says_of_itself(engine_s):
    text = engine_s.config.get_text_config()
    assert engine_s._supports_attention_backend and engine_s.base_model_prefix == "model"
    assert type(engine_s.get_decoder()).__name__ == "LlamaModel" and text.base_model_tp_plan and text.hidden_size and text.vocab_size
    assert engine_s.get_input_embeddings().weight.shape == (text.vocab_size, text.hidden_size)
    assert set(engine_s._pp_plan) == {f"vlm.language_model.{name}" for name in ("embed_tokens", "layers", "norm")}


def test_weights_lie_where_they_are_looked_for(whole, engine_s):
    """All but the head are under the base model's name, and the head is tied or by itself."""
    names = {name.removeprefix("model.") for name in whole.state_dict() if name.startswith("model.")}
    assert names == set(engine_s.state_dict())
    assert {name for name in whole.state_dict() if not name.startswith("model.")} <= {"lm_head.weight"}


def test_what_the_processor_announces(inputs):
    """Places of an image before it is read: their number, and what stands in the text, entry by entry."""
    processor, prepared = inputs
    announced = processor._get_num_multimodal_tokens(image_sizes=([48, 48], [10_000, 10_000]))
    assert announced["num_image_tokens"] == [36, 36] and announced["num_image_patches"] == [1, 1]
    assert int((prepared["mm_token_type_ids"] == 1).sum()) == 36
    assert torch.equal(prepared["mm_token_type_ids"] == 1, prepared["input_ids"] == processor.image_token_id)
    ((entry,),) = prepared["text_replacement_offsets"]
    assert entry["type"] == "image" and entry["replacement"] == processor.image_token * 36
    assert hasattr(processor, "image_processor") and not hasattr(processor, "video_processor")
