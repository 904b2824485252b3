"""Loss on held-out rows of every source while training."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from slm.config.stage import StageConfig
from slm.data.held_out import HeldOut, packed_documents, read_documents
from slm.data.loader import Row, SourceSpec
from slm.data.reader import DamageError, ShardSet
from slm.data.source import require_little_damage
from slm.engine.batch import MicroBatch, to_micro_batch
from slm.engine.distributed import Place, all_counts, all_sum, read_back, together

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Pass:
    """A forward pass; one that does not count only keeps this rank in step with the others."""

    batch: MicroBatch
    counts: bool


class HeldOutEvaluation:
    """The held-out rows of this rank, read once and kept.

    Rows are dealt to ranks one by one; every rank runs the same number of passes, for ZeRO-3 gathers
    weights in each. Sums are fp64, so the losses are those of any other number of ranks.

    Args:
        specs: sources, with what they hold out.
        micro_rows: rows of one pass.
        damaged: `error`, or `skip`: samples of damaged groups are left out and counted.
        max_damaged: share of a source's groups that may be skipped; one always may.

    Attributes:
        lost_samples: what was left out on any rank, per source and group.

    Raises:
        DataError: a held-out row is damaged, or too many are.
    """

    def __init__(
        self,
        specs: Sequence[SourceSpec],
        place: Place,
        *,
        capacity: int,
        micro_rows: int,
        damaged: str = "error",
        max_damaged: float = 0.01,
    ) -> None:
        self._place, self._names = place, [spec.name for spec in specs]
        rows = [
            (spec, spec.held_out, documents)
            for spec in specs
            if spec.held_out is not None
            for documents in packed_documents(spec.held_out, capacity)
        ]
        shards = {spec.name: ShardSet(spec.folder, damaged=damaged) for spec in specs}
        lost: list[tuple[str, int, DamageError]] = []

        def read(spec: SourceSpec, held: HeldOut, documents: list[int]) -> Row:
            left_out: dict[int, DamageError] | None = {} if damaged == "skip" else None
            row = Row(spec.name, *read_documents(shards[spec.name], held, documents, left_out))
            lost.extend((spec.name, int(held.groups[at]), damage) for at, damage in (left_out or {}).items())
            return row

        own: list[Row] = []
        # A rank beyond the rows keeps step with row 0.
        mine = rows[place.rank :: place.world_size] or rows[:1]
        together(lambda: own.extend(read(*row) for row in mine))
        counted = own if len(rows) > place.rank else []
        self.lost_samples = _count_lost(lost if counted else [], shards, max_damaged)
        most = -(-len(rows) // place.world_size)  # rows of rank 0
        self._passes = []
        for start in range(0, most, micro_rows):
            batch = counted[start : start + micro_rows]
            self._passes.append(_Pass(to_micro_batch(batch or own[:1]).to(place.device), bool(batch)))

    @classmethod
    def of_stage(cls, config: StageConfig, specs: Sequence[SourceSpec], place: Place) -> HeldOutEvaluation | None:
        """The evaluation of a stage over its loader's sources; None when the stage evaluates nothing."""
        if config.eval is None:
            return None
        return cls(
            specs,
            place,
            capacity=config.data.pack.length,
            micro_rows=config.batch.micro_rows,
            damaged=config.data.damaged,
            max_damaged=config.data.max_damaged,
        )

    def evaluate(self, engine: Any, mark: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Mean cross-entropy over the labels of each source, and the mean over sources. Collective.

        Args:
            mark: called before each pass: whoever watches this rank sees that it gets on.

        Returns:
            `eval_loss/<source>`, and `eval_loss`, in which every source counts the same.
        """
        sums, labels = dict.fromkeys(self._names, 0.0), dict.fromkeys(self._names, 0)
        engine.eval()
        try:
            with torch.no_grad():
                for one in self._passes:
                    mark()
                    batch = one.batch
                    _, losses = engine(
                        batch.input_ids, batch.position_ids, batch.lengths, batch.where, batch.labels, batch.rows
                    )
                    for source, value, count in zip(batch.sources, read_back(losses), batch.rows, strict=True):
                        sums[source] += value * one.counts
                        labels[source] += count * one.counts
        finally:
            engine.train()
        totals = all_sum([*sums.values(), *(float(count) for count in labels.values())], self._place.device)
        losses_of = {
            name: total / count
            for name, total, count in zip(self._names, totals, totals[len(self._names) :], strict=False)
            if count
        }
        mean = sum(losses_of.values()) / len(losses_of) if losses_of else float("nan")
        return {"eval_loss": mean, **{f"eval_loss/{name}": loss for name, loss in losses_of.items()}}


def _count_lost(
    own: Sequence[tuple[str, int, DamageError]], shards: dict[str, ShardSet], max_damaged: float
) -> dict[str, int]:
    """Samples that any rank left out, per source and group. Collective.

    Args:
        own: source, group and damage of each sample that this rank left out.

    Raises:
        DataError: on every rank, more of a source's groups are damaged than may be.
    """
    for damage in {str(damage): damage for _, _, damage in own}.values():
        log.warning("skipped, held out: %s (%s)", damage.what, damage.where)
    counts = all_counts(Counter(f"{name}: {shards[name].group_name(group)} (held out)" for name, group, _ in own))

    def check() -> None:
        for name, _, damage in own:
            groups = sum(key.startswith(f"{name}: ") for key in counts)
            require_little_damage(groups, shards[name].groups, max_damaged, damage)

    together(check)
    return dict(sorted(counts.items()))
