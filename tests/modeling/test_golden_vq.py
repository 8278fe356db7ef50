"""The image tokenizer against the released one: codes equal, floats to rounding."""

import pytest
import torch
from golden_helpers import assert_close_to_golden, assert_golden_codes, golden, golden_json

from vargpt_hf.modeling.autoencoder_vargpt import VargptUpsample
from vargpt_hf.modeling.vq_vargpt import residual_conv_index

NUM_SCALES = 4


@pytest.fixture(scope="module")
def image_tokenizer(golden_model):
    return golden_model.model.image_tokenizer


@pytest.fixture(scope="module")
def codes():
    return torch.cat([golden(f"vqvae/idx_{index}") for index in range(NUM_SCALES)], dim=1)


@torch.no_grad()
def test_continuous_latents(image_tokenizer):
    assert_close_to_golden("vqvae/encoder_out", image_tokenizer.encoder(golden("vqvae/pixels")))
    assert_close_to_golden("vqvae/f", image_tokenizer.encode_latents(golden("vqvae/pixels")))


def test_codes_are_equal(image_tokenizer, codes):
    pixels = golden("vqvae/pixels")
    assert_golden_codes(image_tokenizer, pixels, image_tokenizer.encode(pixels), codes)


def test_shared_convolutions_go_to_the_same_scales(image_tokenizer):
    found = [residual_conv_index(scale, NUM_SCALES, len(image_tokenizer.quantizer.residual_convs)) for scale in range(NUM_SCALES)]
    assert found == golden_json("meta")["vqvae"]["phi_index_per_scale"]


@torch.no_grad()
@pytest.mark.parametrize("index", range(NUM_SCALES))
def test_accumulated_latents_after_each_scale(image_tokenizer, codes, index):
    assert_close_to_golden(f"vqvae/fhat_enc_{index}", image_tokenizer.accumulate(codes, num_scales=index + 1))


@torch.no_grad()
def test_accumulated_latents_of_encoding_and_of_codes_agree(image_tokenizer, codes):
    found, f_hat, _ = image_tokenizer.quantizer.encode(golden("vqvae/f"), image_tokenizer.default_schedule)
    if assert_golden_codes(image_tokenizer, golden("vqvae/pixels"), found, codes):
        assert_close_to_golden("vqvae/fhat_enc_3", f_hat)
    assert_close_to_golden("vqvae/fhat_from_idx", image_tokenizer.accumulate(codes))


@torch.no_grad()
@pytest.mark.parametrize("index", range(NUM_SCALES - 1))
def test_input_of_the_next_scale(image_tokenizer, index):
    tokens = image_tokenizer.next_input(golden(f"vqvae/fhat_enc_{index}"), index + 1, image_tokenizer.default_schedule)
    side = index + 2
    assert_close_to_golden(f"vqvae/next_map_{index}", tokens.transpose(1, 2).unflatten(2, (side, side)))


@torch.no_grad()
def test_teacher_forcing_inputs(image_tokenizer, codes):
    assert_close_to_golden("vqvae/var_input", image_tokenizer.decoder_inputs(codes, image_tokenizer.default_schedule))
    found, inputs = image_tokenizer.training_pair(None, codes=golden("vqvae/idx_rand"))
    assert torch.equal(found, golden("vqvae/idx_rand"))
    assert_close_to_golden("vqvae/var_input_rand", inputs)


@torch.no_grad()
def test_decoded_pixels(image_tokenizer, codes):
    assert_close_to_golden("vqvae/decoder_raw", image_tokenizer.decode_latents(golden("vqvae/fhat_enc_3")))
    assert_close_to_golden("vqvae/img_from_fhat", image_tokenizer.decode_latents(golden("vqvae/fhat_enc_3")).clamp(-1, 1))
    assert_close_to_golden("vqvae/img_from_idx", image_tokenizer.decode(codes))
    assert_close_to_golden("vqvae/img_rand", image_tokenizer.decode(golden("vqvae/idx_rand")))


@torch.no_grad()
def test_reconstruction(image_tokenizer, codes):
    pixels = golden("vqvae/pixels")
    found = image_tokenizer.encode(pixels)
    if assert_golden_codes(image_tokenizer, pixels, found, codes):
        assert_close_to_golden("vqvae/recon", image_tokenizer.decode(found))
        assert_close_to_golden("vqvae/recon", image_tokenizer(pixels).reconstruction.clamp(-1, 1))


@pytest.mark.parametrize("grid", [(32, 32), (20, 52)])
def test_both_ways_to_double_the_side_give_the_same(grid, monkeypatch):
    """Values and gradients, up to how float32 rounds sums of products."""
    torch.manual_seed(0)
    upsample = VargptUpsample(8)
    inputs = torch.randn(2, 8, *grid)
    results = []
    for fused in (True, False):
        monkeypatch.setattr(VargptUpsample, "fused_from", 0 if fused else 10**9)
        given = inputs.clone().requires_grad_()
        assert upsample._is_faster_fused(given) == fused
        outputs = upsample(given)
        results.append([outputs, *torch.autograd.grad(outputs.square().sum(), [given, *upsample.parameters()])])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


def test_an_adapter_on_the_convolution_is_not_passed_over():
    upsample = VargptUpsample(4)
    upsample.conv = torch.nn.Sequential(upsample.conv, torch.nn.Identity())
    inputs = torch.randn(1, 4, 40, 40)
    expected = upsample.conv(torch.nn.functional.interpolate(inputs, scale_factor=2.0, mode="nearest"))
    assert torch.equal(upsample(inputs), expected)
