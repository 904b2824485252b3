"""What a run does about damaged groups, samples longer than a row, replay by samples; lanes; kept row counts."""

from __future__ import annotations

import json
import logging
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from serving import served
from shard_sets import make_samples, make_set

from slm.data.format import shard_name
from slm.data.loader import PackedLoader, SourceSpec, slots_of
from slm.data.order import SourceOrder
from slm.data.plan_cache import PlanCache
from slm.data.reader import ShardSet
from slm.errors import ConfigError, DataError

PACK = 128
R = 8


def loader(folder, *more, **changes) -> PackedLoader:
    arguments = {"pack_length": PACK, "rows_per_step": R, "seed": 3, "window": 4} | changes
    return PackedLoader([SourceSpec("own", str(folder)), *more], **arguments)


def rows_by_number(loaders, steps):
    """Every rank's rows of the steps, in the global order."""
    found = {}
    for t in steps:
        for one in loaders:
            found |= dict(zip(one.rows_of(t), one.step(t), strict=True))
    for one in loaders:
        one.close()
    return [found[n] for n in sorted(found)]


def plain(row):
    return row.ids.tolist(), row.supervised.tolist(), row.lengths, row.skipped


def samples_in(rows):
    """What tells samples apart: their first two ids."""
    found = []
    for row in rows:
        starts = np.cumsum([0, *row.lengths[:-1]])
        found += [tuple(row.ids[start : start + 2].tolist()) for start in starts]
    return found


def flip(path: Path, group: int, shards: ShardSet, shard: int) -> None:
    data = bytearray(path.read_bytes())
    data[int(shards._indexes[shard].offsets[group]) + 700] ^= 4
    path.write_bytes(bytes(data))


@pytest.fixture
def damaged_set(tmp_path):
    """100 samples in 13 groups; the second group of shard 0 has a flipped bit."""
    folder = make_set(tmp_path / "set", make_samples(100), shard_bytes=20_000)
    flip(folder / shard_name(0), 1, ShardSet(folder), 0)
    return folder


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("workers", [0, 3])
def test_skipped_groups_leave_every_other_row_as_it_was(tmp_path, damaged_set, world, workers):
    whole = make_set(tmp_path / "whole", make_samples(100), shard_bytes=20_000)
    steps = range(loader(whole).steps_per_epoch)
    wanted = rows_by_number([loader(whole, workers=0)], steps)
    ranks = [loader(damaged_set, damaged="skip", rank=rank, world_size=world, workers=workers) for rank in range(world)]
    found = rows_by_number(ranks, steps)
    assert len(found) == len(wanted)
    lost = {divmod(i, 1000) for i in range(8, 16)}
    for row, before in zip(found, wanted, strict=True):
        kept = [sample for sample in samples_in([before]) if sample not in lost]
        assert row.skipped == ["shard-000000.tar group 1"] * (len(before.lengths) - len(kept))
        assert len(row.ids) == len(row.supervised) == sum(row.lengths)
        if kept:
            assert samples_in([row]) == kept
        else:
            assert (row.ids.tolist(), row.supervised.tolist(), row.lengths) == ([0], [False], [1])
    epoch = [row for n, row in enumerate(found) if n < loader(whole).rows_in_epoch]
    assert sum(len(row.skipped) for row in epoch) == 8


