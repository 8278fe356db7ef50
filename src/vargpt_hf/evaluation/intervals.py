"""Metrics with their confidence interval: one form for every number of a report, and how the interval was made."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 1000  # of a mean; a set's metric, which costs more, takes `SET_RESAMPLES`
SET_RESAMPLES = 100
_LEAST_SAMPLES = 4  # of which halves can be drawn that differ


@dataclass(frozen=True)
class Estimate:
    """A metric: its value, and the interval that holds the true one with 95 % confidence.

    Attributes:
        value: of all samples, in `unit`.
        low, high: ends of the interval; None where it was not asked for, or where there are too few samples for one.
        number: of samples.
        unit: "share" (in [0, 1]), "dB", "points", … or "" for a bare number.
        interval: how it was made, in words.
        library: name and version of what computed the value.
        higher_is_better: in which direction the metric improves.
    """

    value: float
    low: float | None
    high: float | None
    number: int
    unit: str = ""
    interval: str = "none"
    library: str = ""
    higher_is_better: bool = True

    def to_dict(self) -> dict[str, Any]:
        """What a report holds of it."""
        return asdict(self)


def library(*packages: str) -> str:
    """Names and versions of installed packages, as a report names them: "torchmetrics 1.9.0"."""
    return ", ".join(f"{package} {version(package)}" for package in packages)


def share(right: Sequence[bool], **fields: Any) -> Estimate:
    """The share of what is right, with Wilson's interval, which keeps its width where all or none is right.

    Args:
        right: one verdict for each sample.
        fields: of the `Estimate`.

    Raises:
        ValueError: no samples.
    """
    from scipy.stats import binomtest

    if len(right) == 0:
        raise ValueError("There are no samples to take the share of: give at least one.")
    hits, number = sum(map(bool, right)), len(right)
    found = binomtest(hits, number).proportion_ci(CONFIDENCE, method="wilson")
    defaults = {"unit": "share", "interval": "Wilson", "library": library("scipy")}
    return Estimate(hits / number, float(found.low), float(found.high), number, **{**defaults, **fields})


def mean(values: Sequence[float], resamples: int = RESAMPLES, seed: int = 0, **fields: Any) -> Estimate:
    """The mean of one value for each sample, with the percentile interval of a bootstrap.

    Args:
        values: (N,), finite.
        resamples: of the bootstrap; 0 leaves the interval out.
        seed: of the bootstrap.
        fields: of the `Estimate`.

    Raises:
        ValueError: no values, or some that are NaN or infinite.
    """
    from scipy.stats import bootstrap

    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"The mean is of one value for each sample, (N,); got the shape {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} of {len(values)} values are NaN or infinite.")
    low = high = None
    if resamples and len(values) > 1:
        settings = {"n_resamples": resamples, "confidence_level": CONFIDENCE, "method": "percentile", "batch": 100}
        found = bootstrap((values,), np.mean, rng=np.random.default_rng(seed), **settings).confidence_interval
        low, high = float(found.low), float(found.high)
    fields.setdefault("interval", "none" if low is None else f"percentile bootstrap, {resamples} resamples")
    return Estimate(float(values.mean()), low, high, len(values), **fields)


def set_metrics(
    metrics: Callable[..., Mapping[str, float]],
    sets: Sequence[Any],
    fields: Mapping[str, Mapping[str, Any]],
    resamples: int = SET_RESAMPLES,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Metrics of whole sets, such as FID, with the interval value ± 1.96 standard errors of a bootstrap over halves.

    Halves are drawn without replacement, because a sample that occurs twice would change what such metrics look at: the rank of a
    covariance, distances to neighbors, pairs of a kernel. The spread over halves of N samples estimates the standard error of all N (the
    jackknife that deletes half); the interval is put around the value itself, since FID and its like depend on N.

    Args:
        metrics: of the sets, values by name.
        sets: tensors or arrays, a sample a row.
        fields: of the `Estimate` of each metric, by name.
        resamples: how many halves; 0 leaves the interval out.
        seed: of the halves.

    Raises:
        ValueError: a metric that is NaN or infinite.
    """
    values = dict(metrics(*sets))
    if broken := [name for name, value in values.items() if not math.isfinite(value)]:
        raise ValueError(f"{', '.join(broken)} of these samples is NaN or infinite: give more samples, or check the features.")
    spread: dict[str, list[float]] = {name: [] for name in values}
    rng = np.random.default_rng(seed)
    enough = all(len(samples) >= _LEAST_SAMPLES for samples in sets)
    for _ in range(resamples if enough else 0):
        halves = [samples[np.sort(rng.permutation(len(samples))[: len(samples) // 2])] for samples in sets]
        for name, value in metrics(*halves).items():
            spread[name].append(value)
    estimates = {}
    for name, value in values.items():
        low = high = None
        if len(spread[name]) > 1:
            error = 1.959964 * float(np.std(spread[name], ddof=1))
            low, high = value - error, value + error
        how = "none" if low is None else f"± 1.96 standard errors, bootstrap over {resamples} halves"
        estimates[name] = Estimate(value, low, high, len(sets[0]), **{"interval": how, **fields.get(name, {})})
    return estimates


@dataclass(frozen=True)
class Difference:
    """How far two models differ on the same samples.

    Attributes:
        value: mean of the differences, second minus first.
        low, high: its 95 % interval, by bootstrap of the pairs.
        p_value: probability of a difference at least as large, were both models equally good; two-sided.
        number: of pairs.
        test: that gave the p-value.
    """

    value: float
    low: float | None
    high: float | None
    p_value: float
    number: int
    test: str


def paired_difference(first: Sequence[float], second: Sequence[float], seed: int = 0, resamples: int = 9999) -> Difference:
    """The difference of two models on the same samples, and whether chance explains it.

    The p-value is of McNemar's exact test where all values are 0 or 1, else of a permutation test that swaps the signs of differences.

    Args:
        first, second: one value for each sample, in the same order.

    Raises:
        ValueError: other numbers of values, or none.
    """
    from scipy.stats import binomtest, bootstrap, permutation_test

    first, second = (np.asarray(values, dtype=np.float64) for values in (first, second))
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"Paired values must be as many, one for each sample; got {first.shape} and {second.shape}.")
    steps = second - first
    rng, low, high = np.random.default_rng(seed), None, None
    if len(steps) > 1:
        settings = {"n_resamples": RESAMPLES, "confidence_level": CONFIDENCE, "method": "percentile", "batch": 100}
        found = bootstrap((steps,), np.mean, rng=rng, **settings).confidence_interval
        low, high = float(found.low), float(found.high)
    changed = steps[steps != 0]
    if np.isin(np.concatenate([first, second]), (0, 1)).all():
        test = "McNemar, exact"
        p_value = float(binomtest(int((changed > 0).sum()), len(changed)).pvalue) if len(changed) else 1.0
    elif len(changed) < 2:
        test, p_value = "sign permutation", 1.0
    else:
        test, settings = "sign permutation", {"permutation_type": "samples", "n_resamples": resamples, "batch": 100, "rng": rng}
        p_value = float(permutation_test((steps,), np.mean, vectorized=True, **settings).pvalue)
    return Difference(float(steps.mean()), low, high, p_value, len(steps), test)


__all__ = ["CONFIDENCE", "Difference", "Estimate", "library", "mean", "paired_difference", "set_metrics", "share"]
