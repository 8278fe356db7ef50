"""Metrics at values that are known."""

import pytest
import torch

from vargpt_hf.evaluation.metrics import codebook_use, perplexity, psnr


def test_psnr_of_a_known_error():
    pixels = torch.zeros(2, 3, 4, 4)
    error = torch.tensor([0.2, 0.02]).view(2, 1, 1, 1)
    torch.testing.assert_close(psnr(pixels + error, pixels), torch.tensor([20.0, 40.0]))  # 10 log10(4 / 0.04), 10 log10(4 / 0.0004)


def test_psnr_clips_what_no_image_can_show():
    pixels = torch.ones(1, 3, 4, 4)
    assert psnr(pixels + 5, pixels).item() == psnr(pixels, pixels).item() > 100


def test_codes_in_use():
    assert codebook_use(torch.tensor([3.0, 0, 1, 0])) == 0.5


def test_perplexity_counts_the_codes_that_are_as_good_as_even():
    assert perplexity(torch.tensor([5.0, 5, 5, 5])) == pytest.approx(4) and perplexity(torch.tensor([0.0, 7, 0])) == pytest.approx(1)
    with pytest.raises(ValueError, match="no codes"):
        perplexity(torch.zeros(4))