def test_skipping_is_the_same_after_a_resume(damaged_set):
    straight = [plain(row) for row in rows_by_number([loader(damaged_set, damaged="skip")], range(6))]
    first = loader(damaged_set, damaged="skip")
    first.step(2)
    state = json.loads(json.dumps(first.state_dict()))
    ranks = [loader(damaged_set, damaged="skip", rank=rank, world_size=2) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(state)
    assert [plain(row) for row in rows_by_number(ranks, range(3, 6))] == straight[3 * R :]


def test_a_row_that_loses_everything_is_one_token_without_a_label(tmp_path):
    folder = make_set(tmp_path / "set", make_samples(16), group_size=1)
    flip(folder / shard_name(0), 3, ShardSet(folder), 0)
    rows = rows_by_number([loader(folder, damaged="skip", pack_length=60, max_damaged=0.1)], [0, 1])
    lost = [row for row in rows if row.skipped]
    assert lost and all(row.lengths and sum(row.lengths) == len(row.ids) for row in lost)


def test_skipping_is_said_and_has_a_limit(damaged_set, caplog):
    with caplog.at_level(logging.WARNING):
        rows_by_number([loader(damaged_set, damaged="skip")], range(4))
    assert "skipped: the group s000000g00000001" in caplog.text and "shard-000000.tar group 1 at byte" in caplog.text
    flip(damaged_set / shard_name(0), 0, ShardSet(damaged_set), 0)
    with pytest.raises(DataError, match=r"2 of 13 groups are damaged, more than data\.max_damaged") as caught:
        rows_by_number([loader(damaged_set, damaged="skip")], range(4))
    assert shard_name(0) in caught.value.where
    rows_by_number([loader(damaged_set, damaged="skip", max_damaged=0.2)], range(4))


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("kind", ["cut", "missing", "empty", "not a tar", "swapped"])
def test_whole_shards_that_are_lost(tmp_path, monkeypatch, kind, remote):
    monkeypatch.setenv("SLM_CACHE", str(tmp_path / "cache"))
    folder = make_set(tmp_path / "set", make_samples(100), shard_bytes=6_000)
    shards = ShardSet(folder)
    path = folder / shard_name(1)
    start, stop = int(shards._first_group[1]), int(shards._first_group[2])
    data = path.read_bytes()
    whole_groups = 0
    if kind == "cut":
        whole_groups = 1
        path.write_bytes(data[: int(shards._indexes[1].offsets[1]) + 100])
    elif kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "not a tar":
        path.write_bytes(b"x" * len(data))
    else:
        path.write_bytes((folder / shard_name(2)).read_bytes())
    with served(folder) as server:
        location = server.url if remote else str(folder)
        with pytest.raises(DataError, match=r".") as caught:
            rows_by_number([loader(location)], range(4))
        assert shard_name(1) in caught.value.where
        one = loader(location, damaged="skip", max_damaged=0.9)
        rows = rows_by_number([one], range(one.steps_per_epoch))[: one.rows_in_epoch]
    lost = {name for row in rows for name in row.skipped}
    assert lost == {f"{shard_name(1)} group {local}" for local in range(whole_groups, stop - start)}


def test_a_damaged_index_is_an_error_under_every_policy(damaged_set):
    (damaged_set / "shard-000001.idx").write_bytes(b"")
    with pytest.raises(DataError, match="index"):
        loader(damaged_set, damaged="skip")
    with pytest.raises(ConfigError, match="error, skip"):
        loader(damaged_set, damaged="ignore")


def test_long_samples_are_dropped_and_counted_or_an_error(tmp_path, caplog):
    samples = make_samples(300)
    long = [(np.full(200, 7), np.ones(200, bool))]
    few, many = make_set(tmp_path / "few", samples + long), make_set(tmp_path / "many", samples + long * 30)
    with caplog.at_level(logging.WARNING):
        one = loader(few)
    assert "1 of 301 samples are left out" in caplog.text
    rows = rows_by_number([one], range(one.steps_per_epoch))[: one.rows_in_epoch]
    assert sorted(samples_in(rows)) == [divmod(i, 1000) for i in range(300)]
    assert one.shares()["own"]["dropped"] == 1 and one.tokens_in_epoch == sum(len(ids) for ids, _ in samples)
    with pytest.raises(DataError, match="30 of 330 samples do not fit") as caught:
        loader(many)
    assert "data.overlong: drop" in caught.value.mend
    assert loader(many, overlong="drop").shares()["own"]["dropped"] == 30
    with pytest.raises(DataError, match="300 of 300"):
        loader(make_set(tmp_path / "all", long * 300), overlong="drop")
    with pytest.raises(ConfigError, match="overlong"):
        loader(few, overlong="cut")


def test_replay_by_samples_counts_samples(tmp_path):
    """Replayed samples are six times as long: by rows they would be a sixth of what the method means."""
    own = make_set(tmp_path / "own", make_samples(2000, longest=20))
    old = make_set(tmp_path / "old", make_samples(60, longest=120, seed=1))
    by_samples = loader(own, SourceSpec("old", str(old), 0.05, "samples"))
    by_rows = loader(own, SourceSpec("old", str(old), 0.05))
    assert by_rows.mixture.weights == [20, 1]
    for one in (by_samples, by_rows):
        one.load_state_dict(one.state_dict() | {"next_row": one.rows_in_epoch})
    shares = by_samples.shares()
    assert shares["own"]["samples"] >= 2000 and shares["old"]["wraps"] == 1  # 100 samples of 60: it starts over
    assert abs(shares["old"]["samples"] / shares["own"]["samples"] / 0.05 - 1) < 0.06
    assert by_rows.shares()["old"]["samples"] < 0.3 * shares["old"]["samples"]
    with pytest.raises(ConfigError, match="rows, samples"):
        loader(own, SourceSpec("old", str(old), 0.05, "tokens"))


@pytest.mark.parametrize("rows", [1, 6, 8, 24])
@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 7, 12])
def test_slots_are_dealt_out_evenly_and_by_lane(rows, lanes, world):
    slots = [slots_of(rows, lanes, rank, world) for rank in range(world)]
    assert sorted(slot for part in slots for slot in part) == list(range(rows))
    assert max(map(len, slots)) - min(map(len, slots)) <= 1
    if rows % lanes == 0 and lanes % world == 0:
        assert all(len({slot % lanes for slot in part}) == lanes // world for part in slots)


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 7, 12])
def test_with_lanes_too_the_global_order_is_one_and_holds_every_sample_once(tmp_path, world, workers):
    own = make_set(tmp_path / "own", make_samples(400), shard_bytes=9000)
    old = SourceSpec("old", str(make_set(tmp_path / "old", make_samples(50, seed=1))), 0.2)
    steps = range(loader(own, old, lanes=4).steps_per_epoch + 4)
    alone = [plain(row) + (row.source,) for row in rows_by_number([loader(own, old, lanes=4, workers=0)], steps)]
    ranks = [loader(own, old, lanes=4, rank=rank, world_size=world, workers=workers) for rank in range(world)]
    rows = rows_by_number(ranks, steps)
    assert [plain(row) + (row.source,) for row in rows] == alone
    block = 4 * 6
    for at in range(0, len(rows) - block + 1, block):
        names = [row.source for row in rows[at : at + block]]
        assert (names.count("own"), names.count("old")) == (20, 4)
    mixture, order = ranks[0].mixture, ranks[0]._sources[0].order
    first_pass = [row for n, row in enumerate(rows) if mixture.locate_row(n) < (0, order.first_row(1))]
    first_pass = [row for row in first_pass if row.source == "own"]
    assert sorted(samples_in(first_pass)) == [divmod(i, 1000) for i in range(400)]


