"""The order of one source: a pure function of (lengths, seed, epoch).

Groups are permuted and cut into windows; the samples of a window are shuffled and packed into rows;
the window's rows are shuffled. An epoch holds every sample exactly once, but for those longer than a
row and those held out for evaluation. A source that is shorter than the run starts over in a new order. Planning
needs the lengths only, one window at a time.

Lanes: row k of the source is in lane k mod L, and each lane has a contiguous part of the epoch's
list of windows to itself. So who reads some of the lanes reads that part of the bytes.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from threading import RLock
from typing import Protocol

import numpy as np

from slm.data.held_out import HeldOut
from slm.data.packing import count_rows, pack
from slm.data.plan_cache import PlanCache
from slm.data.plans import EpochPlan, Held, Progress, WindowPlan
from slm.data.seeded import GROUPS, ROWS, SAMPLES, permutation

log = logging.getLogger(__name__)

KEPT_WINDOWS = 4
KEPT_EPOCHS = 3
SILENCE_S = 10.0
"""Planning that takes longer says how far it is, this often."""


class Lengths(Protocol):
    """What planning needs to know of a source: `ShardSet` has it."""

    @property
    def groups(self) -> int:
        """Number of groups."""

    def group_lengths(self, group: int) -> np.ndarray:
        """Tokens of each sample of a group, (samples,)."""


class SourceOrder:
    """Rows of one source, numbered from 0 without end. Safe to use from several threads.

    Args:
        lengths: the source; at least one sample has to fit a row.
        source: its number in the run; gives each source an order of its own.
        seed: of the run.
        window: groups that are shuffled and packed together.
        capacity: tokens of a row.
        lanes: into how many parts an epoch is divided; row k is in lane k mod lanes.
        cache: where the sizes of windows are kept; None keeps them in memory.
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
        lanes: int = 1,
        cache: PlanCache | None = None,
        held_out: HeldOut | None = None,
    ) -> None:
        self.lengths, self.source, self.seed = lengths, source, seed
        self.window, self.capacity, self.lanes, self.held_out = window, capacity, lanes, held_out
        self._sizes = PlanCache(None, "", -(-lengths.groups // window)) if cache is None else cache
        self._first_row = list(accumulate(self._sizes.rows(), initial=0))  # of each epoch
        self._epochs: OrderedDict[int, EpochPlan] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], WindowPlan] = OrderedDict()
        self._ends: OrderedDict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._before: OrderedDict[tuple[int, int], Held] = OrderedDict()
        self._lock = RLock()

    def rows_in(self, epoch: int) -> int:
        """Rows of an epoch; packing makes it differ a little between epochs."""
        return self.first_row(epoch + 1) - self.first_row(epoch)

    def first_row(self, epoch: int) -> int:
        """Rows before an epoch.

        Raises:
            ValueError: no sample fits a row.
        """
        while len(self._first_row) <= epoch:
            last = len(self._first_row) - 1
            sizes = self._count_epoch(last)  # not under the lock: the step loop asks for its position meanwhile
            if not sizes[:, 0].any():
                raise ValueError(f"no sample fits a row of {self.capacity} tokens")
            with self._lock:
                if len(self._first_row) == last + 1:
                    self._sizes.append(sizes)
                    self._first_row.append(self._first_row[last] + int(sizes[:, 0].sum()))
        return self._first_row[epoch]

    def rows_for(self, epochs: float) -> int:
        """Rows of so many passes, a started row counted whole."""
        whole = int(epochs)
        part = epochs - whole
        return self.first_row(whole) + (int(np.ceil(part * self.rows_in(whole) - 1e-9)) if part else 0)

    def locate(self, row: int) -> tuple[int, int, int]:
        """(epoch, window, row within the window) of a row of this source."""
        epoch = self._epoch_of(row)
        plan = self._epochs.get(epoch) or self.epoch(epoch)
        within = plan.lane_starts[row % self.lanes] + (row - self._first_row[epoch]) // self.lanes
        window = bisect_right(plan.rows, within) - 1
        return epoch, window, within - plan.rows[window]

    def progress(self, row: int) -> Progress:
        """What the first `row` rows held."""
        if row == 0:
            return Progress(0, 0, 0, 0.0, 0)
        epoch = self._epoch_of(row - 1)
        with self._lock:
            plan, done = self.epoch(epoch), self._lane_counts(epoch, row)
            samples, tokens = epoch * plan.samples[-1], epoch * plan.tokens[-1]
            for start, count in zip(plan.lane_starts, done, strict=False):
                before, until = self._held_before(epoch, start), self._held_before(epoch, start + count)
                samples += until.samples - before.samples
                tokens += until.tokens - before.tokens
            passed = (row - self.first_row(epoch)) / self.rows_in(epoch)
            return Progress(row, samples, tokens, epoch + passed, epoch)

    def progress_of_lanes(self, counts: Sequence[int]) -> Progress:
        """What was held by the first `counts[l]` rows of each lane l."""
        even = min(counts) * self.lanes
        found = self.progress(even)
        rows = [i * self.lanes + lane for lane, count in enumerate(counts) for i in range(min(counts), count)]
        if not rows:
            return found
        held = [self._held_by(row) for row in rows]
        until = even + len(rows)
        last = self._epoch_of(until - 1)
        return Progress(
            until,
            found.samples + sum(part.samples for part in held),
            found.tokens + sum(part.tokens for part in held),
            last + (until - self.first_row(last)) / self.rows_in(last),
            self._epoch_of(max(rows)),
        )

    def epoch(self, epoch: int) -> EpochPlan:
        """The order of an epoch's groups and the size of its windows."""
        self.first_row(epoch + 1)
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
                plan = self._windows[key] = self._plan_window(epoch, window)
                self._ends[key] = (plan.row_starts, plan.token_ends)
                _keep(self._windows, KEPT_WINDOWS)
                _keep(self._ends, 2 * self.lanes + KEPT_WINDOWS)
            self._windows.move_to_end(key)
            return self._windows[key]

    def _epoch_of(self, row: int) -> int:
        while self._first_row[-1] <= row:
            self.first_row(len(self._first_row))
        return bisect_right(self._first_row, row) - 1

    def _lane_counts(self, epoch: int, until: int) -> list[int]:
        """Rows of each lane among those of an epoch that come before row `until`."""
        first = self._first_row[epoch]
        return [max(0, -(-(until - first - (lane - first) % self.lanes) // self.lanes)) for lane in range(self.lanes)]

    def _held_before(self, epoch: int, within: int) -> Held:
        """What the list of an epoch's rows holds before its row `within`."""
        plan = self.epoch(epoch)
        window = bisect_right(plan.rows, within) - 1
        row = within - plan.rows[window]
        before = Held(plan.samples[window], plan.tokens[window])
        if not row:
            return before
        key = (epoch, within)
        if key not in self._before:
            samples, tokens = self._row_ends(epoch, window)
            self._before[key] = Held(before.samples + int(samples[row]), before.tokens + int(tokens[row]))
            _keep(self._before, 2 * self.lanes + KEPT_WINDOWS)
        self._before.move_to_end(key)
        return self._before[key]

    def _held_by(self, row: int) -> Held:
        epoch, window, within = self.locate(row)
        samples, tokens = self._row_ends(epoch, window)
        return Held(int(samples[within + 1] - samples[within]), int(tokens[within + 1] - tokens[within]))

    def _row_ends(self, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Samples and tokens before each row of a window."""
        with self._lock:
            key = (epoch, window)
            if key not in self._ends:
                plan = self.window_plan(epoch, window)
                self._ends[key] = (plan.row_starts, plan.token_ends)
            self._ends.move_to_end(key)
            return self._ends[key]

    def _group_order(self, epoch: int) -> np.ndarray:
        return permutation(self.lengths.groups, GROUPS, self.seed, self.source, epoch)

    def _count_epoch(self, epoch: int) -> np.ndarray:
        """Rows, samples and tokens of each window: the one part of a plan that needs the whole source."""
        order = self._group_order(epoch)
        sizes = np.empty((self._sizes.windows, 3), dtype=np.int64)
        told = time.monotonic()
        for window in range(len(sizes)):
            groups = order[window * self.window : (window + 1) * self.window]
            parts = [self.lengths.group_lengths(group) for group in groups]
            lengths = np.concatenate(parts)
            chosen = self._chosen(groups, parts, lengths)
            lengths = lengths if chosen is None else lengths[chosen]
            sizes[window] = count_rows(lengths, self.capacity), len(lengths), lengths.sum(dtype=np.int64)
            if time.monotonic() - told > SILENCE_S:
                told = time.monotonic()
                share = (window + 1) / len(sizes)
                log.info("planning epoch %d of source %d: %.0f %%", epoch, self.source, 100 * share)
        return sizes

    def _plan_epoch(self, epoch: int) -> EpochPlan:
        stop = self.first_row(epoch + 1)
        rows, samples, tokens = np.cumsum(np.pad(self._sizes[epoch], ((1, 0), (0, 0))), axis=0).T.tolist()
        lanes = list(accumulate(self._lane_counts(epoch, stop), initial=0))
        return EpochPlan(self._group_order(epoch), rows, samples, tokens, lanes)

    def _chosen(self, groups: np.ndarray, parts: Sequence[np.ndarray], lengths: np.ndarray) -> np.ndarray | None:
        """Which of some groups' samples, numbered end to end, are in a row: those that fit and are not held out.
        None: all of them."""
        fits = lengths <= self.capacity if lengths.max() > self.capacity else None
        if self.held_out is None:
            return None if fits is None else np.flatnonzero(fits)
        taken = np.ones(len(lengths), bool) if fits is None else fits
        first = 0
        for group, part in zip(groups, parts, strict=True):
            taken[first + self.held_out.of_group(int(group))] = False
            first += len(part)
        return np.flatnonzero(taken)

    def _plan_window(self, epoch: int, window: int) -> WindowPlan:
        groups = self.epoch(epoch).order[window * self.window : (window + 1) * self.window]
        parts = [self.lengths.group_lengths(group) for group in groups]
        lengths, counts = np.concatenate(parts).astype(np.int64), np.array([len(part) for part in parts])
        group_of = np.repeat(np.arange(len(groups)), counts)
        first_sample = np.cumsum(counts) - counts
        stops = np.cumsum(lengths)
        stops -= np.repeat((stops - lengths)[first_sample], counts)
        chosen = self._chosen(groups, parts, lengths)
        size = len(lengths) if chosen is None else len(chosen)
        shuffled = permutation(size, SAMPLES, self.seed, self.source, epoch, window)
        if chosen is not None:
            shuffled = chosen[shuffled]
        packed = pack(lengths[shuffled], self.capacity)
        rows = permutation(packed.rows, ROWS, self.seed, self.source, epoch, window)
        sizes = np.diff(packed.starts)[rows]
        row_starts = np.concatenate([[0], np.cumsum(sizes)])
        # Documents of the shuffled rows: each row's range of packed.items, shifted to where it now starts.
        picked = np.repeat(packed.starts[:-1][rows] - row_starts[:-1], sizes) + np.arange(len(shuffled))
        documents = shuffled[packed.items[picked]]
        tokens = np.concatenate([[0], np.cumsum(lengths[documents])])
        group = group_of[documents]
        return WindowPlan(
            groups=groups,
            row_starts=row_starts,
            group=group,
            sample=documents - first_sample[group],
            start=(stops - lengths)[documents],
            stop=stops[documents],
            token_ends=tokens[row_starts],
        )


def _keep(cache: OrderedDict, most: int) -> None:
    while len(cache) > most:
        cache.popitem(last=False)
