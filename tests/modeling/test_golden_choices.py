"""What golden tests allow where a choice differs: a tie up to rounding, said in words, and nothing else."""

import pytest
import torch
from golden_helpers import assert_golden_choices, assert_golden_codes, golden, golden_json, golden_tolerance

SCORES = torch.tensor([[[0.0, 5.0, 1.0], [2.0, 0.0, 2.0 - 1e-6], [0.0, 1.0, 3.0]]])
GOLDEN = torch.tensor([[1, 0, 2]])


def test_equal_choices_pass_in_silence(recwarn):
    assert assert_golden_choices("codes", GOLDEN, GOLDEN, SCORES, 1e-5, [1, 2])
    assert not [warning for warning in recwarn if "differ" in str(warning.message)]


def test_a_tie_is_told_and_ends_the_comparison():
    with pytest.warns(UserWarning, match=r"codes: 1 of 1 differ in group 1, with margins up to 9.5.e-07, which is rounding \(1.00e-05\)"):
        assert not assert_golden_choices("codes", torch.tensor([[1, 2, 0]]), GOLDEN, SCORES, 1e-5, [1, 1, 1])


@pytest.mark.parametrize(("found", "message"), [([[0, 0, 2]], "differ in group 0, with margins up to 5"), ([[1, 1, 2]], "group 1")])
def test_any_other_choice_fails(found, message):
    with pytest.raises(AssertionError, match=message):
        assert_golden_choices("codes", torch.tensor(found), GOLDEN, SCORES, 1e-5, [1, 1, 1])
    with pytest.raises(AssertionError, match="not the best"):
        assert_golden_choices("codes", GOLDEN, torch.tensor(found), SCORES, 1e-5, [1, 1, 1])


def test_no_golden_code_may_be_another(golden_model):
    """None of the shipped codes is near enough to a tie to be taken for one: each must be met exactly."""
    codes = torch.cat([golden(f"vqvae/idx_{index}") for index in range(4)], dim=1)
    pixels, image_tokenizer = golden("vqvae/pixels"), golden_model.model.image_tokenizer
    for place in range(codes.shape[1]):
        others = codes.clone()
        others[0, place] = (others[0, place] + 1) % image_tokenizer.config.codebook_size
        with pytest.raises(AssertionError, match="1 of"):
            assert_golden_codes(image_tokenizer, pixels, others, codes)


@pytest.mark.parametrize("case", golden_json("meta")["generation"])
def test_no_drawn_code_is_a_tie(case):
    for index in range(4):
        name = f"generation/{case}.logits_{index}"
        best = golden(name).topk(2).values
        assert (best[..., 0] - best[..., 1]).min() > golden_tolerance(name)
