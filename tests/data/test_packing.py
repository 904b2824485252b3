"""Packing: nothing lost, nothing cut, and the very result of the textbook algorithm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.data.packing import count_rows, pack

CAPACITY = 50
lengths_of_samples = st.lists(st.integers(1, CAPACITY), max_size=120).map(np.array).map(lambda a: a.astype(np.uint32))


def textbook(lengths) -> list[int]:
    """Free room of the rows that best-fit-decreasing opens."""
    rows: list[int] = []
    for length in sorted((int(n) for n in lengths), reverse=True):
        fitting = [i for i, room in enumerate(rows) if room >= length]
        if fitting:
            rows[min(fitting, key=lambda i: rows[i])] -= length
        else:
            rows.append(CAPACITY - length)
    return sorted(rows)


@given(lengths_of_samples)
def test_every_sample_once_and_no_row_too_long(lengths):
    packed = pack(lengths, CAPACITY)
    assert sorted(packed.items) == list(range(len(lengths)))
    assert all(np.diff(packed.starts) > 0) and packed.starts[0] == 0 and packed.starts[-1] == len(lengths)
    filled = [int(lengths[packed.items[a:b]].sum()) for a, b in zip(packed.starts, packed.starts[1:], strict=False)]
    assert all(fill <= CAPACITY for fill in filled)
    assert sorted(CAPACITY - fill for fill in filled) == textbook(lengths)
    assert count_rows(lengths, CAPACITY) == packed.rows


def test_windows_of_a_real_size_are_nearly_full():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(400), 0.55, 64 * 256), 1, 4096).astype(np.uint32)
    assert lengths.sum() / (pack(lengths, 4096).rows * 4096) > 0.995


@pytest.mark.parametrize("lengths", [[0, 3], [51]])
def test_a_sample_that_fits_no_row(lengths):
    for function in (pack, count_rows):
        with pytest.raises(ValueError, match="do not fit"):
            function(np.array(lengths), CAPACITY)
