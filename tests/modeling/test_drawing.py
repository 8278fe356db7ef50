"""Drawing by schedules, and drawing that keeps codes; what does not depend on which parts draw."""

import pytest
import torch

from vargpt_hf.modeling.image_sampling_vargpt import KeepCodes, filters, process_scores, redrawn_positions, sample_codes
from vargpt_hf.modeling.image_tokenizer_vargpt import NO_CODE, code_log_probs, from_symbols, to_symbols
from vargpt_hf.modeling.scales_vargpt import ScaleSchedule
from vargpt_hf.testing import tiny_config, tiny_model

SCHEDULE = ScaleSchedule.of([1, 2, 4])
PROMPTS = torch.tensor([[1, 5, 6, 7], [1, 8, 9, 10]])


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def draw(model, prompts=PROMPTS, **settings):
    return model.generate(prompts, generation_mode="image", return_dict_in_generate=True, **settings)


# ---- symbols


@pytest.mark.parametrize(("num_symbols", "num_classes"), [(1, 4096), (3, 5), (32, 2)])
def test_symbols_and_codes(num_symbols, num_classes):
    codes = torch.randint(0, num_classes**num_symbols, (4, 7), generator=torch.Generator().manual_seed(0))
    symbols = to_symbols(codes, num_symbols, num_classes)
    assert symbols.shape == (4, 7, num_symbols) and symbols.min() >= 0 and symbols.max() < num_classes
    assert torch.equal(from_symbols(symbols, num_classes), codes)


def test_log_probs_of_codes():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 2, generator=generator)
    codes = torch.tensor([[0, 15, 6], [9, 1, NO_CODE]])
    log_probs = code_log_probs(logits, codes)
    assert log_probs.shape == (2, 3, 4)
    bits = [[(code >> k) & 1 for k in range(4)] for code in (0, 15, 6, 9, 1)]
    by_hand = logits.log_softmax(-1).flatten(0, 1)[:5].gather(-1, torch.tensor(bits)[..., None]).squeeze(-1)
    torch.testing.assert_close(log_probs.flatten(0, 1)[:5], by_hand)
    assert (log_probs[1, 2] == 0).all()


def test_symbols_are_sampled_one_by_one():
    logits = torch.full((1, 2, 3, 2), -20.0)
    logits[..., 1] = 20.0
    logits[0, 1, 0] = torch.tensor([20.0, -20.0])
    for do_sample in (False, True):
        assert sample_codes(logits, do_sample, torch.Generator().manual_seed(0)).tolist() == [[7, 6]]


def test_filters_leave_each_symbol_its_likeliest():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).expand(1, 2, 3, 4)
    kept = process_scores(logits, filters(0.5, 2, 0.0), 0, SCHEDULE)
    assert kept.isinf().sum(-1).eq(2).all() and torch.equal(kept[..., :2], logits[..., :2] / 0.5)
    assert process_scores(logits, filters(1.0, 0, 0.1), 0, SCHEDULE).isinf().sum(-1).eq(3).all()


# ---- keeping codes