def test_a_node_reads_its_share_of_the_bytes(tmp_path):
    """The same epoch by 4 nodes: without lanes each reads nearly all of it, with 4 lanes a quarter of all sources."""
    own = make_set(tmp_path / "own", make_samples(3200))
    old = SourceSpec("old", str(make_set(tmp_path / "old", make_samples(800, seed=1))), 0.25)

    def shares(lanes):
        read = []
        for rank in range(4):
            one = loader(own, old, lanes=lanes, rank=rank, world_size=4, workers=0)
            for t in range(one.steps_per_epoch):
                one.step(t)
            read.append([one.bytes_read()[name] for name in ("own", "old")])
            one.close()
        return np.array(read) / [bytes_of_groups(folder) for folder in (own, old.folder)]

    without, with_lanes = shares(1), shares(4)
    assert without.min() > 0.6
    # A lane's stretch may begin and end within a window, which is read whole: little of 100, more of 25.
    assert with_lanes[:, 0].max() < 0.25 * 1.1 and with_lanes[:, 1].max() < 0.25 * 1.5


def bytes_of_groups(folder) -> int:
    return sum(int(index.sizes.sum()) for index in ShardSet(folder)._indexes)


@dataclass
class FakeLengths:
    lengths: np.ndarray
    groups: int

    def group_lengths(self, group):
        return self.lengths[group * 256 : (group + 1) * 256]


