"""Held-out samples: never in a row, the same whoever asks, packed into the rows that were asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_sets import make_samples, make_set

from slm.data.held_out import hold_out, packed_documents, read_documents
from slm.data.loader import PackedLoader, SourceSpec
from slm.data.packing import count_rows
from slm.data.reader import ShardSet
from slm.errors import ConfigError


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two sets, one with groups of eight, one with a sample a group."""
    root = tmp_path_factory.mktemp("sets")
    return [
        make_set(root / "eights", make_samples(500, seed=1)),
        make_set(root / "ones", make_samples(90, seed=2), group_size=1),
    ]


def places(held):
    return set(zip(held.groups.tolist(), held.samples.tolist(), strict=True))


def identities(row):
    """The first two ids of each document say which sample it is."""
    starts = np.cumsum([0, *row.lengths[:-1]])
    return [tuple(row.ids[start : start + 2].tolist()) for start in starts]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("seed", [0, 3])
def test_what_is_held_out_is_in_no_row_and_everything_else_is(sets, which, seed):
    shards = ShardSet(sets[which])
    held = hold_out(shards, rows=4, capacity=120)
    documents = packed_documents(held, 120)
    out = set()
    for row in documents:
        ids, _, lengths = read_documents(shards, held, row)
        starts = np.cumsum([0, *lengths[:-1]])
        out |= {tuple(ids[start : start + 2].tolist()) for start in starts}
    spec = SourceSpec("own", str(sets[which]), held_out=held)
    loader = PackedLoader([spec], pack_length=120, rows_per_step=1, seed=seed, window=4, workers=0)
    trained = [identity for step in range(loader.rows_in_epoch) for identity in identities(loader.step(step)[0])]
    assert len(out) == len(held.samples) > 10
    assert len(trained) == len(set(trained)) == shards.samples - len(out)
    assert not out & set(trained)


def test_a_second_pass_leaves_it_out_too(sets):
    shards = ShardSet(sets[1])
    held = hold_out(shards, rows=4, capacity=120)
    spec = SourceSpec("own", str(sets[1]), held_out=held)
    loader = PackedLoader([spec], pack_length=120, rows_per_step=2, seed=0, workers=0)
    count = sum(len(row.lengths) for step in range(loader.rows_for(3) // 2) for row in loader.step(step))
    assert loader.shares()["own"]["wraps"] == 2
    assert count == pytest.approx(3 * (shards.samples - len(held.samples)), abs=10)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 30), capacity=st.sampled_from([60, 100, 200]))
def test_it_fills_the_rows_and_more_rows_hold_out_the_same_and_others(sets, rows, capacity):
    shards = ShardSet(sets[0])
    held, more = hold_out(shards, rows, capacity), hold_out(shards, rows + 5, capacity)
    assert places(held) < places(more)
    assert count_rows(held.lengths, capacity) in (rows, rows - 1)
    assert held.tokens > 0.7 * rows * capacity or rows < 3
    for group, sample, length in zip(held.groups, held.samples, held.lengths, strict=True):
        assert shards.group_lengths(group)[sample] == length
    assert len(packed_documents(held, capacity)) <= rows


def test_another_order_of_the_same_hash_is_drawn_from_all_over_the_set(sets):
    held = hold_out(ShardSet(sets[0]), rows=20, capacity=100)
    assert len(np.unique(held.groups // 8)) == 8, "samples come from every eighth of the set"


def test_too_many_rows_for_the_set(sets):
    with pytest.raises(ConfigError, match="more than half"):
        hold_out(ShardSet(sets[1]), rows=50, capacity=100)


def test_a_checkpoint_of_another_selection_is_refused(sets):
    from slm.errors import DataError

    def loader(rows):
        held = hold_out(ShardSet(sets[0]), rows, 100)
        specs = [SourceSpec("own", str(sets[0]), held_out=held)]
        return PackedLoader(specs, pack_length=100, rows_per_step=2, seed=0, workers=0)

    state = loader(4).state_dict()
    loader(4).load_state_dict(state)
    with pytest.raises(DataError, match="not what the checkpoint was reading"):
        loader(5).load_state_dict(state)
