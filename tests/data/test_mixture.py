"""Ratios are exact in every block, and any row is found without history."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
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


@settings(deadline=None)
@given(st.lists(st.floats(0.004, 3.0), min_size=1, max_size=3))
def test_measured_ratios_are_met_to_one_percent_in_small_blocks(ratios):
    weights = integer_weights([1.0, *ratios, 0.05], [False, *[True] * len(ratios), False])
    assert weights[0] == 20 * weights[-1]
    for weight, ratio in zip(weights[1:-1], ratios, strict=True):
        assert abs(weight / weights[0] / ratio - 1) <= 0.0101
    assert weights[0] <= 25_000


@pytest.mark.parametrize("ratios", [[], [1.0, 0.0], [1.0, -0.1], [1.0, 1e-6], [1.0, float("nan")]])
def test_impossible_ratios(ratios):
    with pytest.raises(ConfigError):
        integer_weights(ratios)


lanes = st.sampled_from([1, 2, 3, 8])


@settings(deadline=None)
@given(weights, st.integers(0, 2**40), st.integers(0, 10**12), lanes)
def test_every_block_holds_each_source_exactly(weights, seed, block, lanes):
    mixture = Mixture(weights, seed, lanes)
    size = mixture.block * lanes
    rows = mixture.locate(block * size, (block + 1) * size)
    assert Counter(source for source, _ in rows) == {s: weight * lanes for s, weight in enumerate(weights)}
    for source, weight in enumerate(weights):
        of_source = [k for s, k in rows if s == source]
        assert sorted(of_source) == list(range(block * weight * lanes, (block + 1) * weight * lanes))
    for lane in range(lanes):
        assert all(k % lanes == lane for _, k in rows[lane::lanes])
        for at in range(0, len(rows[lane::lanes]), mixture.block):
            part = rows[lane::lanes][at : at + mixture.block]
            assert Counter(source for source, _ in part) == dict(enumerate(weights))


@settings(deadline=None)
@given(weights, st.integers(0, 99), st.integers(0, 200), lanes)
def test_counts_and_rows_that_hold_so_many_with_lanes(weights, seed, size, lanes):
    mixture = Mixture(weights, seed, lanes)
    whole = mixture.locate(0, size)
    for source in range(len(weights)):
        of_source = [k for s, k in whole if s == source]
        assert mixture.counts(source, size) == [sum(k % lanes == lane for k in of_source) for lane in range(lanes)]
    rows = mixture.rows_holding(0, size)
    held = {k for s, k in mixture.locate(0, rows) if s == 0}
    assert set(range(size)) <= held
    if size % (weights[0] * lanes):  # not whole blocks: then not a row more than needed
        assert not set(range(size)) <= {k for s, k in mixture.locate(0, rows - 1) if s == 0}


@given(weights, st.integers(0, 99), st.integers(0, 200), st.integers(0, 60))
def test_rows_of_a_source_come_in_order_wherever_one_starts(weights, seed, start, size):
    mixture = Mixture(weights, seed)
    whole = mixture.locate(0, start + size)
    assert mixture.locate(start, start + size) == whole[start:]
    for source in range(len(weights)):
        assert [k for s, k in whole if s == source] == list(range(sum(mixture.counts(source, start + size))))


@given(weights, st.integers(0, 99), st.integers(0, 80))
def test_rows_that_hold_so_many_of_a_source(weights, seed, count):
    mixture = Mixture(weights, seed)
    rows = mixture.rows_holding(0, count)
    assert sum(mixture.counts(0, rows)) == count
    if count % weights[0]:
        assert rows == 0 or sum(mixture.counts(0, rows - 1)) == count - 1
    else:
        assert rows % mixture.block == 0


def test_blocks_differ_from_each_other_and_between_seeds():
    patterns = {str(Mixture([10, 2, 2], seed).locate(at, at + 14)) for seed in (0, 1) for at in (0, 14, 28)}
    assert len(patterns) == 6
