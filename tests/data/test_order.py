"""One source's order: each sample once an epoch, nothing too long, a pure function of its arguments."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.data.order import SourceOrder
from slm.data.seeded import permutation

CAPACITY = 40


@dataclass
class FakeLengths:
    parts: list[np.ndarray]

    @property
    def groups(self):
        return len(self.parts)

    def group_lengths(self, group):
        return self.parts[group]


@st.composite
def sources(draw):
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=7))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    return FakeLengths([rng.integers(1, CAPACITY + 1, size).astype(np.uint32) for size in sizes])


def order_of(lengths, *, seed=0, source=0, window=3, **more):
    return SourceOrder(lengths, source=source, seed=seed, window=window, **({"capacity": CAPACITY} | more))


def rows_of_epoch(order, epoch):
    """(group, sample) pairs of every row of an epoch, through `locate` as the loader goes."""
    rows = []
    for number in range(order.first_row(epoch), order.first_row(epoch + 1)):
        at, window, row = order.locate(number)
        assert at == epoch
        plan = order.window_plan(epoch, window)
        part = slice(plan.row_starts[row], plan.row_starts[row + 1])
        groups = plan.groups[plan.group[part]]
        rows.append(list(zip(groups.tolist(), plan.sample[part].tolist(), strict=True)))
        sizes = [int(order.lengths.group_lengths(g)[s]) for g, s in rows[-1]]
        assert (plan.stop[part] - plan.start[part]).tolist() == sizes
        assert [int(order.lengths.group_lengths(g)[:s].sum()) for g, s in rows[-1]] == plan.start[part].tolist()
        assert 0 < sum(sizes) <= CAPACITY
        assert sum(sizes) == plan.token_ends[row + 1] - plan.token_ends[row]
    return rows


@settings(max_examples=40, deadline=None)
@given(sources(), st.integers(0, 2**32), st.integers(1, 9), st.integers(0, 2), st.sampled_from([1, 2, 3, 8]))
def test_every_sample_exactly_once_in_every_epoch(lengths, seed, window, epoch, lanes):
    rows = rows_of_epoch(order_of(lengths, seed=seed, window=window, lanes=lanes), epoch)
    every = [(g, s) for g in range(lengths.groups) for s in range(len(lengths.group_lengths(g)))]
    assert sorted(pair for row in rows for pair in row) == every


@settings(max_examples=25, deadline=None)
@given(sources(), st.integers(0, 99), st.integers(1, 9))
def test_the_order_does_not_depend_on_what_was_asked_before(lengths, seed, window):
    straight = order_of(lengths, seed=seed, window=window)
    epochs = [rows_of_epoch(straight, e) for e in range(5)]
    assert rows_of_epoch(order_of(lengths, seed=seed, window=window), 4) == epochs[4]
    assert rows_of_epoch(straight, 0) == epochs[0]


@settings(max_examples=25, deadline=None)
@given(sources(), st.integers(0, 99), st.sampled_from([1, 2, 3, 8]))
def test_progress_counts_what_the_rows_held(lengths, seed, lanes):
    order = order_of(lengths, seed=seed, window=2, lanes=lanes)
    rows = [row for epoch in range(3) for row in rows_of_epoch(order, epoch)]
    total = sum(len(part) for part in lengths.parts)
    for count in range(len(rows) + 1):
        progress = order.progress(count)
        assert progress.rows == count
        assert progress.samples == sum(len(row) for row in rows[:count])
        assert progress.tokens == sum(int(lengths.group_lengths(g)[s]) for row in rows[:count] for g, s in row)
        assert progress.wraps == (progress.samples - 1) // total if count else progress.wraps == 0
    assert progress.epochs == 3


@settings(max_examples=10, deadline=None)
@given(sources(), st.integers(0, 99), st.lists(st.integers(0, 12), min_size=3, max_size=3))
def test_progress_when_lanes_are_not_abreast(lengths, seed, counts):
    order = order_of(lengths, seed=seed, window=2, lanes=3)
    held = [order.progress(row + 1).tokens - order.progress(row).tokens for row in range(36)]
    numbers = [i * 3 + lane for lane, count in enumerate(counts) for i in range(count)]
    progress = order.progress_of_lanes(counts)
    assert (progress.rows, progress.tokens) == (sum(counts), sum(held[number] for number in numbers))


def test_a_lane_has_a_stretch_of_the_windows_to_itself():
    rng = np.random.default_rng(0)
    order = order_of(FakeLengths([rng.integers(1, 20, 10) for _ in range(60)]), window=2, lanes=4)
    order.first_row(2)
    for epoch in (0, 1):
        windows = [[], [], [], []]
        for number in range(order.first_row(epoch), order.first_row(epoch + 1)):
            windows[number % 4].append(order.locate(number)[1])
        assert all(lane == sorted(lane) for lane in windows)
        assert all(a[-1] <= b[0] for a, b in pairwise(windows))
        assert max(len(lane) for lane in windows) - min(len(lane) for lane in windows) <= 1


def test_samples_longer_than_a_row_are_left_out_of_every_epoch():
    parts = [np.array([10, 50, 20]), np.array([60]), np.array([5, 5, 41, 40])]
    order = order_of(FakeLengths(parts), window=1)
    for epoch in (0, 1):
        seen = sorted(pair for row in rows_of_epoch(order, epoch) for pair in row)
        assert seen == [(0, 0), (0, 2), (2, 0), (2, 1), (2, 3)]
        assert order.epoch(epoch).tokens[-1] == 80
    with pytest.raises(ValueError, match="no sample fits"):
        order_of(FakeLengths([np.array([50])])).first_row(1)


def test_epochs_sources_and_seeds_have_orders_of_their_own():
    rng = np.random.default_rng(0)
    lengths = FakeLengths([rng.integers(1, 20, 50) for _ in range(8)])
    orders = [
        rows_of_epoch(order_of(lengths, seed=seed, source=source), epoch)
        for seed in (0, 1)
        for source in (0, 1)
        for epoch in (0, 1)
    ]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_a_window_holds_its_groups_only():
    lengths = FakeLengths([np.full(5, 7) for _ in range(10)])
    order = order_of(lengths, window=4)
    plans = [order.window_plan(0, window) for window in range(3)]
    assert [len(plan.groups) for plan in plans] == [4, 4, 2]
    assert sorted(np.concatenate([plan.groups for plan in plans])) == list(range(10))


def test_rows_for_fractions_of_epochs():
    order = order_of(FakeLengths([np.full(10, 30) for _ in range(5)]))
    assert [order.rows_for(epochs) for epochs in (0.5, 1, 1.01, 2.0)] == [25, 50, 51, 100]


def test_permutations_are_frozen():
    # A numpy that changed its streams would change the order of every run that is under way.
    assert permutation(8, 1, 0, 0, 0).tolist() == [5, 3, 2, 7, 0, 1, 4, 6]
    assert sorted(permutation(1000, 2, 5)) == list(range(1000))


@pytest.mark.parametrize("keys", [((1, 2), (1, 2, 0)), ((0,), (0, 0)), ((1,), (1, 1))])
def test_keys_of_different_length_are_different_keys(keys):
    first, second = (permutation(50, 1, 0, *key).tolist() for key in keys)
    assert first != second
