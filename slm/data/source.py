"""One source of a run: its shard set, its order, and the windows of it that are being read."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from itertools import groupby
from operator import getitem
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from slm.artifact import digest
from slm.data.held_out import HeldOut
from slm.data.order import SourceOrder
from slm.data.plan_cache import PlanCache
from slm.data.plans import WindowPlan
from slm.data.reader import DamageError, Group, ShardSet
from slm.errors import ConfigError, DataError

log = logging.getLogger(__name__)

INT32, BOOL = np.dtype(np.int32), np.dtype(bool)
BY = ("rows", "samples")
OVERLONG = ("drop",)
MAX_DROPPED = 0.01
ORDER_VERSION = 1
"""Goes up when the same arguments come to give another order: what was planned before is void then."""


@dataclass(frozen=True)
class SourceSpec:
    """A shard set and its part of the mix.

    Attributes:
        name: how it is called in records; unique in a run.
        folder: the shard set, a path or a URL.
        ratio: how much of it, per unit of the current stage's own source, which has 1.0.
        by: what is counted: packed `rows` (that is, tokens), or `samples`.
        held_out: samples of the set that are never in a row.
    """

    name: str
    folder: str
    ratio: float = 1.0
    by: str = "rows"
    held_out: HeldOut | None = None


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


@dataclass(frozen=True)
class SourceSettings:
    """How a run reads its sources.

    Attributes:
        seed: of the run.
        window: groups that are shuffled and packed together.
        capacity: tokens of a row.
        lanes: parts of an epoch that are read side by side.
        served: lanes that this process reads.
        damaged: `error` or `skip`.
        max_damaged: share of a source's groups that may be skipped.
        overlong: `drop` leaves out samples longer than a row; None does too, but not more than 1 %.
        plan_cache: folder for the sizes of windows; None keeps none.
        keeps_plans: whether this process writes there; all read.
    """

    seed: int
    window: int
    capacity: int
    lanes: int = 1
    served: int = 1
    damaged: str = "error"
    max_damaged: float = 0.01
    overlong: str | None = None
    plan_cache: Path | None = None
    keeps_plans: bool = True


class Source:
    """A shard set as rows, numbered from 0 without end. Safe to use from several threads.

    Args:
        spec: which set.
        number: of the source in the run.
        settings: how it is read.

    Attributes:
        shards: the set.
        order: where a row lies.
        dropped: samples that are longer than a row and left out.

    Raises:
        ConfigError: an unknown policy.
        DataError: a set that is missing or damaged, or that has too many samples longer than a row.
    """

    def __init__(self, spec: SourceSpec, number: int, settings: SourceSettings) -> None:
        self.spec, self.settings = spec, settings
        self.shards = ShardSet(spec.folder, damaged=settings.damaged)
        self.dropped = self._check_lengths()
        windows = -(-self.shards.groups // settings.window)
        held_out = spec.held_out.digest if spec.held_out is not None else None
        depends_on = [
            *(ORDER_VERSION, self.shards.fingerprint, number),
            *(settings.seed, settings.window, settings.capacity, held_out),
        ]
        key = digest(depends_on)
        folder = settings.plan_cache
        self.plans = PlanCache(folder / f"{key[:32]}.rows" if folder else None, key, windows, settings.keeps_plans)
        self.order = SourceOrder(
            self.shards,
            source=number,
            seed=settings.seed,
            window=settings.window,
            capacity=settings.capacity,
            lanes=settings.lanes,
            cache=self.plans,
            held_out=spec.held_out,
        )
        self._passes = 0
        self._lost: set[int] = set()
        # The window that each lane is in, and the next one, which is fetched while this one is used.
        self._kept = settings.served * (2 if self.shards.is_remote else 1) + 2
        self._windows: OrderedDict[tuple[int, int], _Window] = OrderedDict()
        self._lock = RLock()

    def rows_per_sample(self) -> float:
        """Rows that a sample takes up on average, from the first pass."""
        return self.order.rows_in(0) / self.order.epoch(0).samples[-1]

    def rows(self, numbers: Sequence[int]) -> list[Row]:
        """The source's rows of these numbers.

        Raises:
            DataError: a damaged group, or too many of them to skip; names shard, group and byte offset.
            MachineError: it can't be read; names the same.
        """
        found: list[Row] = []
        # Rows that follow each other mostly lie in one window, and are put together in one go.
        for (epoch, window), part in groupby(map(self.order.locate, numbers), key=_window_of):
            within = [row for _, _, row in part]
            held = self._window(epoch, window, within[0])
            if self.shards.is_remote and not held.next_is_open and 2 * within[-1] >= held.rows:
                held.next_is_open = True
                number = numbers[len(found) + len(within) - 1]
                self._window(*self.order.locate(number + self.settings.lanes * (held.rows - within[-1])))
            found += held.take(within, self.spec.name)
        return found

    def lose(self, group: int, damage: DamageError) -> None:
        """Take note of a damaged group.

        Raises:
            DataError: damage is an error, or there is too much of it.
        """
        if self.settings.damaged != "skip":
            raise damage
        with self._lock:
            if group in self._lost:
                return
            self._lost.add(group)
            lost = len(self._lost)
        log.warning("skipped: %s (%s)", damage.what, damage.where)
        require_little_damage(lost, self.shards.groups, self.settings.max_damaged, damage)

    def _window(self, epoch: int, window: int, row: int) -> _Window:
        with self._lock:
            key = (epoch, window)
            held = self._windows.get(key)
            if held is None:
                if epoch > self._passes:
                    self._passes = epoch
                    log.info("%s: starts over in a new order, pass %d", self.spec.name, epoch + 1)
                held = self._windows[key] = _Window(self, self.order.window_plan(epoch, window), row)
                while len(self._windows) > self._kept:
                    self._windows.popitem(last=False)[1].close()
            else:
                self._windows.move_to_end(key)
            return held

    def _check_lengths(self) -> int:
        settings, shards = self.settings, self.shards
        if settings.overlong is not None and settings.overlong not in OVERLONG:
            raise ConfigError(f"overlong: expected one of {', '.join(OVERLONG)}, got {settings.overlong!r}")
        longer = shards.count_longer(settings.capacity)
        if not longer:
            return 0
        most = f"samples have up to {shards.longest} tokens and a row holds {settings.capacity}"
        if longer == shards.samples or (settings.overlong is None and longer > MAX_DROPPED * shards.samples):
            raise DataError(
                f"{most}: {longer} of {shards.samples} samples do not fit",
                where=self.spec.folder,
                mend="raise data.pack.length, build the shards with a smaller max_length, or set data.overlong: drop",
            )
        log.warning("%s: %s: %d of %d samples are left out", self.spec.folder, most, longer, shards.samples)
        return longer


def require_little_damage(lost: int, groups: int, most: float, last: DamageError) -> None:
    """Refuse to skip more damaged groups of a set than `data.max_damaged` (`most`) allows; one always may be lost.

    Raises:
        DataError: they are more; names the last.
    """
    if lost > max(1, most * groups):
        raise DataError(
            f"{lost} of {groups} groups are damaged, more than data.max_damaged = {most:g} of them; "
            f"the last: {last.what}",
            where=last.where,
            mend="copy the files from where they are intact, build the set again, or raise data.max_damaged",
        )


class _Window:
    """A window's rows, its groups read when first needed.

    Threads may race to read the same group; they read the same bytes, and one of the two is kept.
    """

    def __init__(self, source: Source, plan: WindowPlan, first: int) -> None:
        self._source = source
        self.rows = len(plan.row_starts) - 1
        self.next_is_open = False
        # Plain lists: a numpy scalar costs more than the slice it is used for.
        self._numbers = plan.groups.tolist()
        self._row_starts = plan.row_starts.tolist()
        self._lengths = (plan.stop - plan.start).tolist()
        self._sizes = np.diff(plan.token_ends).tolist()
        self._group, self._start, self._stop = plan.group.tolist(), plan.start.tolist(), plan.stop.tolist()
        # Buffers, None while unread.
        self._ids: list[Any] = [None] * len(self._numbers)
        self._masks: list[Any] = [None] * len(self._numbers)
        self._unread = len(self._numbers)
        self._lost: set[int] = set()
        # Asked for in the order of their first use.
        order = dict.fromkeys(self._group[self._row_starts[first] :]) | dict.fromkeys(range(len(self._numbers)))
        self._coming: dict[int, Future[Group]] = source.shards.read_ahead(self._numbers[at] for at in order)

    def take(self, rows: Sequence[int], source: str) -> list[Row]:
        """Rows of the window, by their numbers in it; their arrays are stretches of the same two buffers."""
        ends = self._row_starts
        groups, starts, stops = (self._of_rows(rows, values) for values in (self._group, self._start, self._stop))
        if self._unread:
            for at in groups:
                if self._ids[at] is None:
                    self._read(at)
        pieces = list(map(slice, starts, stops))
        ids = np.frombuffer(_joined(self._ids, groups, pieces), INT32)
        supervised = np.frombuffer(_joined(self._masks, groups, pieces), BOOL)
        found: list[Row] = []
        at = 0
        for row in rows:
            if self._lost:
                lengths, skipped = self._kept(row)
                end = at + sum(lengths)
            else:
                lengths, skipped = self._lengths[ends[row] : ends[row + 1]], []
                end = at + self._sizes[row]
            if end > at:
                found.append(Row(source, ids[at:end], supervised[at:end], lengths, skipped))
            else:
                found.append(Row(source, np.zeros(1, INT32), np.zeros(1, BOOL), [1], skipped))
            at = end
        return found

    def _of_rows(self, rows: Sequence[int], values: list[int]) -> list[int]:
        """The values that belong to the documents of some rows."""
        ends = self._row_starts
        if rows == list(range(rows[0], rows[0] + len(rows))):  # they follow each other: one stretch
            return values[ends[rows[0]] : ends[rows[-1] + 1]]
        return [value for row in rows for value in values[ends[row] : ends[row + 1]]]

    def close(self) -> None:
        """Nothing of the window is needed any more."""
        for future in self._coming.values():
            future.cancel()
        self._source.shards.done_with(self._numbers)

    def _read(self, at: int) -> None:
        number = self._numbers[at]
        try:
            group = self._arrived(number) or self._source.shards.read_group(number)
            ids, mask = group.ids, group.mask
        except DamageError as damage:
            self._source.lose(number, damage)
            self._lost.add(at)
            ids, mask = np.empty(0, np.int32), np.empty(0, bool)  # slices of it are empty too
        self._masks[at] = mask.data
        self._ids[at] = ids.data
        self._unread = sum(one is None for one in self._ids)

    def _arrived(self, number: int) -> Group | None:
        """A group that was asked for before; None when it was not, or when the window was closed meanwhile."""
        coming = self._coming.pop(number, None)
        try:
            return coming.result() if coming is not None else None
        except CancelledError:
            return None

    def _kept(self, row: int) -> tuple[list[int], list[str]]:
        """Lengths of a row's documents whose groups are intact, and the groups of the others."""
        documents = slice(self._row_starts[row], self._row_starts[row + 1])
        pairs = list(zip(self._group[documents], self._lengths[documents], strict=True))
        lost = [self._source.shards.group_name(self._numbers[at]) for at, _ in pairs if at in self._lost]
        return [length for at, length in pairs if at not in self._lost], lost


def _window_of(place: tuple[int, int, int]) -> tuple[int, int]:
    return place[:2]


def _joined(groups: list[Any], which: list[int], pieces: list[slice]) -> bytearray:
    """Pieces of groups end to end. Joining buffers is four times faster than `np.concatenate` of slices."""
    return bytearray().join(map(getitem, map(groups.__getitem__, which), pieces))