@pytest.mark.parametrize("guidance", ["none", "prompt", "noise"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_only_masked_positions_change(model, guidance, do_sample):
    settings = {"output_image_guidance_type": guidance, "do_sample": do_sample, "generator": torch.Generator().manual_seed(0)}
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, 24, (2, 21), generator=generator)
    mask = torch.rand(2, 21, generator=generator) < 0.5
    drawn = draw(model, output_image_codes_to_keep=codes, output_image_mask=mask, **settings).output_image_codes
    assert torch.equal(drawn[~mask], codes[~mask])
    assert (drawn[mask] != codes[mask]).any()


def test_an_empty_mask_keeps_all_and_a_full_one_nothing(model):
    codes = torch.zeros(2, 21, dtype=torch.long)
    kept = draw(model, output_image_codes_to_keep=codes, output_image_mask=torch.zeros(2, 21, dtype=torch.bool))
    assert torch.equal(kept.output_image_codes, codes)
    free = draw(model, output_image_codes_to_keep=codes, output_image_mask=torch.ones(2, 16, 16))
    assert torch.equal(free.output_image_codes, draw(model).output_image_codes)


def test_a_kept_row_does_not_depend_on_its_neighbors(model):
    codes = torch.randint(0, 24, (2, 21), generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(2, 16, 16)
    mask[0, :8], mask[1, :, 8:] = 1, 1
    together = draw(model, output_image_codes_to_keep=codes, output_image_mask=mask).output_image_codes
    for row in range(2):
        one = slice(row, row + 1)
        alone = draw(model, PROMPTS[one], output_image_codes_to_keep=codes[one], output_image_mask=mask[one]).output_image_codes
        assert torch.equal(together[one], alone)


def test_codes_and_masks_may_be_arrays_or_lists(model):
    codes = torch.randint(0, 24, (2, 21), generator=torch.Generator().manual_seed(3))
    for mask in (torch.arange(21).expand(2, 21) > 8, torch.arange(16).expand(2, 16, 16) > 8):
        expected = draw(model, output_image_codes_to_keep=codes, output_image_mask=mask).output_image_codes
        for form in (torch.Tensor.numpy, torch.Tensor.tolist):
            drawn = draw(model, output_image_codes_to_keep=form(codes), output_image_mask=form(mask)).output_image_codes
            assert torch.equal(drawn, expected)


def test_positions_that_a_mask_of_pixels_covers():
    mask = torch.zeros(1, 16, 16)
    mask[0, :8, :8] = 1
    quarter = redrawn_positions(mask, SCHEDULE)[0]
    fine = torch.zeros(4, 4, dtype=torch.bool)
    fine[:2, :2] = True
    assert quarter.tolist() == [False, True, False, False, False, *fine.flatten().tolist()]
    assert redrawn_positions(mask, SCHEDULE, coverage=0.25)[0, 0]
    assert redrawn_positions(torch.ones(1, 7, 9), SCHEDULE, coverage=1.0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_image_codes_to_keep": torch.zeros(2, 21, dtype=torch.long)}, "needs both"),
        ({"output_image_mask": torch.zeros(2, 21)}, "needs both"),
        (
            {"output_image_codes_to_keep": torch.zeros(1, 21, dtype=torch.long), "output_image_mask": torch.zeros(2, 21)},
            "1 and 2 rows, the batch 2",
        ),
        ({"output_image_codes_to_keep": torch.full((2, 21), 24), "output_image_mask": torch.zeros(2, 21)}, r"Codes must lie in \[0, 24\)"),
        (
            {"output_image_codes_to_keep": torch.zeros(2, 21, dtype=torch.long), "output_image_mask": torch.zeros(2, 20)},
            "has 20 positions in row 0",
        ),
        (
            {"output_image_codes_to_keep": torch.zeros(2, 21).long(), "output_image_mask": torch.zeros(2, 7, 5)},
            "is of 7 x 5 pixels.*of 16 x 16",
        ),
        (
            {"output_image_codes_to_keep": torch.zeros(2, 21).long(), "output_image_mask": torch.zeros(2, 1, 16, 16)},
            r"got \(2, 21\) and \(2, 1, 16",
        ),
        ({"output_image_codes_to_keep": torch.zeros(21).long(), "output_image_mask": torch.zeros(2, 21)}, r"got \(21,\) and \(2, 21\)"),
        ({"output_image_codes_to_keep": [[0] * 21] * 2, "output_image_mask": 1}, r"got \(2, 21\) and \(\)"),
    ],
)
def test_what_cannot_be_kept_says_why(model, settings, message):
    with pytest.raises(ValueError, match=message):
        draw(model, **settings)


@pytest.mark.parametrize("name", ["output_image_codes_to_keep", "output_image_mask"])
def test_what_makes_no_codes_or_mask_is_named(model, name):
    given = {"output_image_codes_to_keep": torch.zeros(2, 21).long(), "output_image_mask": torch.zeros(2, 21)}
    for wrong in ("mask.png", [[0] * 21, [0] * 20], object()):
        with pytest.raises(TypeError, match=f"`{name}` must be a tensor, an array or nested lists of numbers, got {type(wrong).__name__}"):
            draw(model, **{**given, name: wrong})


def test_a_coverage_out_of_range_says_so():
    with pytest.raises(ValueError, match="coverage"):
        redrawn_positions(torch.ones(1, 4, 4), SCHEDULE, coverage=0.0)
    with pytest.raises(ValueError, match="images, height, width"):
        redrawn_positions(torch.ones(4, 4), SCHEDULE)


def test_kept_codes_win_over_filters():
    codes = torch.full((1, 21), 3)
    keep = KeepCodes(codes, torch.zeros(1, 21, dtype=torch.bool))
    logits = torch.zeros(1, 4, 1, 24)
    logits[..., 5] = 9.0
    scores = process_scores(logits, [keep, *filters(1.0, 1, 0.0)], 1, SCHEDULE)
    assert sample_codes(scores, True).tolist() == [[3] * 4]


# ---- several schedules


@pytest.fixture(scope="module")
def wide_model():
    """A tokenizer of two schedules, 16×16 and 8×16 pixels; VAR's decoder has learned positions for one, so it is asked for each alone."""
    return tiny_config().image_tokenizer_config.to_dict() | {"schedules": [[1, 2, 4], [[1, 1], [1, 2], [2, 4]]]}


def test_the_image_tokenizer_takes_any_schedule(wide_model):
    from vargpt_hf.modeling.vq_vargpt import VargptVQConfig, VargptVQModel

    torch.manual_seed(0)
    tokenizer = VargptVQModel(VargptVQConfig(**{name: value for name, value in wide_model.items() if name != "model_type"})).eval()
    wide = tokenizer.config.scale_schedules[1]
    pixels = torch.rand(2, 3, 8, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes, inputs = tokenizer.training_pair(pixels, wide)
    assert codes.shape == (2, 11) and inputs.shape == (2, 10, 6)
    assert torch.equal(tokenizer.encode(pixels, wide), codes)
    assert tokenizer.decode(codes, wide).shape == pixels.shape
    with pytest.raises(ValueError, match=r"shape \(batch, 3, 16, 16\), got \(2, 3, 8, 16\)"):
        tokenizer.encode(pixels)
    with pytest.raises(TypeError, match="takes a tensor of pixels, got ndarray"):
        tokenizer.encode(pixels.numpy())
    with pytest.raises(ValueError, match=r"must have shape \(batch, 21\)"):
        tokenizer.decode(codes)


def test_a_decoder_of_learned_positions_draws_one_schedule(wide_model):
    with pytest.raises(ValueError, match="position embedding for one schedule, but the image tokenizer has 2"):
        tiny_config(image_tokenizer_config=wide_model)


def test_a_size_without_a_schedule_of_its_own_takes_the_nearest(model):
    assert draw(model, output_image_size=(9, 31)).output_images.shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="3 sizes for 2 rows"):
        draw(model, output_image_size=[(16, 16)] * 3)
