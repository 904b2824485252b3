"""The loader of a run: packed rows of several sources, step by step, the same for every world size.

Step t owns the global rows [t·R, (t+1)·R); rank r of W takes the rows r, r + W, … of them. Where a row
comes from and what it holds is a pure function of (sample lengths, seed, row number), so the whole
state is the number of the next row, and what can't differ between two runs that share it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from slm.data.held_out import HeldOut
from slm.data.mixture import Mixture, integer_weights
from slm.data.order import SourceOrder, WindowPlan
from slm.data.reader import Group, ShardSet
from slm.errors import ConfigError, DataError

STATE_VERSION = 1
KEPT_WINDOWS = 3


@dataclass(frozen=True)
class SourceSpec:
    """A shard set and its part of the mix.

    Attributes:
        name: how it is called in records; unique in a run.
        folder: the shard set.
        ratio: packed rows (that is, tokens) per row of the current stage's own source, which has 1.0.
        held_out: samples of the set that are never in a row.
    """

    name: str
    folder: str
    ratio: float = 1.0
    held_out: HeldOut | None = None


@dataclass
class Row:
    """One packed row.

    Attributes:
        source: name of the source; a row has documents of one source.
        ids: token ids, int32, (tokens,), without padding.
        supervised: bool, (tokens,): True where a token is a label.
        lengths: tokens of each document; sums to tokens.
    """

    source: str
    ids: np.ndarray
    supervised: np.ndarray
    lengths: list[int]

    @property
    def position_ids(self) -> np.ndarray:
        """Positions, int64, (tokens,): each document starts at 0."""
        sizes = np.asarray(self.lengths)
        return np.arange(len(self.ids)) - np.repeat(np.cumsum(sizes) - sizes, sizes)


class PackedLoader:
    """Rows of this rank for any step; consecutive steps are read ahead in a thread.

    Args:
        specs: the current stage's own source first, then the replayed ones.
        pack_length: tokens of a row at most.
        rows_per_step: rows of one optimizer step over all ranks.
        seed: of the run.
        rank, world_size: which rows are this process's.
        window: groups of a source that are shuffled and packed together.
        prefetch: steps read ahead.
        workers: threads that read; 0 reads in the caller.

    Raises:
        ConfigError: ratios, sizes or ranks that make no sense.
        DataError: a shard set that is missing, damaged, or holds samples longer than a row.
    """

    def __init__(
        self,
        specs: Sequence[SourceSpec],
        *,
        pack_length: int,
        rows_per_step: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        window: int = 64,
        prefetch: int = 2,
        workers: int = 1,
    ) -> None:
        names = [spec.name for spec in specs]
        if len(set(names)) < len(names):
            raise ConfigError(f"two sources have one name: {', '.join(names)}")
        if not 0 <= rank < world_size or min(pack_length, rows_per_step, window) < 1:
            raise ConfigError(
                f"can't load rows of {pack_length} tokens, {rows_per_step} a step, windows of {window} groups, "
                f"as rank {rank} of {world_size}"
            )
        self.specs = list(specs)
        self.pack_length, self.rows_per_step, self.seed, self.window = pack_length, rows_per_step, seed, window
        self.rank, self.world_size = rank, world_size
        self.prefetch = prefetch if workers else 0
        self.mixture = Mixture(integer_weights([spec.ratio for spec in specs]), seed)
        self._sources = [
            _Source(spec, SourceSettings(i, seed, window, pack_length)) for i, spec in enumerate(self.specs)
        ]
        self._next_row = 0
        self._ahead: dict[int, Future[list[Row]]] = {}
        self._pool = ThreadPoolExecutor(workers, "loader") if self.prefetch else None

    @property
    def rows_in_epoch(self) -> int:
        """Rows of the mix that make the first pass over the current stage's source."""
        return self.rows_for(1.0)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the first pass, the last one counted whole."""
        return -(-self.rows_in_epoch // self.rows_per_step)

    def rows_for(self, epochs: float) -> int:
        """Rows of the mix that make so many passes over the current stage's source."""
        return self.mixture.rows_holding(0, self._sources[0].order.rows_for(epochs))

    def step(self, step: int) -> list[Row]:
        """This rank's rows of a global step, and start reading the steps after it.

        Raises:
            DataError: a damaged shard; names shard, group and byte offset.
        """
        if self._pool is None:
            rows = self._read(step)
        else:
            wanted = range(step, step + 1 + self.prefetch)
            for stale in [at for at in self._ahead if at not in wanted]:
                self._ahead.pop(stale).cancel()
            for at in wanted:
                if at not in self._ahead:
                    self._ahead[at] = self._pool.submit(self._read, at)
            rows = self._ahead.pop(step).result()
        self._next_row = (step + 1) * self.rows_per_step
        return rows

    def __iter__(self) -> Iterator[list[Row]]:
        """This rank's rows of every step from the current position on, without end."""
        while True:
            yield self.step(self._next_row // self.rows_per_step)

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands, in plain values; the same on all ranks."""
        return {"version": STATE_VERSION, "next_row": self._next_row, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a run stood, at any world size.

        Raises:
            DataError: the state is of other data, or of an order made by other settings.
        """
        mine = {"version": STATE_VERSION, **self._identity()}
        differs = [
            f"{name}: {state.get(name)} then, {value} now" for name, value in mine.items() if state.get(name) != value
        ]
        if differs or "next_row" not in state:
            raise DataError(
                "the data of this run is not what the checkpoint was reading",
                where="; ".join(differs) or "no next_row",
                mend="restore the shards and settings, or start the step anew in another folder",
            )
        self._next_row = int(state["next_row"])

    def shares(self) -> dict[str, dict[str, Any]]:
        """What the rows so far held, over all ranks: rows, samples, tokens, epochs and wraps per source."""
        found = {}
        for i, source in enumerate(self._sources):
            progress = source.order.progress(self.mixture.count(i, self._next_row))
            found[source.spec.name] = {
                "rows": progress.rows,
                "samples": progress.samples,
                "tokens": progress.tokens,
                "epochs": round(progress.epochs, 4),
                "wraps": progress.wraps,
            }
        return found

    def close(self) -> None:
        """Stop reading ahead."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
            self._ahead.clear()

    def _identity(self) -> dict[str, Any]:
        """All that the order of rows depends on."""
        return {
            "seed": self.seed,
            "pack_length": self.pack_length,
            "window": self.window,
            "rows_per_step": self.rows_per_step,
            "weights": {spec.name: weight for spec, weight in zip(self.specs, self.mixture.weights, strict=True)},
            "fingerprints": {source.spec.name: source.shards.fingerprint for source in self._sources},
            "held_out": {spec.name: spec.held_out.digest for spec in self.specs if spec.held_out is not None},
        }

    def _read(self, step: int) -> list[Row]:
        first = step * self.rows_per_step
        located = self.mixture.locate(first, first + self.rows_per_step)[self.rank :: self.world_size]
        return [self._sources[source].row(row) for source, row in located]


@dataclass(frozen=True)
class SourceSettings:
    """What a source's order depends on besides its lengths."""

    number: int
    seed: int
    window: int
    capacity: int


class _Source:
    """A shard set, its order, and the windows being read."""

    def __init__(self, spec: SourceSpec, settings: SourceSettings) -> None:
        self.spec = spec
        self.shards = ShardSet(spec.folder)
        if self.shards.longest > settings.capacity:
            raise DataError(
                f"samples have up to {self.shards.longest} tokens and a row holds {settings.capacity}",
                where=spec.folder,
                mend="raise data.pack.length, or build the shards with a smaller max_length",
            )
        self.order = SourceOrder(
            self.shards,
            source=settings.number,
            seed=settings.seed,
            window=settings.window,
            capacity=settings.capacity,
            held_out=spec.held_out,
        )
        self._windows: OrderedDict[tuple[int, int], _Window] = OrderedDict()

    def row(self, number: int) -> Row:
        """The source's row of that number."""
        epoch, window, row = self.order.locate(number)
        key = (epoch, window)
        held = self._windows.get(key)
        if held is None:
            held = _Window(self.shards, self.order.window_plan(epoch, window))
            self._windows[key] = held
            while len(self._windows) > KEPT_WINDOWS:
                self._windows.popitem(last=False)
        return held.row(row, self.spec.name)


class _Window:
    """A window's rows, its groups read when first needed.

    Threads may race to read the same group; they read the same bytes, and one of the two is kept.
    """

    def __init__(self, shards: ShardSet, plan: WindowPlan) -> None:
        self._shards = shards
        self._groups: list[Group | None] = [None] * len(plan.groups)
        # Plain lists: a numpy scalar costs more than the slice it is used for.
        self._numbers = plan.groups.tolist()
        self._row_starts = plan.row_starts.tolist()
        self._documents = list(zip(plan.group.tolist(), plan.start.tolist(), plan.stop.tolist(), strict=True))

    def row(self, row: int, source: str) -> Row:
        ids, masks, lengths = [], [], []
        for at, start, stop in self._documents[self._row_starts[row] : self._row_starts[row + 1]]:
            group = self._groups[at]
            if group is None:
                group = self._groups[at] = self._shards.read_group(self._numbers[at])
            ids.append(group.ids[start:stop])
            masks.append(group.mask[start:stop])
            lengths.append(stop - start)
        return Row(source, np.concatenate(ids), np.concatenate(masks), lengths)
