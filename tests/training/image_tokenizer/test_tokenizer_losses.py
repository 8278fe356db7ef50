"""Loss terms of image tokenizers against their closed forms and finite differences."""

import math

import pytest
import torch
from tokenizer_micro import EVERYTHING, pixels_of, settings, tokenizer
from torch import nn

from vargpt_hf.training.image_tokenizer.discriminator import PatchDiscriminator
from vargpt_hf.training.image_tokenizer.losses import adaptive_weight, generator_loss, hinge_loss, reconstruction_terms
from vargpt_hf.training.image_tokenizer.networks import PerceptualNetwork
from vargpt_hf.training.image_tokenizer.objective import TokenizerObjective, make_average

ALL = {"l1": 1.0, "l2": 1.0, "color": 1.0, "edge": 1.0}


def test_reconstruction_terms_of_known_errors():
    pixels = torch.rand(2, 3, 4, 4)
    errors = {
        "lighter": torch.full((3, 1, 1), 0.2),
        "redder": torch.tensor([0.2, -0.1, -0.1]).view(3, 1, 1),
        "striped": torch.tensor([0.2, -0.2, 0.2, -0.2]),
    }
    wanted = {
        "lighter": {"l1": 0.2, "l2": 0.04, "color": 0.0, "edge": 0.0},
        "redder": {"l1": 0.4 / 3, "l2": 0.02, "color": 0.02, "edge": 0.0},
        "striped": {"l1": 0.2, "l2": 0.04, "color": 0.0, "edge": 0.16},
    }
    for name, error in errors.items():
        found = reconstruction_terms(pixels + error, pixels, ALL)
        for term, value in wanted[name].items():
            torch.testing.assert_close(found[term], torch.tensor(value), atol=1e-6, rtol=1e-5, msg=f"{name} {term}")
    assert all(value == 0 for value in reconstruction_terms(pixels, pixels, ALL).values())
    assert reconstruction_terms(pixels + 1, pixels, {"l1": 0.0, "l2": 3.0}) == {"l2": pytest.approx(3.0)}  # only what weighs, times its weight


def test_adversarial_losses_of_known_scores():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, -0.5, 1.0])
    assert hinge_loss(real, fake) == pytest.approx(((0 + 0.5 + 2) / 3 + (0 + 0.5 + 2) / 3) / 2)
    assert generator_loss(fake) == pytest.approx(0.5)


def test_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer():
    last = nn.Parameter(torch.zeros(2, 3))
    pulls = torch.tensor([[3.0, 0, 0], [0, 4.0, 0]]), torch.tensor([[0.0, 0, 2.0], [0, 0, 0]])
    losses = [(last * pull).sum() for pull in pulls]
    weight = adaptive_weight(*losses, last, most=1e4)
    assert weight == pytest.approx(5 / 2.0001) and not weight.requires_grad and last.grad is None
    assert adaptive_weight(*losses, last, most=1.5) == 1.5
    assert adaptive_weight(losses[0], (last * 0).sum(), last, most=1e4) == 1e4
    # Of two processes, whose gradients' mean is that of the whole batch.
    halves = iter([pulls[0] / 3, pulls[1] / 2])
    assert adaptive_weight(*losses, last, 1e4, lambda gradient: gradient - next(halves)) == pytest.approx((5 - 5 / 3) / 1.0001)


class Sum(PerceptualNetwork):
    """Two levels: sums of channels, and those of halved images."""

    def levels(self, pixels):
        return [pixels.flatten(2), pixels[..., ::2, ::2].flatten(2)]


def test_perceptual_distance_is_that_of_directions():
    red, green, bright = (torch.tensor(color).view(1, 3, 1, 1).expand(1, 3, 4, 4) for color in ([1.0, 0, 0], [0, 1.0, 0], [5.0, 0, 0]))
    network = Sum()
    assert network(red, red) == 0 and network(red, bright) == 0
    assert network(red, green) == pytest.approx(2.0)
    half = torch.where(torch.arange(4) < 2, red, green)
    assert network(half, red) == pytest.approx(1.0)
    assert network(torch.cat([red, green]), torch.cat([red, red])).tolist() == pytest.approx([0.0, 2.0])
    assert not network.train().training


@pytest.mark.parametrize("kind", ["vq", "bsq"])
def test_gradients_are_those_of_finite_differences(kind, tmp_path):
    """Of the whole loss: the decoder is pulled by all terms but the discriminator's own, the discriminator by this one alone."""
    arguments = settings(tmp_path, **{**EVERYTHING, "adaptive_weight": False, "adversarial_weight": 0.7, "quantization_weight": 0.5})
    objective = TokenizerObjective(tokenizer(kind), arguments, Sum()).double()
    pixels = pixels_of(2).double()

    def terms():
        return objective(pixels, adversarial=True)

    terms()["loss"].backward()
    decoder = objective.image_tokenizer.last_layer
    scores = objective.discriminator.layers[-1].weight
    for weight, counts in ((decoder, lambda name: name != "discriminator"), (scores, lambda name: name == "discriminator")):
        index = (0,) * weight.ndim
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight[index] += step
                logged = ("loss", "codes", "adaptive_weight", "real_score", "fake_score")
                values.append(sum(value.item() for name, value in terms().items() if name not in logged and counts(name)))
                weight[index] -= step
        # Logged terms are float32, whose rounding is divided by the step.
        assert weight.grad[index].item() == pytest.approx((values[0] - values[1]) / 2e-5, abs=2e-2)
        assert abs(weight.grad[index]) > 1e-4


def test_the_average_of_weights():
    average = make_average(0.5)
    mean = [torch.tensor([1.0])]
    average(mean, [torch.tensor([2.0])], 0)  # (1 + 0) / (10 + 0) of the old
    assert mean[0] == pytest.approx(0.1 * 1 + 0.9 * 2)
    average(mean, [torch.tensor([3.0])], torch.tensor(1000))
    assert mean[0] == pytest.approx(0.5 * 1.9 + 0.5 * 3)


def test_a_patch_of_the_discriminator_is_70_pixels_wide():
    network = PatchDiscriminator(3, 8, 3)
    pixels = torch.zeros(1, 3, 128, 128, requires_grad=True)
    first = nn.Sequential(*[layer for layer in network.layers if isinstance(layer, nn.Conv2d)])  # norms see all positions
    scores = first(pixels)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    seen = pixels.grad.abs().sum((0, 1)).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [70, 70]
    assert PatchDiscriminator(3, 8, 3)(torch.zeros(2, 3, 24, 24)).shape == (2, 1, 1, 1)
    assert math.isclose(PatchDiscriminator(3, 8, 2).least_side, 12)
    with pytest.raises(ValueError, match="divisible by 8; got 3 channels, width 12 and 3 layers"):
        PatchDiscriminator(3, 12)
