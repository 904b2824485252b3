"""Step the vocabulary tables together with what ZeRO holds: one gradient norm, one clipping, one step.

DeepSpeed's optimizer knows nothing of the tables. Its norm is completed by theirs, so both are clipped
by the same factor, and its `step` is followed by theirs; a step that it skips is skipped here too.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from slm.config.stage import OptimConfig
from slm.engine.tables import Table


class TableOptimizer:
    """AdamW over the tables' fp32 masters.

    Args:
        tables: this rank's.
        optim: rates and decays of the stage; vocabulary matrices have no weight decay.
    """

    def __init__(self, tables: list[Table], optim: OptimConfig) -> None:
        self.tables, self.clip = tables, optim.clip
        self.peak_lr = optim.vocabulary_lr or optim.lr
        self.adam = torch.optim.AdamW(
            [table.master for table in tables],
            lr=self.peak_lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=0.0,
            fused=True,
        )

    def squared_norm(self) -> Tensor:
        """Squared norm of the tables' gradients over all ranks, fp64. Collective."""
        total = torch.zeros((), dtype=torch.float64, device=self.tables[0].master.device)
        for table in self.tables:
            if table.grad is not None:
                total += torch.linalg.vector_norm(table.grad).double() ** 2
        dist.all_reduce(total)
        return total

    def step(self, norm: float, rate_factor: float) -> None:
        """One step at `rate_factor` of the peak rate, gradients clipped as a vector of that norm."""
        factor = max(1.0, (norm + 1e-6) / self.clip) if self.clip else 1.0
        for table in self.tables:
            table.master.grad = table.grad if factor == 1 or table.grad is None else table.grad.div_(factor)
        for group in self.adam.param_groups:
            group["lr"] = self.peak_lr * rate_factor
        self.adam.step()
        with torch.no_grad():
            for table in self.tables:
                if table.weight is not table.master:
                    table.weight.copy_(table.master)
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for table in self.tables:
            table.grad = table.master.grad = None

    def gathered(self) -> dict[str, Tensor]:
        """Parameter name -> whole fp32 matrix on the CPU of rank 0; empty elsewhere. Collective."""
        whole = {table.name: table.gathered() for table in self.tables}
        return {name: value for name, value in whole.items() if value is not None}


def join_optimizer(engine: Any, tables: TableOptimizer) -> None:
    """Make the engine's optimizer step include the tables."""
    zero = engine.optimizer
    engine.vocabulary_tables = tables
    if hasattr(zero, "_get_norm_groups"):  # ZeRO-3
        norms_of_zero = zero._get_norm_groups

        def norm_groups() -> list[Any]:
            return [*norms_of_zero(), tables.squared_norm().sqrt().float()]

        zero._get_norm_groups = norm_groups
    else:
        norm_of_zero = zero.scaled_global_norm

        def global_norm(*args: Any, **kwargs: Any) -> Any:
            return (norm_of_zero(*args, **kwargs) ** 2 + tables.squared_norm()).sqrt().float()

        zero.scaled_global_norm = global_norm
    step_of_zero = zero.step

    def step(closure: None = None) -> None:
        group = zero.param_groups[0]
        step_of_zero(closure)
        if zero.overflow:
            tables.zero_grad()
        else:
            tables.step(float(zero._global_grad_norm), group["lr"] / group["peak_lr"])

    zero.step = step
