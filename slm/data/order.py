"""The order of one source: a pure function of (lengths, seed, epoch).

Groups are permuted and cut into windows; the samples of a window are shuffled and packed into rows;
the window's rows are shuffled. An epoch holds every sample exactly once. A source that is shorter
than the run starts over in a new order. Planning needs the lengths only, one window at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import RLock
from typing import Protocol

import numpy as np

from slm.data.held_out import HeldOut
from slm.data.packing import count_rows, pack
from slm.data.seeded import GROUPS, ROWS, SAMPLES, permutation

KEPT_WINDOWS = 4
KEPT_EPOCHS = 2


class Lengths(Protocol):
    """What planning needs to know of a source: `ShardSet` has it."""

    @property
    def groups(self) -> int:
        """Number of groups."""

    def group_lengths(self, group: int) -> np.ndarray:
        """Tokens of each sample of a group, (samples,)."""


@dataclass(frozen=True)
class EpochPlan:
    """One pass over a source.

    Attributes:
        order: int64, (groups,): group numbers, window after window.
        rows, samples, tokens: int64, (windows + 1,): how many come before each window.
    """

    order: np.ndarray
    rows: np.ndarray
    samples: np.ndarray
    tokens: np.ndarray


@dataclass(frozen=True)
class WindowPlan:
    """The packed rows of one window.

    Attributes:
        groups: int64, (g,): group numbers in the set.
        row_starts: int64, (rows + 1,): row r holds the documents `row_starts[r]:row_starts[r + 1]`.
        group: int64, (documents,): which of `groups` a document is in.
        sample: int64, (documents,): which sample of that group it is.
        start, stop: int64, (documents,): its tokens within the group.
        token_ends: int64, (rows + 1,): tokens before each row.
    """

    groups: np.ndarray
    row_starts: np.ndarray
    group: np.ndarray
    sample: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    token_ends: np.ndarray


@dataclass(frozen=True)
class Progress:
    """How far a source has been read.

    Attributes:
        rows, samples, tokens: read so far.
        epochs: passes, with the fraction of the one under way, counted in rows.
        wraps: times the source has started over.
    """

    rows: int
    samples: int
    tokens: int
    epochs: float
    wraps: int


class SourceOrder:
    """Rows of one source, numbered from 0 without end. Safe to use from several threads.

    Args:
        lengths: the source.
        source: its number in the run; gives each source an order of its own.
        seed: of the run.
        window: groups that are shuffled and packed together.
        capacity: tokens of a row.
        held_out: samples that are in no row.
    """

    def __init__(
        self,
        lengths: Lengths,
        *,
        source: int,
        seed: int,
        window: int,
        capacity: int,
        held_out: HeldOut | None = None,
    ) -> None:
        self.lengths, self.source, self.seed = lengths, source, seed
        self.window, self.capacity, self.held_out = window, capacity, held_out
        self._first_row = [0]  # of each epoch
        self._epochs: OrderedDict[int, EpochPlan] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], WindowPlan] = OrderedDict()
        self._lock = RLock()

    def rows_in(self, epoch: int) -> int:
        """Rows of an epoch; packing makes it differ a little between epochs."""
        return self.first_row(epoch + 1) - self.first_row(epoch)

    def first_row(self, epoch: int) -> int:
        """Rows before an epoch."""
        with self._lock:
            while len(self._first_row) <= epoch:
                rows = int(self.epoch(len(self._first_row) - 1).rows[-1])
                self._first_row.append(self._first_row[-1] + rows)
            return self._first_row[epoch]

    def rows_for(self, epochs: float) -> int:
        """Rows of so many passes, a started row counted whole."""
        whole = int(epochs)
        part = epochs - whole
        return self.first_row(whole) + (int(np.ceil(part * self.rows_in(whole) - 1e-9)) if part else 0)

    def locate(self, row: int) -> tuple[int, int, int]:
        """(epoch, window, row within the window) of a row of this source."""
        with self._lock:
            epoch = self._epoch_of(row)
            ends = self.epoch(epoch).rows
            within = row - self._first_row[epoch]
            window = int(np.searchsorted(ends, within, side="right")) - 1
            return epoch, window, within - int(ends[window])

    def progress(self, row: int) -> Progress:
        """What the first `row` rows held."""
        if row == 0:
            return Progress(0, 0, 0, 0.0, 0)
        epoch, window, within = self.locate(row - 1)
        plan, rows = self.epoch(epoch), self.window_plan(epoch, window)
        samples = int(plan.samples[window]) + int(rows.row_starts[within + 1])
        tokens = int(plan.tokens[window]) + int(rows.token_ends[within + 1])
        passed = (row - self.first_row(epoch)) / self.rows_in(epoch)
        return Progress(
            row, epoch * int(plan.samples[-1]) + samples, epoch * int(plan.tokens[-1]) + tokens, epoch + passed, epoch
        )

    def epoch(self, epoch: int) -> EpochPlan:
        """The order of an epoch's groups and the size of its windows."""
        with self._lock:
            if epoch not in self._epochs:
                self._epochs[epoch] = self._plan_epoch(epoch)
                if len(self._epochs) > KEPT_EPOCHS:
                    self._epochs.popitem(last=False)
            self._epochs.move_to_end(epoch)
            return self._epochs[epoch]

    def window_plan(self, epoch: int, window: int) -> WindowPlan:
        """The rows of a window."""
        with self._lock:
            key = (epoch, window)
            if key not in self._windows:
                self._windows[key] = self._plan_window(epoch, window)
                if len(self._windows) > KEPT_WINDOWS:
                    self._windows.popitem(last=False)
            self._windows.move_to_end(key)
            return self._windows[key]

    def _epoch_of(self, row: int) -> int:
        while self._first_row[-1] <= row:
            self.first_row(len(self._first_row))
        return int(np.searchsorted(self._first_row, row, side="right")) - 1

    def _plan_epoch(self, epoch: int) -> EpochPlan:
        order = permutation(self.lengths.groups, GROUPS, self.seed, self.source, epoch)
        sizes = []
        for at in range(0, len(order), self.window):
            groups = order[at : at + self.window]
            lengths = np.concatenate([self.lengths.group_lengths(group) for group in groups])[self._trained(groups)]
            sizes.append((count_rows(lengths, self.capacity), len(lengths), int(lengths.sum(dtype=np.int64))))
        ends = np.cumsum(np.array([(0, 0, 0), *sizes], dtype=np.int64), axis=0)
        return EpochPlan(order, ends[:, 0], ends[:, 1], ends[:, 2])

    def _trained(self, groups: np.ndarray) -> np.ndarray | slice:
        """Which samples of some groups, end to end, are trained on: an index."""
        if self.held_out is None:
            return slice(None)
        parts = []
        for group in groups:
            part = np.ones(len(self.lengths.group_lengths(group)), bool)
            part[self.held_out.of_group(int(group))] = False
            parts.append(part)
        return np.concatenate(parts)

    def _plan_window(self, epoch: int, window: int) -> WindowPlan:
        groups = self.epoch(epoch).order[window * self.window : (window + 1) * self.window]
        parts = [self.lengths.group_lengths(group).astype(np.int64) for group in groups]
        lengths, counts = np.concatenate(parts), np.array([len(part) for part in parts])
        group_of = np.repeat(np.arange(len(groups)), counts)
        first_sample = np.cumsum(counts) - counts
        stops = np.concatenate([np.cumsum(part) for part in parts])
        trained = np.arange(len(lengths))[self._trained(groups)]
        shuffled = trained[permutation(len(trained), SAMPLES, self.seed, self.source, epoch, window)]
        packed = pack(lengths[shuffled], self.capacity)
        rows = permutation(packed.rows, ROWS, self.seed, self.source, epoch, window)
        sizes = np.diff(packed.starts)[rows]
        row_starts = np.concatenate([[0], np.cumsum(sizes)])
        # Documents of the shuffled rows: each row's range of packed.items, shifted to where it now starts.
        picked = np.repeat(packed.starts[:-1][rows] - row_starts[:-1], sizes) + np.arange(len(shuffled))
        documents = shuffled[packed.items[picked]]
        tokens = np.concatenate([[0], np.cumsum(lengths[documents])])
        return WindowPlan(
            groups=groups,
            row_starts=row_starts,
            group=group_of[documents],
            sample=documents - first_sample[group_of[documents]],
            start=(stops - lengths)[documents],
            stop=stops[documents],
            token_ends=tokens[row_starts],
        )
