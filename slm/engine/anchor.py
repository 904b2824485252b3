"""L2 to the previous stage on sharded weights: no gather, no communication but one number that is logged.

θ₀ is what the engine holds when it has been built and nothing has been resumed: the previous stage's
artifact, or the fresh start of a first stage. It is rebuilt so at every start and in no checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from slm.config.stage import AnchorConfig
from slm.engine.partitions import Partitions
from slm.engine.tables import Table, tables_of
from slm.errors import ConfigError
from slm.losses.anchor import add_penalty_gradient, compact, pull, squared_distance


class Anchor:
    """The penalty λ·Σ(θ−θ₀)² over this rank's pieces of the trained parameters.

    Args:
        engine: built, its checkpoint not loaded yet.

    Raises:
        ConfigError: optimizer states on NVMe, or no ZeRO.
    """

    def __init__(self, engine: Any, config: AnchorConfig) -> None:
        self._partitions = Partitions(engine)
        if getattr(self._partitions.zero, "swap_optimizer", False):
            raise ConfigError(
                "an anchor can't work on optimizer states that are on NVMe",
                where="anchor, and zero_optimization.offload_optimizer of the DeepSpeed JSON",
                mend="offload the optimizer to cpu",
            )
        self._coupled = config.mode == "coupled"
        loaded = torch.bfloat16 if engine.bfloat16_enabled() else torch.float32
        self._starts = {
            piece: (compact(self._partitions.value(piece), loaded), config.weight_of(piece.group))
            for piece in self._partitions.pieces
            if config.weight_of(piece.group) > 0
        }
        tables = tables_of(engine)
        self._tables = (
            _table_starts(tables.tables, config.weight_of("vocabulary"), loaded) if tables is not None else []
        )
        if not self._coupled:
            if self._tables:
                tables.adam.register_step_post_hook(self._pull_tables)
            inner = [self._partitions.zero.optimizer, getattr(self._partitions.zero, "backup_optimizer", None)]
            for optimizer in inner:
                if optimizer is not None:
                    optimizer.register_step_post_hook(self._pull)

    def penalty(self) -> float:
        """λ·Σ(θ−θ₀)² over this rank's pieces; summed over ranks it is the written loss."""
        total = torch.zeros((), dtype=torch.float64)
        for piece, (start, weight) in self._starts.items():
            total = total + weight * squared_distance(self._partitions.value(piece), start)
        for table, start, weight in self._tables:
            total = total + weight * squared_distance(_flat(table.master), start)
        return float(total)

    def add_gradients(self) -> None:
        """Coupled: add 2λ(θ−θ₀) to the accumulated gradients, once per optimizer step and before clipping.

        They are averages over ranks by now, each rank has pieces of its own: no factor of the world size.
        """
        if not self._coupled:
            return
        for piece, gradient in self._partitions.gradients():
            if piece in self._starts:
                start, weight = self._starts[piece]
                add_penalty_gradient(gradient, self._partitions.value(piece), start, weight)
                self._partitions.gradient_changed(piece, gradient)
        for table, start, weight in self._tables:
            if table.grad is None:
                table.grad = torch.zeros_like(table.master, requires_grad=False)
            add_penalty_gradient(_flat(table.grad), _flat(table.master), start, weight)

    @torch.no_grad()
    def _pull(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Decoupled: after a step of the inner optimizer, which ZeRO has pointed at the flat tensors to step."""
        flats = self._partitions.flats
        rates = {
            flat: group["lr"]
            for group in optimizer.param_groups
            for parameter in group["params"]
            for flat in range(len(flats))
            if flats[flat] is parameter
        }
        for piece, (start, weight) in self._starts.items():
            if piece.flat in rates:
                pull(self._partitions.value(piece), start, rates[piece.flat], weight)

    @torch.no_grad()
    def _pull_tables(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """The same for the vocabulary tables that are split over the ranks, which ZeRO does not hold."""
        for table, start, weight in self._tables:
            pull(_flat(table.master), start, optimizer.param_groups[0]["lr"], weight)


def _table_starts(tables: Sequence[Table], weight: float, loaded: torch.dtype) -> list[tuple[Table, Tensor, float]]:
    return [(table, compact(_flat(table.master), loaded), weight) for table in tables if weight > 0]


def _flat(matrix: Tensor) -> Tensor:
    return matrix.detach().view(-1)
