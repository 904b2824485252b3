"""One source of a run: its shard set, its order, and the windows of it that are being read."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from threading import RLock

from slm.artifact import digest
from slm.data.held_out import HeldOut
from slm.data.order import SourceOrder
from slm.data.plan_cache import PlanCache
from slm.data.reader import DamageError, ShardSet
from slm.data.window import Row, Scratch, Window
from slm.errors import ConfigError, DataError

log = logging.getLogger(__name__)

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
        self._scratch = Scratch()
        self._lost: set[int] = set()
        # The window that each lane is in, and the next one, which is fetched while this one is used.
        self._kept = settings.served * (2 if self.shards.is_remote else 1) + 2
        self._windows: OrderedDict[tuple[int, int], Window] = OrderedDict()
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
        for (epoch, window), within in self._located(numbers):
            held = self._window(epoch, window)
            if self.shards.is_remote and not held.next_is_open and 2 * within[-1] >= held.rows:
                held.next_is_open = True
                number = numbers[len(found) + len(within) - 1]
                following = self.order.locate(number + self.settings.lanes * (held.rows - within[-1]))
                self._window(*_window_of(following))
            found += held.take(within, self.spec.name)
        return found

    def _located(self, numbers: Sequence[int]) -> Iterator[tuple[tuple[int, int], Sequence[int]]]:
        """The windows that rows are in, one after the other, with the rows' numbers in them."""
        if not numbers:
            return
        (*first, begin), (*last, end) = self.order.locate(numbers[0]), self.order.locate(numbers[-1])
        if first == last and end - begin == len(numbers) - 1 == numbers[-1] - numbers[0]:
            yield (first[0], first[1]), range(begin, end + 1)  # as nearly always: no need to look for each of them
            return
        for key, part in groupby(map(self.order.locate, numbers), key=_window_of):
            yield key, [row for _, _, row in part]

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

    def _window(self, epoch: int, window: int) -> Window:
        with self._lock:
            key = (epoch, window)
            held = self._windows.get(key)
            if held is None:
                if epoch > self._passes:
                    self._passes = epoch
                    log.info("%s: starts over in a new order, pass %d", self.spec.name, epoch + 1)
                plan = self.order.window_plan(epoch, window)
                held = self._windows[key] = Window(self.shards, plan, self.lose, self._scratch)
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


def _window_of(place: tuple[int, int, int]) -> tuple[int, int]:
    return place[:2]
