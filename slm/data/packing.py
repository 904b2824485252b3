"""Best-fit-decreasing bin packing: samples into rows, none cut, few tokens of a row left empty.

Longest first, each sample goes to the fullest row that still has room. Samples of one length are
placed together: a row that is the best fit stays it until it has no room for another, because no
other row's room lies between. So the work grows with distinct lengths, not with samples.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packed:
    """Samples laid into rows.

    Attributes:
        items: int64, (samples,): sample numbers, row after row.
        starts: int64, (rows + 1,): row r holds `items[starts[r]:starts[r + 1]]`.
    """

    items: np.ndarray
    starts: np.ndarray

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.starts) - 1


def pack(lengths: np.ndarray, capacity: int) -> Packed:
    """Pack samples into as few rows as best-fit-decreasing finds.

    Args:
        lengths: tokens of each sample, (samples,), each 1..capacity; among equals the first is placed first.
        capacity: tokens of a row.

    Raises:
        ValueError: a length outside 1..capacity.
    """
    _check(lengths, capacity)
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    row_of: list[int] = []
    rooms: list[int] = []  # free tokens that some open row has, ascending
    open_rows: dict[int, list[int]] = {}
    rows = 0
    values, counts = np.unique(lengths, return_counts=True)
    for length, left in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while left:
            at = bisect_left(rooms, length)
            if at == len(rooms):
                room, each = capacity, capacity // length
                need = -(-left // each)
                taken = list(range(rows, rows + need))
                rows += need
            else:
                room = rooms[at]
                each = room // length
                need = -(-left // each)
                stack = open_rows[room]
                taken = stack[-need:][::-1]
                del stack[-need:]
                if not stack:
                    del rooms[at], open_rows[room]
            full = min(len(taken), left // each)
            for row in taken[:full]:
                row_of += [row] * each
            _put(rooms, open_rows, room - each * length, taken[:full])
            left -= full * each
            if full < len(taken):  # the last row takes fewer: no sample of this length is left
                row_of += [taken[full]] * left
                _put(rooms, open_rows, room - left * length, taken[full:])
                left = 0
    rows_N = np.array(row_of, dtype=np.int64)
    items = order[np.argsort(rows_N, kind="stable")]
    return Packed(items, np.concatenate([[0], np.cumsum(np.bincount(rows_N, minlength=rows), dtype=np.int64)]))


def count_rows(lengths: np.ndarray, capacity: int) -> int:
    """How many rows `pack` makes; faster, for it assigns nothing.

    Raises:
        ValueError: a length outside 1..capacity.
    """
    _check(lengths, capacity)
    rooms: list[int] = []
    open_rows: dict[int, int] = {}
    rows = 0
    values, counts = np.unique(lengths, return_counts=True)
    for length, left in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while left:
            at = bisect_left(rooms, length)
            if at == len(rooms):
                room, each = capacity, capacity // length
                taken = -(-left // each)
                rows += taken
            else:
                room = rooms[at]
                each = room // length
                taken = min(-(-left // each), open_rows[room])
                open_rows[room] -= taken
                if not open_rows[room]:
                    del rooms[at], open_rows[room]
            full = min(taken, left // each)
            _add(rooms, open_rows, room - each * length, full)
            left -= full * each
            if full < taken:
                _add(rooms, open_rows, room - left * length, 1)
                left = 0
    return rows


def _check(lengths: np.ndarray, capacity: int) -> None:
    if len(lengths) and not (lengths.min() >= 1 and lengths.max() <= capacity):
        raise ValueError(f"samples of {lengths.min()}..{lengths.max()} tokens do not fit rows of {capacity}")


def _put(rooms: list[int], open_rows: dict[int, list[int]], room: int, rows: list[int]) -> None:
    if not rows or not room:
        return
    if room in open_rows:
        open_rows[room] += rows
    else:
        insort(rooms, room)
        open_rows[room] = list(rows)


def _add(rooms: list[int], open_rows: dict[int, int], room: int, rows: int) -> None:
    if not rows or not room:
        return
    if room not in open_rows:
        insort(rooms, room)
    open_rows[room] = open_rows.get(room, 0) + rows
