"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from slm.config.stage import ScheduleConfig


def rate_factor(step: int, steps: int, schedule: ScheduleConfig) -> float:
    """Share of the peak learning rate at a step.

    Args:
        step: 0-based index of the optimizer step that is about to be taken.
        steps: optimizer steps of the run.

    Returns:
        Rises linearly over `warmup * steps`, then follows `kind` down to `floor` at the last step.
    """
    warm = round(schedule.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    if schedule.kind == "constant":
        return 1.0
    progress = (step - warm) / max(1, steps - 1 - warm)
    shape = 1 - progress if schedule.kind == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return schedule.floor + (1 - schedule.floor) * shape
