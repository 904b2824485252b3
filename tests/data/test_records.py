"""Records of finished parts add up, and survive their trip through JSON."""

from __future__ import annotations

import json
from collections import Counter

from slm.data.parts import Record, joined
from slm.data.samples import Counts
from slm.data.writer import ShardEntry


def test_records_add_up():
    entry = ShardEntry("shard-000000.tar", 9, "a", "shard-000000.idx", 3, "b", 1, 2, 7, 4)
    record = Record(0, Counts(examples=3, empty=1), [entry], Counter({3: 1, 4: 1}))
    again = Record.from_json(json.loads(json.dumps(record.to_json())))
    assert again == record and again.tokens == 7
    whole = joined([record, again])
    assert (whole.counts.examples, whole.counts.empty, whole.tokens) == (6, 2, 14)
    assert whole.length_counts == {3: 2, 4: 2}
    assert record.files()["shard-000000.idx"] == {"size": 3, "sha256": "b"}
