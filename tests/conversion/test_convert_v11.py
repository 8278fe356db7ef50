"""Released checkpoints of VARGPT v1.1 to folders of ours."""

import json
import math
from pathlib import Path

import pytest
import torch
from golden_v11_helpers import GOLDEN_V11, golden_v11, golden_v11_model, released_v11_weights, write_released_v11_folder

from vargpt_hf import VargptConfig, VargptForConditionalGeneration
from vargpt_hf.conversion.checkpoint import SourceTensor
from vargpt_hf.conversion.convert import convert_checkpoint
from vargpt_hf.conversion.formats import vargpt_v1_1
from vargpt_hf.conversion.renaming import rename


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    parent = tmp_path_factory.mktemp("v11")
    convert_checkpoint(write_released_v11_folder(parent / "released"), parent / "converted", scales=[1, 2, 3, 4], reference_grid=(8, 8))
    return parent / "converted"


def test_weights_are_the_golden_ones(converted):
    loaded, golden = VargptForConditionalGeneration.from_pretrained(converted).state_dict(), golden_v11_model().state_dict()
    assert loaded.keys() == golden.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in golden.items())


def test_it_draws_the_golden_image_as_released(converted):
    model = VargptForConditionalGeneration.from_pretrained(converted).eval()
    settings = model.generation_config
    assert (settings.output_image_guidance_type, settings.output_image_guidance_scale, settings.output_image_temperature) == ("scale", 2.0, 0.5)
    output = model.generate(golden_v11("generation/cfg3.prompt_ids"), generation_mode="image", do_sample=False, return_dict_in_generate=True)
    bits = torch.cat([golden_v11(f"generation/cfg3.bits_{scale}") for scale in range(4)]).long()
    assert torch.equal(model.model.image_tokenizer.to_symbols(output.output_image_codes)[0], bits)
    levels = ((output.output_images[0].permute(1, 2, 0) + 1) / 2 * 255).to(torch.uint8)  # as the released system saves it
    assert (levels.int() - golden_v11("generation/cfg3.image_u8").int()).abs().max() <= 1
    assert model.config.license_note == vargpt_v1_1.LICENSE_NOTE


def test_all_aspect_ratios_without_scales(tmp_path):
    convert_checkpoint(write_released_v11_folder(tmp_path / "released"), tmp_path / "converted")
    config = VargptConfig.from_pretrained(tmp_path / "converted")
    assert len(config.schedules) == 15 and config.schedules[0].num_positions == 2521
    assert config.image_tokenizer_config.image_size() == (512, 512)


def test_missing_and_unexpected_tensors_are_named(tmp_path):
    weights = dict(released_v11_weights())
    del weights["vargpt_gen.block_chunks.1.module.0.ca.mat_q.bias"], weights["model.layers.0.self_attn.q_proj.bias"]
    weights["vargpt_gen.something"] = torch.zeros(1)
    with pytest.raises(ValueError, match="unexpected: vargpt_gen.something .*missing: .*q_proj.bias") as error:
        convert_checkpoint(write_released_v11_folder(tmp_path / "released", weights), tmp_path / "converted", scales=[1, 2, 3, 4])
    assert "model.layers.0.self_attn.q_proj.bias" in str(error.value)
    assert not (tmp_path / "converted").exists()


def test_a_checkpoint_of_the_editing_kind_converts(tmp_path):
    """The same format, perhaps in bfloat16, without the tensors that nothing reads, and with the areas of a folder of its own."""
    dead = ("lfq.mask", "zero_k_bias", "projector.ln_q", "projector_out.ln_q", "text_proj_for_ca", "text_proj_for_sos.ca.mat_q")
    weights = {name: tensor.bfloat16() for name, tensor in released_v11_weights().items() if not any(part in name for part in dead)}
    assert len(weights) < len(released_v11_weights())
    source = write_released_v11_folder(tmp_path / "released", weights, torch_dtype="bfloat16", architectures=None, image_gen_extra=1)
    convert_checkpoint(source, tmp_path / "converted", scales=[1, 2, 3, 4], reference_grid=(8, 8))
    model, golden = VargptForConditionalGeneration.from_pretrained(tmp_path / "converted"), golden_v11_model()
    assert model.dtype == torch.bfloat16
    assert all(torch.equal(tensor, golden.state_dict()[name].to(tensor.dtype)) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("field", ["vision_config", "rope_scaling"])
def test_a_config_without_a_field_says_so(tmp_path, field):
    with pytest.raises(ValueError, match=f"lacks .*`{field}`"):
        convert_checkpoint(write_released_v11_folder(tmp_path / "released", **{field: None}), tmp_path / "converted")


def test_the_released_model_at_true_size():
    """All names that it has are accounted for on the meta device: none missing, unexpected or twice."""
    names = json.loads((GOLDEN_V11 / "keys_true_size.json").read_text())
    tensors = {name: SourceTensor(torch.empty(shape, device="meta"), "model.safetensors") for name, shape in names.items()}
    assert len(tensors) == 1706
    text, vision = VargptConfig.v1_1().vlm_config.text_config, VargptConfig.v1_1().vlm_config.vision_config
    source = {
        **text.to_dict(),
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": vision.to_dict(),
        "image_token_id": 151655,
        "special_tokens": {"image_gen_start_token_id": 151657, "image_gen_end_token_id": 151658, "image_gen_pad_token_id": 151659},
    }
    config = vargpt_v1_1.config_of(source, tensors)
    with torch.device("meta"):
        model = VargptForConditionalGeneration(config)
    adapt, ours, dropped = vargpt_v1_1.adapt(tensors, config), {}, []
    for released, entry in tensors.items():
        renamed = rename(released, vargpt_v1_1.NAMES)
        if renamed is None:
            dropped.append(released)
            continue
        for name, tensor in adapt(renamed, entry.tensor):
            assert name not in ours, name
            ours[name] = tuple(tensor.shape)
    assert ours == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    dead = sum(math.prod(names[name]) for name in dropped)
    assert 8_000_000 < dead < 10_000_000 and all("zero_k_bias" in n or "ln_q" in n or "text_proj" in n or "lfq" in n for n in dropped)
