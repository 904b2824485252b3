"""Parts cover the rows of a source once, in order; plans survive their trip through JSON."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.errors import DataError
from slm.parts import Piece, Plan, make_plan

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
