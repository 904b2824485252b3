"""What SLURM's queue says of a run's jobs."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from slm.cluster.slurm import squeue_argv

PATIENCE_S = 30.0
"""A controller under load answers late; a table without its word is better than none."""
GOING = ("RUNNING", "COMPLETING", "CONFIGURING", "STOPPED", "SUSPENDED")


class Queued(NamedTuple):
    """A job that waits or runs, with SLURM's own words for its state and for why it waits."""

    state: str
    reason: str

    @property
    def runs(self) -> bool:
        """Whether it has nodes."""
        return self.state in GOING

    def __str__(self) -> str:
        told = self.reason if self.reason not in ("", "None") else ""
        return self.state.lower() + (f" ({told})" if told else "")


def queued(ids: Sequence[str]) -> dict[str, Queued]:
    """Number -> state, of those that wait or run. Empty without squeue, or when it has forgotten all of them.

    An array is one number; it runs when one of its tasks does.
    """
    if not ids:
        return {}
    try:
        done = subprocess.run(squeue_argv(ids), capture_output=True, text=True, timeout=PATIENCE_S)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found: dict[str, Queued] = {}
    for line in done.stdout.splitlines() if done.returncode == 0 else []:
        number, state, reason = (*line.split(maxsplit=2), "", "")[:3]
        if number in ids and not (number in found and found[number].runs):
            found[number] = Queued(state, reason)
    return found
