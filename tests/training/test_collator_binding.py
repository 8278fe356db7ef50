"""What the collator takes from a model that it is bound to."""

import pytest
import torch
from backbone_configs import backbone_config
from peft import get_peft_model
from reader_helpers import READERS, make_reader
from torch import nn
from transformers.utils import is_torchvision_available

from vargpt_hf import VargptProcessor
from vargpt_hf.peft import lora_config
from vargpt_hf.testing import tiny_model
from vargpt_hf.training.collator import VargptDataCollator

# Of what backbones take: pixels alone, tiles, patches, and sizes or types besides.
FAMILIES = ["llava", "llava_next", "idefics3", "gemma3", "paligemma", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "internvl", "mistral3"]


def test_it_takes_all_that_batches_depend_on():
    model, collator = tiny_model(), VargptDataCollator(processor=None)
    assert (collator.image_tokenizer_fingerprint, collator.pack_in_one_row, collator.no_images) == (None, False, None)
    assert collator.bind(model) is collator
    assert collator.image_tokenizer_fingerprint == model.model.image_tokenizer.fingerprint()
    assert not collator.pack_in_one_row and collator.no_images is None
    model.config.get_text_config()._attn_implementation = "flash_attention_2"
    assert collator.bind(model).pack_in_one_row


def test_adapters_around_the_model_change_nothing():
    model = tiny_model()
    fingerprint = model.model.image_tokenizer.fingerprint()
    assert VargptDataCollator(None).bind(get_peft_model(model, lora_config("draw"))).image_tokenizer_fingerprint == fingerprint


@pytest.mark.parametrize("family", FAMILIES)
def test_sharded_weights_need_images_of_each_kind_in_every_batch(family):
    """Zero images to draw and a blank one to read change nothing, but all parts run, and gradients go through them."""
    if READERS[family].needs_torchvision and not is_torchvision_available():
        pytest.skip("the backbone's own processor needs torchvision")
    torch.manual_seed(0)
    model = tiny_model(vlm_config=backbone_config(family)).train()
    collator = VargptDataCollator(VargptProcessor(reader=make_reader(family))).bind(model, sharded=True)
    shapes = {name: tuple(value.shape) for name, value in collator.no_images.items()}
    assert shapes == {"output_pixel_values": (0, 3, 16, 16), "output_image_codes": (0, 21)}
    assert collator.blank_image["pixel_values"].numel() and model.model.backbone.needed_beside_pixels <= collator.blank_image.keys()
    prompt = torch.tensor([[1, 5, 2]])
    alone = model(input_ids=prompt, labels=prompt)
    beside_none = model(
        input_ids=prompt, labels=prompt, output_image_codes=collator.no_images["output_image_codes"], blank_image=collator.blank_image
    )
    assert torch.equal(alone.logits, beside_none.logits) and beside_none.output_image_loss == 0
    beside_none.loss.backward()
    backbone = model.model.backbone
    reading = [model.model.vlm.get_submodule(name) for name in (*backbone.tower_names, *backbone.projector_names)]
    for part in (*reading, model.model.visual_decoder, model.model.projector_to_llm, model.model.projector_to_decoder):
        assert any(parameter.grad is not None for parameter in part.parameters()), type(part).__name__
        assert all(not parameter.grad.any() for parameter in part.parameters() if parameter.grad is not None)


def test_a_batch_of_sharded_weights_has_images_of_one_schedule():
    schedules = [[1, 2, 4], [[1, 1], [2, 3], [4, 6]]]
    processor = VargptProcessor(
        reader=make_reader("llava"), output_image_settings={"schedules": schedules, "downsampling": 4, "resize_factor": 1.0}
    )
    collator = VargptDataCollator(processor).bind(tiny_model(), sharded=True)

    def row(*lengths: int) -> dict:
        content = [{"type": "output_image", "text": None} for _ in lengths]
        turns = [{"role": "user", "content": [{"type": "text", "text": "draw"}]}, {"role": "assistant", "content": content}]
        return {"messages": turns, "images": [], "output_image_codes": [[0] * length for length in lengths]}

    assert "blank_image" in collator([row(21), row(21)])
    with pytest.raises(ValueError, match="images to draw of several schedules"):
        collator([row(21), row(31)])
    collator.bind(tiny_model())
    assert "blank_image" not in collator([row(21), row(31)])


def test_what_it_cannot_bind_to_is_said():
    with pytest.raises(ValueError, match="binds to a VARGPT, got a Linear"):
        VargptDataCollator(None).bind(nn.Linear(1, 1))
