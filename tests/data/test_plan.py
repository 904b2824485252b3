"""Parts cover the rows of a source once, in order; plans and records survive their trip through JSON."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.data.parts import Plan, Record, joined, make_plan
from slm.data.samples import Counts
from slm.data.sources import Piece
from slm.data.writer import ShardEntry
from slm.errors import DataError

ROWS = st.lists(st.integers(0, 40), min_size=1, max_size=8)


@given(ROWS, st.integers(1, 30), st.one_of(st.none(), st.integers(1, 100)))
def test_parts_cover_every_row_once_in_order(rows, size, limit):
    pieces = [Piece(f"p{number}", count) for number, count in enumerate(rows)]
    wanted = [(piece, row) for piece, count in enumerate(rows) for row in range(count)][:limit]
    if not wanted:
        with pytest.raises(DataError, match="holds no row"):
            make_plan(pieces, size=size, limit=limit)
        return
    plan = make_plan(pieces, size=size, limit=limit)
    spans = [span for part in plan.parts for span in part.spans]
    assert [(span.piece, row) for span in spans for row in range(span.start, span.stop)] == wanted
    assert [span.first for span in spans] == [wanted.index((span.piece, span.start)) for span in spans]
    counts = [sum(span.stop - span.start for span in part.spans) for part in plan.parts]
    assert all(count == size for count in counts[:-1]) and 0 < counts[-1] <= size
    assert plan.examples == len(wanted)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_piece_of_unknown_length_is_a_part_by_itself():
    plan = make_plan([Piece("a", 3), Piece("b", None), Piece("c", None), Piece("d", 3)], size=2)
    shape = [[(span.piece, span.start, span.stop) for span in part.spans] for part in plan.parts]
    assert shape == [[(0, 0, 2)], [(0, 2, 3)], [(1, 0, None)], [(2, 0, None)], [(3, 0, 2)], [(3, 2, 3)]]
    assert plan.examples is None
    assert all(a.number + 1 == b.number for a, b in pairwise(plan.parts))


def test_records_add_up():
    entry = ShardEntry("shard-000000.tar", 9, "a", "shard-000000.idx", 3, "b", 1, 2, 7, 4)
    record = Record(0, Counts(examples=3, empty=1), [entry], Counter({3: 1, 4: 1}))
    again = Record.from_json(json.loads(json.dumps(record.to_json())))
    assert again == record and again.tokens == 7
    whole = joined([record, again])
    assert (whole.counts.examples, whole.counts.empty, whole.tokens) == (6, 2, 14)
    assert whole.length_counts == {3: 2, 4: 2}
    assert record.files()["shard-000000.idx"] == {"size": 3, "sha256": "b"}
