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
        loader: the data loader's own state.
        skipped: samples that were left out because their group is damaged, per source and group.
    """

    step: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    seconds: float = 0.0
    loader: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `state.json`."""
        return asdict(self)
