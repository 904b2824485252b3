"""The loader of a run: packed rows of several sources, step by step, the same for every world size.

Step t owns the global rows [t·R, (t+1)·R). Where a row comes from and what it holds is a pure function of
(sample lengths, seed, row number), so the whole state is the number of the next row, and what can't differ
between two runs that share it. Which rank reads which of a step's rows depends on the lanes: see `slots_of`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from slm.data.mixture import Mixture, integer_weights
from slm.data.source import BY, Source, SourceSettings, SourceSpec
from slm.data.window import Row
from slm.errors import ConfigError, DataError, SlmError

__all__ = ["PackedLoader", "Row", "SourceSpec", "slots_of"]

STATE_VERSION = 2
TASK_ROWS = 32
"""Rows that a thread reads in one go: waking it costs as much as reading one."""


def slots_of(rows: int, lanes: int, rank: int, world_size: int) -> list[int]:
    """Which rows of every step a rank reads, by their place in the step.

    The places are ordered by lane (place i is in lane i mod lanes) and dealt out in equal stretches, so a
    rank reads the same lanes at every step, and ranks that follow each other, as on one node, neighbouring
    lanes. With world_size ≤ lanes, a lane is read by one rank, or by two at the border of their stretches.
    """
    order = sorted(range(rows), key=lambda slot: (slot % lanes, slot))
    return sorted(order[rank * rows // world_size : (rank + 1) * rows // world_size])


class PackedLoader:
    """Rows of this rank for any step; consecutive steps are read ahead in threads.

    Args:
        specs: the current stage's own source first, then the replayed ones.
        pack_length: tokens of a row at most.
        rows_per_step: rows of one optimizer step over all ranks.
        seed: of the run.
        rank, world_size: which rows are this process's.
        window: groups of a source that are shuffled and packed together.
        lanes: parts of each source that are read side by side; divides `rows_per_step`. They belong to the
            order, not to the machine: with N nodes, N a divisor of lanes, a node reads 1/N of the bytes.
        prefetch: steps read ahead, at least.
        workers: threads that read; 0 reads in the caller.
        damaged: what happens to damaged groups: `error`, or `skip` (their documents are left out of their
            rows; nothing else moves, so ranks need not agree on it).
        max_damaged: share of a source's groups that may be skipped; one always may.
        overlong: what happens to samples longer than a row: `drop` leaves them out; None does too, and is an
            error above 1 %.
        plan_cache: folder that keeps how many rows each window has, so that resuming far into a run takes no
            planning; None keeps nothing.

    Raises:
        ConfigError: ratios, sizes or ranks that make no sense.
        DataError: a shard set that is missing, damaged, or has too many samples longer than a row.
        MachineError: a server that can't be reached.
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
        lanes: int = 1,
        prefetch: int = 2,
        workers: int = 1,
        damaged: str = "error",
        max_damaged: float = 0.01,
        overlong: str | None = None,
        plan_cache: str | Path | None = None,
    ) -> None:
        _check_specs(specs)
        if not 0 <= rank < world_size or min(pack_length, rows_per_step, window, lanes) < 1 or rows_per_step % lanes:
            raise ConfigError(
                f"can't load rows of {pack_length} tokens, {rows_per_step} a step in {lanes} lanes, windows of "
                f"{window} groups, as rank {rank} of {world_size}"
            )
        self.specs = list(specs)
        self.pack_length, self.rows_per_step, self.seed, self.window = pack_length, rows_per_step, seed, window
        self.rank, self.world_size, self.lanes = rank, world_size, lanes
        self.prefetch = prefetch if workers else 0
        self._slots = slots_of(rows_per_step, lanes, rank, world_size)
        settings = SourceSettings(
            seed,
            window,
            pack_length,
            lanes,
            served=len({slot % lanes for slot in self._slots}),
            damaged=damaged,
            max_damaged=max_damaged,
            overlong=overlong,
            plan_cache=Path(plan_cache) if plan_cache is not None else None,
            keeps_plans=rank == 0,
        )
        self._sources = [Source(spec, i, settings) for i, spec in enumerate(self.specs)]
        self.mixture = Mixture(self._weights(), seed, lanes)
        self._next_row = 0
        self._steps_per_task = max(1, TASK_ROWS // max(1, len(self._slots)))
        self._ahead: dict[int, Future[list[list[Row] | SlmError]]] = {}
        self._pool = ThreadPoolExecutor(workers, "loader") if self.prefetch else None

    @cached_property
    def rows_in_epoch(self) -> int:
        """Rows of the mix that make the first pass over the current stage's source."""
        return self.rows_for(1.0)

    @property
    def tokens_in_epoch(self) -> int:
        """Tokens of one pass over the current stage's source."""
        return self._sources[0].order.epoch(0).tokens[-1]

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the first pass, the last one counted whole."""
        return -(-self.rows_in_epoch // self.rows_per_step)

    def rows_for(self, epochs: float) -> int:
        """Rows of the mix that make so many passes over the current stage's source."""
        return self.mixture.rows_holding(0, self._sources[0].order.rows_for(epochs))

    def rows_of(self, step: int) -> list[int]:
        """Numbers of the global rows that `step` returns, in its order."""
        return [step * self.rows_per_step + slot for slot in self._slots]

    def step(self, step: int) -> list[Row]:
        """This rank's rows of a global step, and start reading the steps after it.

        Raises:
            DataError: a damaged shard; names shard, group and byte offset.
            MachineError: a shard that can't be read.
        """
        if self._pool is None:
            rows = self._read(step)
        else:
            size = self._steps_per_task
            wanted = range(step // size, (step + self.prefetch) // size + 1)
            for stale in [at for at in self._ahead if at not in wanted]:
                self._ahead.pop(stale).cancel()
            for at in wanted:
                if at not in self._ahead:
                    self._ahead[at] = self._pool.submit(self._read_task, at)
            found = self._ahead[step // size].result()[step % size]
            if isinstance(found, SlmError):
                raise found
            rows = found
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
        """What the rows so far held, over all ranks and before damage: rows, samples, tokens, epochs and wraps
        per source, and `dropped`: samples of the set that are longer than a row."""
        found = {}
        for i, source in enumerate(self._sources):
            progress = source.order.progress_of_lanes(self.mixture.counts(i, self._next_row))
            found[source.spec.name] = {
                "rows": progress.rows,
                "samples": progress.samples,
                "tokens": progress.tokens,
                "epochs": round(progress.epochs, 4),
                "wraps": progress.wraps,
                "dropped": source.dropped,
            }
        return found

    def bytes_read(self) -> dict[str, int]:
        """Bytes of groups that this process has read, per source."""
        return {source.spec.name: source.shards.bytes_read for source in self._sources}

    def save_plans(self) -> None:
        """Write to the plan cache what it does not hold yet."""
        for source in self._sources:
            source.plans.save()

    def close(self) -> None:
        """Stop reading ahead."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
            self._ahead.clear()
        for source in self._sources:
            source.shards.close()

    def _weights(self) -> list[int]:
        ratios, measured = [spec.ratio for spec in self.specs], [spec.by == "samples" for spec in self.specs]
        for i, source in enumerate(self._sources):
            if measured[i]:
                ratios[i] *= source.rows_per_sample() / self._sources[0].rows_per_sample()
        return integer_weights(ratios, measured)

    def _identity(self) -> dict[str, Any]:
        """All that the order of rows depends on."""
        return {
            "seed": self.seed,
            "pack_length": self.pack_length,
            "window": self.window,
            "lanes": self.lanes,
            "rows_per_step": self.rows_per_step,
            "weights": {spec.name: weight for spec, weight in zip(self.specs, self.mixture.weights, strict=True)},
            "fingerprints": {source.spec.name: source.shards.fingerprint for source in self._sources},
            "held_out": {spec.name: spec.held_out.digest for spec in self.specs if spec.held_out is not None},
        }

    def _read_task(self, task: int) -> list[list[Row] | SlmError]:
        """The steps of a task; what goes wrong is kept for the step that it belongs to."""
        found: list[list[Row] | SlmError] = []
        for step in range(task * self._steps_per_task, (task + 1) * self._steps_per_task):
            try:
                found.append(self._read(step))
            except SlmError as error:
                return found + [error] * (self._steps_per_task - len(found))
        return found

    def _read(self, step: int) -> list[Row]:
        if len(self._sources) == 1:
            return self._sources[0].rows(self.rows_of(step))
        located = [self.mixture.locate_row(row) for row in self.rows_of(step)]
        wanted: dict[int, list[int]] = {}
        for source, row in located:
            wanted.setdefault(source, []).append(row)
        found = {source: iter(self._sources[source].rows(rows)) for source, rows in wanted.items()}
        return [next(found[source]) for source, _ in located]


def _check_specs(specs: Sequence[SourceSpec]) -> None:
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise ConfigError(f"two sources have one name: {', '.join(names)}")
    unknown = [spec.by for spec in specs if spec.by not in BY]
    if unknown:
        raise ConfigError(f"by: expected one of {', '.join(BY)}, got {unknown[0]!r}")
