"""The loader: the same global order for every world, exact shares, resume anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_sets import make_samples, make_set

from slm.data.loader import PackedLoader, Row, SourceSpec
from slm.errors import ConfigError, DataError

PACK = 128
R = 6


@pytest.fixture(scope="module")
def specs(tmp_path_factory) -> list[SourceSpec]:
    """A current source of 180 samples and two replayed ones, the second much shorter than the run."""
    folder = tmp_path_factory.mktemp("sets")
    made = []
    for name, count, ratio in (("own", 180, 1.0), ("old", 90, 0.1), ("older", 9, 0.2)):
        make_set(folder / name, make_samples(count, seed=count), shard_bytes=9000)
        made.append(SourceSpec(name, str(folder / name), ratio))
    return made


def loader(specs, **changes) -> PackedLoader:
    arguments = {"pack_length": PACK, "rows_per_step": R, "seed": 3, "window": 4} | changes
    return PackedLoader(specs, **arguments)


def plain(row: Row):
    return row.source, row.ids.tolist(), row.supervised.tolist(), row.lengths


def global_rows(specs, steps, world=1, **changes):
    """The global order of `steps`, put together from all ranks."""
    ranks = [loader(specs, rank=rank, world_size=world, **changes) for rank in range(world)]
    rows = []
    for t in steps:
        found = {n: plain(row) for rank in ranks for n, row in zip(rank.rows_of(t), rank.step(t), strict=True)}
        assert sorted(found) == list(range(t * R, (t + 1) * R))
        rows += [found[n] for n in sorted(found)]
    for rank in ranks:
        rank.close()
    return rows


def documents(rows):
    """First two tokens of every document: what tells samples of one source apart."""
    found = []
    for source, ids, _, lengths in rows:
        ends = np.cumsum(lengths)
        found += [(source, *ids[end - length : end - length + 2]) for end, length in zip(ends, lengths, strict=True)]
    return found


def test_rows_hold_the_samples_that_were_written(specs):
    written = {tuple(ids[:2].tolist()): (ids, mask) for ids, mask in make_samples(180, seed=180)}
    for row in (row for t in range(5) for row in loader(specs[:1]).step(t)):
        assert row.ids.dtype == np.int32 and row.supervised.dtype == bool
        assert len(row.ids) == len(row.supervised) == sum(row.lengths) <= PACK
        assert row.position_ids.tolist() == [i for length in row.lengths for i in range(length)]
        end = 0
        for length in row.lengths:
            ids, mask = written[tuple(row.ids[end : end + 2].tolist())]
            np.testing.assert_array_equal(row.ids[end : end + length], ids)
            np.testing.assert_array_equal(row.supervised[end : end + length], mask)
            end += length


def test_an_epoch_holds_every_sample_once(specs):
    own = loader(specs[:1], rows_per_step=1)
    seen = documents(plain(row) for t in range(own.rows_in_epoch) for row in own.step(t))
    assert sorted(seen) == sorted(("own", i // 1000, i % 1000) for i in range(180))


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world", [2, 3, 4, 7, 12])
def test_the_global_order_does_not_depend_on_ranks_or_threads(specs, world, workers):
    assert global_rows(specs, range(8), world, workers=workers) == global_rows(specs, range(8), workers=0)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 40), st.sampled_from([1, 2, 3, 4, 7]), st.sampled_from([1, 2, 5]))
def test_stopped_anywhere_and_resumed_elsewhere(specs, stop, before, after):
    straight = global_rows(specs, range(stop + 3))
    first = loader(specs, rank=before - 1, world_size=before)
    for t in range(stop):
        first.step(t)
    state = json.loads(json.dumps(first.state_dict()))
    assert state["next_row"] == stop * R
    rest = []
    ranks = [loader(specs, rank=rank, world_size=after) for rank in range(after)]
    for rank in ranks:
        rank.load_state_dict(state)
        assert rank.shares() == first.shares()
    streams = [(rank, iter(rank)) for rank in ranks]
    for t in range(stop, stop + 3):
        found = {
            n: plain(row) for rank, stream in streams for n, row in zip(rank.rows_of(t), next(stream), strict=True)
        }
        rest += [found[n] for n in sorted(found)]
    assert rest == straight[stop * R :]
    for each in [first, *ranks]:
        each.close()


def test_ratios_are_exact_in_every_block(specs):
    rows = global_rows(specs, range(26))
    block = 10 + 1 + 2
    for at in range(0, len(rows) - block + 1, block):
        names = [row[0] for row in rows[at : at + block]]
        assert [names.count(name) for name in ("own", "old", "older")] == [10, 1, 2]


def test_shares_and_wraps_are_what_was_read(specs):
    one = loader(specs)
    rows: list = []
    assert all(share["rows"] == share["wraps"] == 0 for share in one.shares().values())
    for t in range(60):
        rows += [plain(row) for row in one.step(t)]
        for name, share in one.shares().items():
            own = [row for row in rows if row[0] == name]
            assert (share["rows"], share["tokens"]) == (len(own), sum(len(row[1]) for row in own))
            assert share["samples"] == sum(len(row[3]) for row in own)
    shares = one.shares()
    for name, count in (("own", 180), ("old", 90), ("older", 9)):
        assert shares[name]["wraps"] == (shares[name]["samples"] - 1) // count >= 1
    assert shares["older"]["wraps"] <= shares["older"]["epochs"] <= shares["older"]["wraps"] + 1
    # Each pass of the source that wraps holds all of its samples, in an order of its own.
    older = [row for row in rows if row[0] == "older"]
    per_pass = [documents(older[i : i + 3]) for i in range(0, len(older) - 2, 3)]
    assert all(len(set(seen)) == len(seen) == 9 for seen in per_pass[:5])
    assert len({str(seen) for seen in per_pass[:5]}) > 1


def test_ranks_agree_on_shares_and_steps(specs):
    ranks = [loader(specs, rank=rank, world_size=3) for rank in range(3)]
    for t in range(4):
        assert [len(rank.step(t)) for rank in ranks] == [2, 2, 2]
    assert all(rank.shares() == ranks[0].shares() and rank.state_dict() == ranks[0].state_dict() for rank in ranks)
    assert len({rank.steps_per_epoch for rank in ranks}) == 1


def test_how_many_rows_make_so_many_epochs(specs):
    own, mixed = loader(specs[:1]), loader(specs)
    first = own.rows_for(1.0)
    assert first == own.rows_in_epoch and own.steps_per_epoch == -(-first // R)
    assert own.rows_for(0.5) == -(-first // 2) and own.rows_for(3.0) > 2.9 * first
    rows = mixed.rows_for(2.0)
    passes = loader(specs, rows_per_step=rows)
    passes.step(0)
    assert passes.shares()["own"]["epochs"] == 2.0


def test_steps_in_any_order_give_the_same_rows(specs):
    wanted = {t: [plain(row) for row in loader(specs, workers=0).step(t)] for t in (0, 1, 9, 30)}
    one = loader(specs)
    for t in (9, 0, 30, 1, 9):
        assert [plain(row) for row in one.step(t)] == wanted[t]
    one.close()


@pytest.mark.parametrize("change", [{"seed": 4}, {"window": 5}, {"pack_length": 64}, {"rows_per_step": 12}])
def test_a_state_of_other_settings_is_refused(specs, change):
    state = loader(specs).state_dict()
    with pytest.raises(DataError, match="not what the checkpoint was reading") as caught:
        loader(specs, **change).load_state_dict(state)
    assert next(iter(change)) in caught.value.where


def test_a_state_of_other_data_is_refused(specs, tmp_path):
    state = loader(specs).state_dict()
    other = make_set(tmp_path / "own", make_samples(180, seed=1))
    for changed in ([SourceSpec("own", str(other), 1.0), *specs[1:]], specs[:2]):
        with pytest.raises(DataError, match="not what the checkpoint"):
            loader(changed).load_state_dict(state)


def test_damage_met_while_reading_ahead_reaches_the_caller(tmp_path):
    folder = make_set(tmp_path / "set", make_samples(100))
    data = bytearray((folder / "shard-000000.tar").read_bytes())
    data[len(data) // 2] ^= 4
    (folder / "shard-000000.tar").write_bytes(bytes(data))
    one = loader([SourceSpec("set", str(folder))])
    with pytest.raises(DataError) as caught:
        for t in range(one.steps_per_epoch):
            one.step(t)
    assert "shard-000000.tar group" in caught.value.where and "byte" in caught.value.where


def test_samples_longer_than_a_row_are_an_error_before_anything_is_read(specs):
    with pytest.raises(DataError, match="a row holds 32") as caught:
        loader(specs, pack_length=32)
    assert caught.value.where == specs[0].folder and "pack.length" in caught.value.mend


@pytest.mark.parametrize("change", [{"rank": 2, "world_size": 2}, {"rows_per_step": 0}, {"window": 0}])
def test_impossible_settings(specs, change):
    with pytest.raises(ConfigError):
        loader(specs, **change)


def test_names_are_unique(specs):
    with pytest.raises(ConfigError, match="one name"):
        loader([specs[0], specs[0]])


def test_no_torch_is_needed():
    import subprocess
    import sys

    code = "import slm.data.loader, slm.data.build, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
