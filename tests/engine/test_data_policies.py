"""Damaged data in a real run on two ranks: skipped, counted and recorded, with the set behind a real server."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from serving import served

from slm.artifact import read_manifest, write_manifest
from slm.data.build import set_facts
from slm.data.held_out import hold_out
from slm.data.loader import PackedLoader, SourceSpec
from slm.data.reader import ShardSet
from slm.data.writer import ShardWriter


@pytest.fixture
def damaged(shards, tmp_path):
    """The stage's samples in groups of 16; every second group has a flipped bit."""
    whole, folder = ShardSet(shards["asr"]), tmp_path / "asr"
    folder.mkdir()
    group = whole.read_group(0)
    with ShardWriter(folder, vocabulary=whole.vocabulary, group_size=16) as writer:
        start = 0
        for stop in np.cumsum(group.lengths).tolist():
            writer.add(group.ids[start:stop], group.mask[start:stop])
            start = stop
    write_manifest(folder, "shards", config={}, about=set_facts(writer.entries, writer.length_counts, whole.vocabulary))
    path, offsets = folder / writer.entries[0].file, ShardSet(folder)._indexes[0].offsets
    data = bytearray(path.read_bytes())
    for offset in offsets[::2].tolist():
        data[offset + 700] ^= 1
    path.write_bytes(bytes(data))
    return folder


def test_damaged_groups_are_skipped_counted_and_recorded(train, damaged, tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_CACHE", str(tmp_path / "cache"))
    policy = {"damaged": "skip", "max_damaged": 0.6}
    loader = PackedLoader(
        [SourceSpec("set", str(damaged))], pack_length=128, rows_per_step=4, seed=1, workers=0, **policy
    )
    rows = [row for t in range(6) for row in loader.step(t)]
    wanted = Counter(f"set: {name}" for row in rows for name in row.skipped)
    assert wanted
    with served(damaged) as server:
        outcome = train(tmp_path / "run", data=server.url, policy=policy | {"overlong": "drop"}, seed=1)
        assert outcome.code == 0, outcome.text
        assert server.asked["shard-000000.idx"] <= 2  # once per rank, when both look before either has it
    about = read_manifest(outcome.out).about
    assert about["lost_samples"] == dict(wanted)
    assert outcome.metrics[-1]["lost_samples"] == wanted.total()
    assert outcome.metrics[-1]["tokens"] == sum(len(row.ids) for row in rows)
    assert "skipped: the group" in outcome.text and len(outcome.metrics) == 6
    assert len(list((outcome.out / "order").glob("*.rows"))) == 1


def test_held_out_samples_of_damaged_groups_are_skipped_and_counted_up_to_the_same_share(train, damaged, tmp_path):
    shard_set = ShardSet(damaged, damaged="skip")
    held = hold_out(shard_set, 3, 128)
    wanted = Counter(f"asr: {shard_set.group_name(group)} (held out)" for group in held.groups if group % 2 == 0)
    assert 0 < wanted.total() < len(held.groups)
    settings = {"data": str(damaged), "steps": 3, "eval": {"every": 3, "rows": 3}, "seed": 1}
    found = []
    for ranks in (1, 2):
        policy = {"damaged": "skip", "max_damaged": 0.6}
        outcome = train(tmp_path / f"run{ranks}", ranks=ranks, policy=policy, **settings)
        assert outcome.code == 0, outcome.text
        lost = read_manifest(outcome.out).about["lost_samples"]
        assert {key: count for key, count in lost.items() if "held out" in key} == wanted
        assert outcome.metrics[-1]["lost_samples"] == sum(lost.values())
        found.append(outcome.metrics[-1]["eval_loss"])
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    refused = train(tmp_path / "strict", ranks=2, policy={"damaged": "skip"}, **settings)
    assert refused.code == 3 and "more than data.max_damaged = 0.01" in refused.text, refused.text
    stopped = train(tmp_path / "error", ranks=1, **settings)
    assert stopped.code == 3 and "is damaged" in stopped.text, stopped.text
