"""Image tokenizers beyond VAR's settings: grids that come again, and encoders that see neighborhoods alone."""

import pytest
import torch

from vargpt_hf.modeling.image_tokenizer_vargpt import from_symbols
from vargpt_hf.modeling.scales_vargpt import ScaleSchedule
from vargpt_hf.modeling.vq_vargpt import VargptVQConfig, VargptVQModel
from vargpt_hf.testing import tiny_model

TWICE = ScaleSchedule.of([1, 2, 4, 4])
SMALL = {"base_channels": 8, "channel_multipliers": (1, 1, 2), "num_res_blocks": 1, "norm_num_groups": 4, "latent_channels": 4}
DECODERS = {
    "var": {"model_type": "vargpt_var_decoder", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
    "infinity": {"model_type": "vargpt_infinity_decoder", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
}


def tokenizer(schedule: list[int], **fields) -> VargptVQModel:
    torch.manual_seed(0)
    return VargptVQModel(VargptVQConfig(schedules=[schedule], codebook_size=24, **SMALL, **fields)).eval()


@pytest.mark.parametrize("kind", [{"model_type": "vargpt_vq", "codebook_size": 24}, {"model_type": "vargpt_bsq"}])
def test_a_grid_that_comes_again_codes_what_was_left(kind):
    model = tiny_model(
        image_tokenizer_config={"schedules": [[1, 2, 4, 4]], **SMALL, **kind}, visual_decoder_config=DECODERS["infinity"]
    ).model.image_tokenizer
    latents = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    codes = model.quantize(latents, TWICE)
    assert codes.shape == (3, 1 + 4 + 16 + 16)
    left = latents - model.accumulate(codes, TWICE, num_scales=3)
    if kind["model_type"] == "vargpt_vq":
        of_left = (left.flatten(2).mT[:, :, None] - model.quantizer.codebook.weight).square().sum(-1).argmin(-1)
    else:
        of_left = from_symbols((left > 0).long().flatten(2).mT, 2)
    assert torch.equal(codes[:, 21:], of_left) and not torch.equal(codes[:, 5:21], of_left)


@pytest.mark.parametrize("decoder", DECODERS)
def test_drawing_scale_by_scale_scores_as_the_whole_image(decoder):
    model = tiny_model(
        image_tokenizer_config={"model_type": "vargpt_vq", "codebook_size": 24, "schedules": [[1, 2, 4, 4]], **SMALL},
        visual_decoder_config=DECODERS[decoder],
    ).eval()
    prompt = torch.tensor([[1, 5, 6, 7]])
    drawn = model.generate(prompt, generation_mode="image", return_dict_in_generate=True, do_sample=False, output_image_guidance_type="none")
    assert drawn.output_image_codes.shape == (1, 37)
    start, placeholder = model.config.output_image_start_token_id, model.config.output_image_token_id
    ids = torch.cat([prompt, torch.tensor([[start, *[placeholder] * 37]])], dim=1)
    scores = model(input_ids=ids, output_image_codes=drawn.output_image_codes).output_image_logits
    assert torch.equal(scores.squeeze(2).argmax(-1), drawn.output_image_codes)


def test_a_local_encoder_sees_nothing_far_away():
    pixels = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    other = pixels.clone()
    other[..., :8, :8] *= -1
    for local in (True, False):
        model = tokenizer([1, 32], local_encoder=local)
        changed = (model.encode_latents(pixels) - model.encode_latents(other)).abs().amax((0, 1))
        assert changed[:2, :2].min() > 0
        far = changed[-8:, -8:]
        assert far.max() == 0 if local else far.min() > 0


def test_norms_of_a_local_encoder_start_at_one_and_are_of_the_encoder_alone():
    model = tokenizer([1, 4], local_encoder=True)
    weights = {name: weight for name, weight in model.named_parameters() if ".norm" in name and name.endswith("weight")}
    assert all((weight == 1).all() for weight in weights.values())
    kinds = {name.split(".")[0]: type(module).__name__ for name, module in model.named_modules() if name.endswith("norm1")}
    assert kinds == {"encoder": "VargptPositionNorm", "decoder": "GroupNorm"}


def test_what_fills_windows_has_the_same_codes_wherever_it_stands():
    model = tokenizer([2, 4, 8, 8], window_size=2, local_encoder=True)
    schedule = model.config.scale_schedules[0]
    generator = torch.Generator().manual_seed(0)
    thing, neighbor = (torch.rand(1, 3, 16, 16, generator=generator) * 2 - 1 for _ in range(2))  # of 4×4 positions, as a 2×2 grid has
    alone, beside, below = torch.zeros(3, 1, 3, 32, 32).unbind()
    alone[..., :16, :16] = thing
    beside[..., :16, :16], beside[..., :16, 16:] = neighbor, thing
    below[..., 16:, :16], below[..., 16:, 16:] = thing, neighbor
    scales = schedule.split(model.encode(torch.cat([alone, beside, below])))
    for grid, codes in zip((2, 4, 8, 8), scales):
        half = grid // 2
        first, second, third = codes.unflatten(1, (grid, grid))
        assert torch.equal(first[:half, :half], second[:half, half:]) and torch.equal(first[:half, :half], third[half:, :half])
    assert len(scales[-1].unique()) > 1


def test_windows_are_encoded_as_images_of_their_own():
    model = tokenizer([2, 4], window_size=2)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = model.encode_latents(pixels)
    whole = tokenizer([2])
    for row, column in ((0, 0), (1, 0), (1, 1)):
        window = whole.encode_latents(pixels[..., 8 * row : 8 * row + 8, 8 * column : 8 * column + 8])
        torch.testing.assert_close(latents[..., 2 * row : 2 * row + 2, 2 * column : 2 * column + 2], window)


@pytest.mark.parametrize("schedule, size", [([1, 4], 3), ([3, 4], 2), ([2, 3, 6], 2), ([4], 0)])
def test_windows_that_do_not_tile_are_refused(schedule, size):
    with pytest.raises(ValueError, match="window"):
        VargptVQConfig(schedules=[schedule], window_size=size, **SMALL)
