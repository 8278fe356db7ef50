"""What the collator takes from a model that it is bound to."""

import pytest
import torch
from backbone_configs import backbone_config
from peft import get_peft_model
from torch import nn

from vargpt_hf.peft import lora_config
from vargpt_hf.testing import tiny_model
from vargpt_hf.training.collator import VargptDataCollator


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


def test_sharded_weights_need_images_of_each_kind_in_every_batch():
    model = tiny_model()
    stand_ins = VargptDataCollator(None).bind(model, sharded=True).no_images
    shapes = {name: tuple(value.shape) for name, value in stand_ins.items()}
    assert shapes == {"pixel_values": (0, 3, 16, 16), "output_pixel_values": (0, 3, 16, 16), "output_image_codes": (0, 21)}
    prompt = torch.tensor([[1, 5, 2]])
    alone = model(input_ids=prompt, labels=prompt)
    beside_none = model(
        input_ids=prompt, labels=prompt, pixel_values=stand_ins["pixel_values"], output_image_codes=stand_ins["output_image_codes"]
    )
    assert torch.equal(alone.logits, beside_none.logits)


def test_what_it_cannot_bind_to_is_said():
    with pytest.raises(ValueError, match="binds to a VARGPT, got a Linear"):
        VargptDataCollator(None).bind(nn.Linear(1, 1))
    model = tiny_model(vlm_config=backbone_config("qwen2_vl"))
    with pytest.raises(ValueError, match="'qwen2_vl_vision' takes images in a form of its own"):
        VargptDataCollator(None).bind(model, sharded=True)
