"""Damaged data in a real run on two ranks: skipped, counted and recorded, with the set behind a real server."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from serving import served

from slm.artifact import read_manifest, write_manifest
from slm.data.build import set_facts
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
