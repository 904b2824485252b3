"""Steps whose loss or gradient is no finite number: no rank takes them, all count them, many in a row end the run.

A gradient that is not finite makes the gradient norm not finite, which ZeRO sums over ranks: it leaves out
the step on all of them by itself. A loss that is not finite can have a finite gradient (a label of
probability 0), so that gradient is spoilt on purpose (`Partitions.spoil_gradients`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from slm.engine.state import TrainState
from slm.errors import DivergedError

log = logging.getLogger(__name__)


def count_step(state: TrainState, applied: bool, *, tell: bool) -> None:
    """Count a step that was skipped; the same on all ranks, for the norm is. One of them tells."""
    state.skipped_in_a_row = 0 if applied else state.skipped_in_a_row + 1
    state.skipped += not applied
    if not applied and tell:
        log.warning("step %d skipped: its loss or gradient is not finite", state.step)


def require_progress(state: TrainState, most: int, last_good: Callable[[int], Path | None], where: str) -> None:
    """End a run whose latest `most` steps were all skipped.

    Args:
        last_good: the newest checkpoint of at most so many steps.

    Raises:
        DivergedError: names that checkpoint.
    """
    if state.skipped_in_a_row < most:
        return
    good = last_good(state.step - state.skipped_in_a_row)
    raise DivergedError(
        f"{state.skipped_in_a_row} steps in a row, up to step {state.step}, had a loss or gradient that is not finite",
        where=where,
        mend="lower optim.lr, raise schedule.warmup or look at the data of these steps; "
        + (f"the last good checkpoint is {good}" if good is not None else "there is no checkpoint from before them"),
    )
