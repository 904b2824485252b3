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
    rows, picked, times = _assign(*_descending(lengths, capacity), capacity)
    row_of = np.repeat(np.array(picked, dtype=_smallest(rows)), times)
    # 16-bit keys are sorted by radix, ten times faster than wider ones.
    order = np.argsort((capacity - lengths.astype(np.int64)).astype(_smallest(capacity)), kind="stable")
    items = order[np.argsort(row_of, kind="stable")]
    return Packed(items, np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=rows), dtype=np.int64)]))


def count_rows(lengths: np.ndarray, capacity: int) -> int:
    """How many rows `pack` makes; faster, for it assigns nothing.

    Raises:
        ValueError: a length outside 1..capacity.
    """
    rooms: list[int] = []  # free tokens that some open row has, ascending
    opened = [0] * (capacity + 1)  # how many rows have so much room
    rows = 0
    for length, left in zip(*_descending(lengths, capacity), strict=True):
        while left:
            at = bisect_left(rooms, length)
            room = capacity if at == len(rooms) else rooms[at]
            each = room // length
            need = left if each == 1 else -(-left // each)
            if at == len(rooms):
                rows += need
            elif need >= opened[room]:
                need, opened[room] = opened[room], 0
                del rooms[at]
            else:
                opened[room] -= need
            if left < need * each:  # the last row takes fewer: no sample of this length is left
                need -= 1
                rest = room - (left - need * each) * length
                if not opened[rest]:
                    insort(rooms, rest)
                opened[rest] += 1
                left = 0
            else:
                left -= need * each
            room -= each * length
            if room and need:
                if not opened[room]:
                    insort(rooms, room)
                opened[room] += need
    return rows


def _assign(values: list[int], counts: list[int], capacity: int) -> tuple[int, list[int], list[int]]:
    """The number of rows; and, longest sample first, which row takes how many samples in turn."""
    picked: list[int] = []
    times: list[int] = []
    rooms: list[int] = []
    opened: list[list[int] | None] = [None] * (capacity + 1)
    rows = 0
    for length, left in zip(values, counts, strict=True):
        while left:
            at = bisect_left(rooms, length)
            room = capacity if at == len(rooms) else rooms[at]
            each = room // length
            need = left if each == 1 else -(-left // each)
            if at == len(rooms):
                taken = list(range(rows, rows + need))
                rows += need
            else:
                stack = opened[room] or []
                if need >= len(stack):
                    taken, need, opened[room] = stack, len(stack), None
                    del rooms[at]
                else:
                    taken = stack[-need:]
                    del stack[-need:]
            picked += taken
            if left < need * each:  # the last row takes fewer: no sample of this length is left
                need -= 1
                rest = left - need * each
                times += [each] * need
                times.append(rest)
                _put(rooms, opened, room - rest * length, [taken.pop()])
                left = 0
            else:
                times += [each] * need
                left -= need * each
            room -= each * length
            if room and need:
                _put(rooms, opened, room, taken)
    return rows, picked, times


def _put(rooms: list[int], opened: list[list[int] | None], room: int, rows: list[int]) -> None:
    held = opened[room]
    if held is None:
        opened[room] = rows
        insort(rooms, room)
    else:
        held += rows


def _descending(lengths: np.ndarray, capacity: int) -> tuple[list[int], list[int]]:
    """The distinct lengths, longest first, and how many samples have each."""
    if len(lengths) and not (lengths.min() >= 1 and lengths.max() <= capacity):
        raise ValueError(f"samples of {lengths.min()}..{lengths.max()} tokens do not fit rows of {capacity}")
    counts = np.bincount(lengths)
    values = np.flatnonzero(counts)[::-1]
    return values.tolist(), counts[values].tolist()


def _smallest(most: int) -> type[np.integer]:
    return np.uint16 if most < 2**16 else np.int64
