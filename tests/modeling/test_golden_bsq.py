"""The bitwise image tokenizer against the released one: bits equal, floats to rounding; and its own training."""

import pytest
import torch
from golden_v11_helpers import assert_close_to_v11, golden_v11, golden_v11_json, released_v11_part

from vargpt_hf.conversion.formats.infinity import BSQ_NAMES
from vargpt_hf.conversion.renaming import rename
from vargpt_hf.modeling.bsq_vargpt import VargptBSQConfig, VargptBSQModel
from vargpt_hf.modeling.scales_vargpt import ScaleSchedule

SQUARE, TALL = ScaleSchedule.of([1, 2, 3, 4]), ScaleSchedule.of([[1, 1], [2, 2], [4, 2]])


@pytest.fixture(scope="module")
def tokenizer() -> VargptBSQModel:
    sizes = golden_v11_json("config")["vae"]
    config = VargptBSQConfig(
        schedules=[SQUARE.to_list(), TALL.to_list()],
        latent_channels=sizes["d"],
        base_channels=sizes["ch"],
        channel_multipliers=sizes["ch_mult"],
        num_res_blocks=sizes["num_res_blocks"],
    )
    model = VargptBSQModel(config).eval()
    named = {rename(name, BSQ_NAMES): tensor for name, tensor in released_v11_part("vae_local.").items()}
    named.pop(None)
    model.load_state_dict(named)
    return model


def bits(prefix: str = "") -> torch.LongTensor:
    """The golden bits (N, L, d) of the pixels."""
    count = 4 if not prefix else 3
    return torch.cat([golden_v11(f"tokenizer/{prefix}bits_{scale}") for scale in range(count)], dim=1).long()


@pytest.mark.parametrize(("prefix", "schedule"), [("", SQUARE), ("rect.", TALL)])
@torch.no_grad()
def test_pixels_to_bits_and_back(tokenizer, prefix, schedule):
    pixels = golden_v11(f"tokenizer/{prefix}pixels")
    latents = tokenizer.encode_latents(pixels)
    assert_close_to_v11(f"tokenizer/{prefix}f", latents)
    codes, inputs = tokenizer.training_pair(pixels, schedule)
    assert torch.equal(tokenizer.to_symbols(codes), bits(prefix))
    assert torch.equal(tokenizer.encode(pixels, schedule), codes)
    for scale in range(len(schedule)):
        assert_close_to_v11(f"tokenizer/{prefix}fhat_{scale}", tokenizer.accumulate(codes, schedule, num_scales=scale + 1))
    assert_close_to_v11(f"tokenizer/{prefix}next_inputs", inputs)
    assert_close_to_v11(f"tokenizer/{prefix}decoder_raw", tokenizer.decode_latents(tokenizer.accumulate(codes, schedule)))
    assert_close_to_v11(f"tokenizer/{prefix}recon", tokenizer.decode(codes, schedule))


@torch.no_grad()
def test_random_bits(tokenizer):
    codes = tokenizer.from_symbols(golden_v11("tokenizer/rand.bits").long())
    first = SQUARE.split(codes)[1]
    assert_close_to_v11("tokenizer/codes_of_bits", tokenizer.bits_to_latents(tokenizer.to_symbols(first)).transpose(1, 2).unflatten(2, (2, 2)))
    assert_close_to_v11("tokenizer/rand.fhat", tokenizer.accumulate(codes))
    assert_close_to_v11("tokenizer/rand.img", tokenizer.decode(codes))


@torch.no_grad()
def test_self_correction(tokenizer):
    """Labels are the bits of the residuals, inputs are made of the inverted ones, and both change what follows."""
    pixels, flips = golden_v11("tokenizer/pixels"), golden_v11("tokenizer/flip.mask").bool()
    codes, inputs = tokenizer.training_pair(pixels, SQUARE, flips=flips)
    assert torch.equal(tokenizer.to_symbols(codes), golden_v11("tokenizer/flip.labels").long())
    assert_close_to_v11("tokenizer/flip.next_inputs", inputs)


@torch.no_grad()
def test_bits_are_inverted_in_training_alone(tokenizer):
    pixels = golden_v11("tokenizer/pixels")
    plain = tokenizer.training_pair(pixels)
    torch.manual_seed(0)
    tokenizer.train()
    try:
        codes, inputs = tokenizer.training_pair(pixels)
        of_codes = tokenizer.training_pair(None, codes=plain[0])
    finally:
        tokenizer.eval()
    assert torch.equal(tokenizer.to_symbols(codes)[:, 0], tokenizer.to_symbols(plain[0])[:, 0])  # nothing comes before the first scale
    assert not torch.equal(inputs, plain[1]) and not torch.equal(codes, plain[0])
    assert torch.equal(of_codes[0], plain[0]) and torch.equal(of_codes[1], plain[1])  # codes made ahead have lost their latents


def test_rates_of_self_correction(tokenizer):
    torch.manual_seed(0)
    many = torch.stack([tokenizer.draw_flips(64, SQUARE, torch.device("cpu")).float().mean((0, 2)) for _ in range(200)])
    of_scales = torch.stack([part.mean(1) for part in SQUARE.split(many, dim=1)], dim=1)
    assert of_scales[:, 3].max() < 0.36 and of_scales[:, 3].min() < 0.02
    torch.testing.assert_close(of_scales.mean(), torch.tensor(0.15), atol=0.02, rtol=0)
    assert of_scales[:, 1:].std(1).mean() > 0.05  # every scale has its own


def test_a_training_step_lowers_the_loss():
    torch.manual_seed(0)
    config = VargptBSQConfig(schedules=[[1, 2, 4]], latent_channels=6, base_channels=8, channel_multipliers=(1, 1, 2), norm_num_groups=4)
    model = VargptBSQModel(config).train()
    pixels = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(30):
        output = model(pixels)
        loss = (output.reconstruction - pixels).square().mean() + 0.1 * output.quantization_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latent_channels": 63}, "at most 62"),
        ({"max_flip_rate": 1.5}, "max_flip_rate"),
        ({"entropy_temperature": 0.0}, "entropy_temperature"),
        ({"base_channels": 20}, "divisible by norm_num_groups=32"),
        ({"schedules": []}, "one or more lists of scales"),
    ],
)
def test_contradictions_raise(fields, message):
    with pytest.raises(ValueError, match=message):
        VargptBSQConfig(**fields)


def test_true_sizes_on_the_meta_device():
    with torch.device("meta"):
        model = VargptBSQModel(VargptBSQConfig())
    assert round(sum(p.numel() for p in model.encoder.parameters()) / 1e6, 1) == 45.0
    assert round(sum(p.numel() for p in model.decoder.parameters()) / 1e6, 1) == 65.1
    assert model.default_schedule.num_positions == 2521 and model.config.image_size() == (512, 512)
