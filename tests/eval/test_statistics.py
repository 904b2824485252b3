from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from slm.eval.statistics import holm, interval, mcnemar, ratio_of_sums, resampled, resamples


def test_the_interval_of_a_mean_is_the_normal_one():
    """300 items at one half: ±5.7 points."""
    values = [1.0] * 150 + [0.0] * 150
    low, high = interval(resampled(values, [1.0] * 300, resamples(300, 4000, seed=1)))
    assert low == pytest.approx(0.5 - 0.0566, abs=0.006)
    assert high == pytest.approx(0.5 + 0.0566, abs=0.006)


def test_resamples_draw_items_with_replacement_and_are_seeded():
    draws = resamples(7, 50, seed=3)
    assert draws.shape == (50, 7) and (draws.sum(1) == 7).all()
    assert (draws == resamples(7, 50, seed=3)).all()
    assert not (draws == resamples(7, 50, seed=4)).all()


def test_a_ratio_of_sums_is_no_mean_of_ratios():
    assert ratio_of_sums(np.array([1.0, 0.0]), np.array([1.0, 9.0])) == pytest.approx(0.1)
    assert np.isnan(ratio_of_sums(np.array([1.0]), np.array([0.0])))
    draws = np.array([[2, 0], [1, 1], [0, 2]])
    assert resampled([1, 0], [1, 9], draws) == pytest.approx([1.0, 0.1, 0.0])
    assert interval(np.array([np.nan])) is None


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (5, 0), (10, 2), (3, 3)])
def test_mcnemar_is_the_exact_binomial(lost, gained):
    before = [True] * lost + [False] * gained + [True, False]
    after = [False] * lost + [True] * gained + [True, False]
    expected = min(1.0, 2 * binom.cdf(min(lost, gained), lost + gained, 0.5)) if lost + gained else 1.0
    assert mcnemar(before, after) == pytest.approx(expected)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
