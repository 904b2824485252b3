"""Uncertainty: bootstrap intervals of ratios, paired comparison of two models on the same items.

Ref: E. Miller, "Adding Error Bars to Evals", arXiv 2411.00640; McNemar 1947, exact form.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.95


def resamples(items: int, count: int, seed: int) -> np.ndarray:
    """How often each item is drawn in each bootstrap sample, int64 [count, items]; rows sum to `items`."""
    random = np.random.default_rng([seed, items])
    return random.multinomial(items, np.full(items, 1.0 / items), size=count)


def ratio_of_sums(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sum of values over sum of weights along the last axis; NaN where there is no weight."""
    total = np.asarray(weights, float).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, np.asarray(values, float).sum(-1) / total, np.nan)


def resampled(values: Sequence[float], weights: Sequence[float], draws: np.ndarray) -> np.ndarray:
    """The ratio of sums in every bootstrap sample, [draws]; a sample without weight is NaN."""
    total = draws @ np.asarray(weights, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, (draws @ np.asarray(values, float)) / total, np.nan)


def interval(estimates: np.ndarray) -> tuple[float, float] | None:
    """The middle 95 % of bootstrap estimates; None when there are none."""
    known = np.asarray(estimates)[~np.isnan(estimates)]
    if not len(known):
        return None
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(known, [tail, 100 - tail])
    return float(low), float(high)


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Exact two-sided p-value for "as many items turned wrong as turned right".

    Args:
        before, after: whether each item was right, the same items in the same order.
    """
    from scipy.stats import binomtest

    first, second = np.asarray(before, bool), np.asarray(after, bool)
    lost, gained = int((first & ~second).sum()), int((~first & second).sum())
    if lost + gained == 0:
        return 1.0
    return float(binomtest(min(lost, gained), lost + gained, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction of p-values that are looked at together."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return [float(p) for p in adjusted]
