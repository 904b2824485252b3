"""Where a run stands: everything that is neither weights nor optimizer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class TrainState:
    """Counters of a run; the same on all ranks.

    Attributes:
        step: optimizer steps taken.
        tokens: tokens seen, all ranks and sources.
        supervised_tokens: labels among them.
        seconds: wall time spent in steps, over all restarts.
        skipped: steps whose loss or gradient was no finite number; they changed no weight.
        skipped_in_a_row: how many of them are the latest ones.
        best_loss, best_step: lowest held-out loss so far, and the step it was met at; None before the first.
        loader: the data loader's own state.
        lost_samples: samples that were left out because their group is damaged, per source and group.
    """

    step: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    loader: dict[str, Any] = field(default_factory=dict)
    lost_samples: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `state.json`."""
        return asdict(self)
