"""Ratios are exact in every block, and any row is found without history."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.data.mixture import Mixture, integer_weights
from slm.errors import ConfigError

weights = st.lists(st.integers(1, 12), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([1.0], [1]),
        ([1.0, 0.05], [20, 1]),
        ([1.0, 0.1, 0.1], [10, 1, 1]),
        ([1.0, 0.05, 0.025], [40, 2, 1]),
        ([1.0, 0.3], [10, 3]),
        ([1.0, 1 / 3], [3, 1]),
        ([1.0, 0.5, 0.5], [2, 1, 1]),
    ],
)
def test_smallest_integer_weights(ratios, expected):
    assert integer_weights(ratios) == expected


@pytest.mark.parametrize("ratios", [[], [1.0, 0.0], [1.0, -0.1], [1.0, 1e-6], [1.0, float("nan")]])
def test_impossible_ratios(ratios):
    with pytest.raises(ConfigError):
        integer_weights(ratios)


@given(weights, st.integers(0, 2**40), st.integers(0, 10**12))
def test_every_block_holds_each_source_exactly(weights, seed, block):
    mixture = Mixture(weights, seed)
    rows = mixture.locate(block * mixture.block, (block + 1) * mixture.block)
    assert Counter(source for source, _ in rows) == dict(enumerate(weights))
    for source, weight in enumerate(weights):
        assert [k for s, k in rows if s == source] == list(range(block * weight, (block + 1) * weight))


@given(weights, st.integers(0, 99), st.integers(0, 200), st.integers(0, 60))
def test_rows_of_a_source_come_in_order_wherever_one_starts(weights, seed, start, size):
    mixture = Mixture(weights, seed)
    whole = mixture.locate(0, start + size)
    assert mixture.locate(start, start + size) == whole[start:]
    for source in range(len(weights)):
        assert [k for s, k in whole if s == source] == list(range(mixture.count(source, start + size)))


@given(weights, st.integers(0, 99), st.integers(0, 80))
def test_rows_that_hold_so_many_of_a_source(weights, seed, count):
    mixture = Mixture(weights, seed)
    rows = mixture.rows_holding(0, count)
    assert mixture.count(0, rows) == count
    if count % weights[0]:
        assert rows == 0 or mixture.count(0, rows - 1) == count - 1
    else:
        assert rows % mixture.block == 0


def test_blocks_differ_from_each_other_and_between_seeds():
    patterns = {str(Mixture([10, 2, 2], seed).locate(at, at + 14)) for seed in (0, 1) for at in (0, 14, 28)}
    assert len(patterns) == 6
