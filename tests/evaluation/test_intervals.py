"""Intervals and tests at values that are known."""

import numpy as np
import pytest
import torch
from scipy.stats import wilcoxon

from vargpt_hf.evaluation.intervals import Estimate, mean, paired_difference, set_metrics, share


def test_wilson_interval_of_a_share():
    found = share([True] * 8 + [False] * 2)
    assert found.value == 0.8 and found.number == 10 and found.unit == "share"
    assert (found.low, found.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Wilson's formula for 8 of 10
    assert share([True] * 20).high == 1.0 and share([True] * 20).low == pytest.approx(0.8389, abs=1e-4)
    with pytest.raises(ValueError, match="no samples"):
        share([])


def test_bootstrap_of_a_mean_is_as_wide_as_the_normal_interval():
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = mean(values, unit="dB")
    error = 1.96 * values.std(ddof=1) / 20
    assert found.value == pytest.approx(values.mean()) and found.unit == "dB" and "1000 resamples" in found.interval
    assert (found.low, found.high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.2 * error)
    assert mean(values) == mean(values) and mean(values, seed=1) != mean(values)
    assert mean([3.0]) == Estimate(3.0, None, None, 1)
    with pytest.raises(ValueError, match="1 of 2 values are NaN"):
        mean([1.0, float("nan")])


def test_halves_estimate_the_standard_error_of_all():
    values = torch.randn(300, 1, generator=torch.Generator().manual_seed(0)).double()
    found = set_metrics(lambda samples: {"mean": samples.mean().item()}, (values,), {"mean": {"library": "x"}}, resamples=400)["mean"]
    error = 1.96 * values.std().item() / 300**0.5
    assert found.high - found.value == pytest.approx(error, rel=0.1) and found.value - found.low == pytest.approx(error, rel=0.1)
    assert found.library == "x" and found.number == 300
    alone = set_metrics(lambda samples: {"mean": samples.mean().item()}, (values[:3],), {}, resamples=400)["mean"]
    assert (alone.low, alone.high, alone.interval) == (None, None, "none")
    with pytest.raises(ValueError, match="mean of these samples is NaN"):
        set_metrics(lambda samples: {"mean": float("nan")}, (values,), {})


def test_mcnemar_of_verdicts():
    first, second = [0] * 10 + [1] * 10, [1] * 9 + [0] * 1 + [1] * 9 + [0]
    found = paired_difference(first, second)
    assert found.value == pytest.approx(8 / 20) and found.test == "McNemar, exact"
    assert found.p_value == pytest.approx(2 * (1 + 10) / 2**10)  # 9 of 10 changes in one direction
    assert found.low < found.value < found.high
    assert paired_difference(first, first).p_value == 1.0


def test_signs_of_differences_are_permuted():
    rng = np.random.default_rng(0)
    first = rng.normal(0, 1, 60)
    second = first + rng.normal(0.3, 1, 60)
    found = paired_difference(first, second)
    assert found.p_value == pytest.approx(wilcoxon(second, first).pvalue, abs=0.05) and found.test == "sign permutation"
    assert paired_difference(first, second) == found
    small = paired_difference([0.5, 0.5, 0.5, 0.2], [1.5, 2.5, 3.5, 4.2])
    assert small.p_value == pytest.approx(2 / 2**4)  # all signs one way, of 16
    with pytest.raises(ValueError, match="as many"):
        paired_difference([1.0], [1.0, 2.0])
