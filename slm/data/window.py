"""A window of a source: its groups read and checked once, its documents laid out in the order of its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from threading import Lock
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from slm.data.plans import WindowPlan
from slm.data.reader import DamageError, Group, ShardSet

Lose = Callable[[int, DamageError], None]
"""Takes note of a damaged group, or raises what stands against skipping it."""


@dataclass(slots=True)
class Row:
    """One packed row.

    Attributes:
        source: name of the source; a row has documents of one source.
        ids: token ids, int32, (tokens,), without padding.
        supervised: bool, (tokens,): True where a token is a label.
        lengths: tokens of each document; sums to tokens.
        skipped: the group of each document that is left out because its group is damaged. A row that
            has lost all of them is one token without a label, so that every rank still has its rows.
    """

    source: str
    ids: np.ndarray
    supervised: np.ndarray
    lengths: list[int]
    skipped: list[str] = field(default_factory=list)

    @property
    def position_ids(self) -> np.ndarray:
        """Positions, int64, (tokens,): each document starts at 0."""
        sizes = np.asarray(self.lengths)
        return np.arange(len(self.ids)) - np.repeat(np.cumsum(sizes) - sizes, sizes)


class _Laid(NamedTuple):
    """A window's documents end to end, row after row: ids int32, labels bool, and where each row ends."""

    ids: np.ndarray
    supervised: np.ndarray
    row_ends: list[int]


class Scratch:
    """The arrays that a source's windows are read into, one window after the other; as long as the longest so far.

    Made anew for each window they would fragment the heap, and a long run would hold twice what it needs.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self._ids, self._mask = np.empty(0, np.int32), np.empty(0, bool)

    def of(self, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Room for ids and labels; for the holder of `lock`."""
        if tokens > len(self._ids):
            self._ids, self._mask = np.empty(0, np.int32), np.empty(0, bool)  # the old are gone before the new come
            self._ids, self._mask = np.empty(tokens, np.int32), np.empty(tokens, bool)
        return self._ids, self._mask


class Window:
    """The rows of one window, laid out when the first of them is taken.

    What it holds is five bytes a token of its groups; what the shards' mapping showed of it is let go. Safe to use
    from several threads: one lays out, the others wait.

    Args:
        shards: where the groups are.
        plan: of the window.
        lose: called for a damaged group.
        scratch: of the source.
    """

    def __init__(self, shards: ShardSet, plan: WindowPlan, lose: Lose, scratch: Scratch) -> None:
        self._shards, self._plan, self._lose, self._scratch = shards, plan, lose, scratch
        self.rows = len(plan.row_starts) - 1
        self.next_is_open = False
        self._groups: list[int] = plan.groups.tolist()
        # Plain lists: a numpy scalar costs more than the slice it is used for.
        self._row_starts: list[int] = plan.row_starts.tolist()
        self._lengths: list[int] = (plan.stop - plan.start).tolist()
        self._lost: set[int] = set()
        self._laid: _Laid | None = None
        self._coming: dict[int, Future[Group]] = shards.read_ahead(self._groups)

    def take(self, rows: Sequence[int], source: str) -> list[Row]:
        """Rows by their numbers in the window; their arrays are stretches of the window's.

        Raises:
            DataError: a damaged group that may not be skipped.
            MachineError: a group that can't be read.
        """
        laid = self._laid
        if laid is None:
            with self._scratch.lock:
                laid = self._laid = self._laid or self._lay_out()
        found: list[Row] = []
        for row in rows:
            start, stop = laid.row_ends[row], laid.row_ends[row + 1]
            if self._lost:
                lengths, skipped = self._kept(row)
                if start == stop:
                    found.append(Row(source, np.zeros(1, np.int32), np.zeros(1, bool), [1], skipped))
                    continue
            else:
                lengths, skipped = self._lengths[self._row_starts[row] : self._row_starts[row + 1]], []
            found.append(Row(source, laid.ids[start:stop], laid.supervised[start:stop], lengths, skipped))
        return found

    def close(self) -> None:
        """Nothing of the window is needed any more."""
        for future in self._coming.values():
            future.cancel()

    def _lay_out(self) -> _Laid:
        sizes = [self._shards.group_lengths(group).astype(np.int64) for group in self._groups]
        ids, mask = self._scratch.of(sum(int(size.sum()) for size in sizes))
        at = 0
        for number, group in enumerate(self._groups):
            read = self._read(number, group)
            if read is None:
                sizes[number][:] = 0
                continue
            stop = at + len(read.ids)
            ids[at:stop], mask[at:stop] = read.ids, read.mask
            at = stop
            self._shards.done_with([group])
        plan = self._plan
        first_sample = np.cumsum([0, *map(len, sizes[:-1])])
        ends = np.concatenate([[0], *sizes]).cumsum()
        documents = pa.array(first_sample[plan.group] + plan.sample)
        row_ends = plan.token_ends
        if self._lost:
            kept = np.where(np.isin(plan.group, list(self._lost)), 0, plan.stop - plan.start)
            row_ends = np.concatenate([[0], kept.cumsum()])[plan.row_starts]
        laid = int(row_ends[-1])
        return _Laid(
            np.frombuffer(_gather(ids, ends, documents), np.int32, laid),
            np.frombuffer(_gather(mask, ends, documents), bool, laid),
            row_ends.tolist(),
        )

    def _read(self, number: int, group: int) -> Group | None:
        """A group, None when it is damaged and skipped."""
        try:
            return self._arrived(group) or self._shards.read_group(group)
        except DamageError as damage:
            self._lose(group, damage)
            self._lost.add(number)
            return None

    def _arrived(self, group: int) -> Group | None:
        """A group that was asked for before; None when it was not, or when the window was closed meanwhile."""
        coming = self._coming.pop(group, None)
        try:
            return coming.result() if coming is not None else None
        except CancelledError:
            return None

    def _kept(self, row: int) -> tuple[list[int], list[str]]:
        """Lengths of a row's documents whose groups are intact, and the groups of the others."""
        documents = slice(self._row_starts[row], self._row_starts[row + 1])
        pairs = list(zip(self._plan.group[documents].tolist(), self._lengths[documents], strict=True))
        lost = [self._shards.group_name(self._groups[at]) for at, _ in pairs if at in self._lost]
        return [length for at, length in pairs if at not in self._lost], lost


def _gather(values: np.ndarray, ends: np.ndarray, documents: pa.Array) -> pa.Buffer:
    """Stretches of an array end to end, document i being `values[ends[i]:ends[i + 1]]`.

    To Arrow each stretch is a string of bytes: its `take` copies them in one go, twice as fast as joining slices.
    """
    offsets = pa.py_buffer(ends * values.itemsize)
    whole = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(ends) - 1, [None, offsets, pa.py_buffer(values)])
    return pc.take(whole, documents).buffers()[2]