def million() -> FakeLengths:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(400), 0.55, 4000 * 256), 8, 4096).astype(np.uint32)
    return FakeLengths(lengths, 4000)


def big_order(source, path, windows=63):
    return SourceOrder(source, source=0, seed=1, window=64, capacity=4096, cache=PlanCache(path, "ab" * 32, windows))


def test_resuming_at_step_a_million_needs_no_planning_with_the_cache(tmp_path, monkeypatch):
    source, path = million(), tmp_path / "order.rows"
    sizes = big_order(source, path).rows_in(0)
    assert path.is_file()
    cache = PlanCache(path, "ab" * 32, 63)
    for _ in range(79):  # 8 million rows of 4096, as if they had been planned
        cache.append(cache[0])
    cache.save()
    monkeypatch.setattr(SourceOrder, "_count_epoch", lambda *_: pytest.fail("an epoch was counted again"))
    order = big_order(source, path)
    epoch, window, row = order.locate(8 * 10**6)
    plan = order.window_plan(epoch, window)
    assert epoch == 8 * 10**6 // sizes and 0 <= row < len(plan.row_starts) - 1
    assert sum(order.epoch(0).rows[-1:]) * 4096 * 0.995 < source.lengths.sum(dtype=np.int64)


def test_the_cache_changes_nothing_and_a_damaged_one_is_not_believed(tmp_path, caplog):
    folder = make_set(tmp_path / "set", make_samples(300))
    wanted = [plain(row) for row in rows_by_number([loader(folder)], [0, 40])]
    for edit in (None, None, lambda data: data[:-5], lambda data: b"", lambda data: data[:90] + b"?" + data[91:]):
        kept = list((tmp_path / "plans").glob("*.rows"))
        if edit is not None:
            kept[0].write_bytes(edit(kept[0].read_bytes()))
        caplog.clear()
        one = loader(folder, plan_cache=tmp_path / "plans")
        assert [plain(row) for row in rows_by_number([one], [0, 40])] == wanted
        one.save_plans()
        assert ("computed again" in caplog.text) == (edit is not None)
        assert len(list((tmp_path / "plans").iterdir())) == 1


def test_only_the_first_rank_writes_the_cache_and_other_settings_have_their_own(tmp_path):
    folder = make_set(tmp_path / "set", make_samples(300))
    plans = tmp_path / "plans"
    for changes in ({"rank": 1, "world_size": 2}, {}, {"seed": 4}, {"lanes": 2}):
        one = loader(folder, plan_cache=plans, **changes)
        one.step(20)
        one.save_plans()
        assert len(list(plans.glob("*"))) == {"rank": 0, "seed": 2, "lanes": 2}.get(next(iter(changes), ""), 1)
        one.close()


def test_a_cache_that_can_not_be_written_is_only_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    one = loader(make_set(tmp_path / "set", make_samples(30)), plan_cache=tmp_path / "file")
    one.step(0)
    one.save_plans()
    assert "are not kept" in caplog.text


def test_memory_does_not_grow_with_the_set(tmp_path):
    """Ten times the data: the same windows open, the same groups, the same peak."""
    peaks = []
    for count in (400, 800, 8000):  # the first one for what is imported and made once
        folder = make_set(tmp_path / str(count), make_samples(count, longest=600), group_size=32)
        tracemalloc.start()
        one = loader(folder, workers=0, pack_length=1024)
        for t in range(one.steps_per_epoch):
            one.step(t)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        windows = one._sources[0]._windows.values()
        assert len(windows) == 3 and all(len(window._groups) <= 4 for window in windows)
    # the longest of 63 windows is longer than that of 7
    assert peaks[2] < 1.3 * peaks[1]
