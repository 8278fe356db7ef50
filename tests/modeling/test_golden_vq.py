"""The image tokenizer against the released one: codes equal, floats to rounding."""

import pytest
import torch
from golden_helpers import assert_close_to_golden, assert_golden_codes, golden, golden_json

NUM_SCALES = 4


@pytest.fixture(scope="module")
def vq_model(golden_model):
    return golden_model.model.vq_model


@pytest.fixture(scope="module")
def codes():
    return torch.cat([golden(f"vqvae/idx_{index}") for index in range(NUM_SCALES)], dim=1)


@torch.no_grad()
def test_continuous_latents(vq_model):
    assert_close_to_golden("vqvae/encoder_out", vq_model.encoder(golden("vqvae/pixels")))
    assert_close_to_golden("vqvae/f", vq_model.encode_latents(golden("vqvae/pixels")))


def test_codes_are_equal(vq_model, codes):
    pixels = golden("vqvae/pixels")
    assert_golden_codes(vq_model, pixels, vq_model.encode(pixels), codes)


def test_shared_convolutions_go_to_the_same_scales(vq_model):
    assert vq_model.quantizer.conv_of_scale == golden_json("meta")["vqvae"]["phi_index_per_scale"]


@torch.no_grad()
@pytest.mark.parametrize("index", range(NUM_SCALES))
def test_accumulated_latents_after_each_scale(vq_model, codes, index):
    assert_close_to_golden(f"vqvae/fhat_enc_{index}", vq_model.quantizer.accumulate(codes, num_scales=index + 1))


@torch.no_grad()
def test_accumulated_latents_of_encoding_and_of_codes_agree(vq_model, codes):
    found, f_hat, _ = vq_model.quantizer.encode(golden("vqvae/f"))
    if assert_golden_codes(vq_model, golden("vqvae/pixels"), found, codes):
        assert_close_to_golden("vqvae/fhat_enc_3", f_hat)
    assert_close_to_golden("vqvae/fhat_from_idx", vq_model.quantizer.accumulate(codes))


@torch.no_grad()
@pytest.mark.parametrize("index", range(NUM_SCALES - 1))
def test_input_of_the_next_scale(vq_model, index):
    tokens = vq_model.quantizer.next_scale_input(golden(f"vqvae/fhat_enc_{index}"), index + 1)
    side = index + 2
    assert_close_to_golden(f"vqvae/next_map_{index}", tokens.transpose(1, 2).unflatten(2, (side, side)))


@torch.no_grad()
def test_teacher_forcing_inputs(vq_model, codes):
    assert_close_to_golden("vqvae/var_input", vq_model.quantizer.decoder_inputs(codes))
    assert_close_to_golden("vqvae/var_input_rand", vq_model.quantizer.decoder_inputs(golden("vqvae/idx_rand")))


@torch.no_grad()
def test_decoded_pixels(vq_model, codes):
    assert_close_to_golden("vqvae/decoder_raw", vq_model.decode_latents(golden("vqvae/fhat_enc_3")))
    assert_close_to_golden("vqvae/img_from_fhat", vq_model.decode_latents(golden("vqvae/fhat_enc_3")).clamp(-1, 1))
    assert_close_to_golden("vqvae/img_from_idx", vq_model.decode(codes))
    assert_close_to_golden("vqvae/img_rand", vq_model.decode(golden("vqvae/idx_rand")))


@torch.no_grad()
def test_reconstruction(vq_model, codes):
    pixels = golden("vqvae/pixels")
    found = vq_model.encode(pixels)
    if assert_golden_codes(vq_model, pixels, found, codes):
        assert_close_to_golden("vqvae/recon", vq_model.decode(found))
        assert_close_to_golden("vqvae/recon", vq_model(pixels).reconstruction.clamp(-1, 1))
