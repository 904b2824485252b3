"""Stopping by agreement.

A signal only sets a flag. The flags of all ranks travel with the count of supervised tokens that
is summed every step anyway, so all ranks save and leave at the same step. A file `STOP` in the run
folder does the same; that is how a batch script or the pipeline asks (the deepspeed launcher
delivers SIGTERM to one rank at a time, and dies of SIGUSR1). So does a time limit that comes near, and the death of
DeepSpeed's launcher, which leaves its ranks behind.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

STOP_FILE = "STOP"
NONE, PREEMPT, INTERRUPT = 0, 1, 2
LAUNCHED = "CROSS_RANK"
"""A variable that DeepSpeed's launcher sets for its ranks, and nobody else."""
JOB_END = "SLURM_JOB_END_TIME"
"""Unix time at which SLURM will end the job, where it says so."""
SPARE_S = 60.0
"""Seconds that are kept free before a time limit, or a tenth of it, for the export of what is running and the exit."""


class StopRequest:
    """What this rank has been asked: nothing, stop and come back (85), or stop (130).

    Attributes:
        value: NONE, PREEMPT or INTERRUPT.
        save_s: how long the latest checkpoint took; the loop tells it.
    """

    def __init__(self, folder: Path, *, watch_file: bool, time_left_s: float | None = None) -> None:
        self.value, self.save_s = NONE, 0.0
        self._file = folder / STOP_FILE if watch_file else None
        spare = min(SPARE_S, max(0.0, 0.1 * time_left_s)) if time_left_s is not None else 0.0
        self._end = time.monotonic() + time_left_s - spare if time_left_s is not None else None
        self._launcher = os.getppid() if LAUNCHED in os.environ else None

    def check(self, step_s: float = 0.0) -> int:
        """The request so far; looks for the file, at the clock, and after the launcher too.

        Args:
            step_s: how long a step takes. A limit is near when two of them and two checkpoints no longer fit.
        """
        if self._file is not None and self._file.exists():
            asked = self._file.read_text().strip()
            self.value = max(self.value, INTERRUPT if asked == "interrupt" else PREEMPT)
        late = self._end is not None and time.monotonic() + 2 * (step_s + self.save_s) >= self._end
        if late or (self._launcher is not None and os.getppid() != self._launcher):
            self.value = max(self.value, PREEMPT)
        return self.value

    def clear_file(self) -> None:
        """Remove the file once it has been obeyed, or when a new run starts."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.value == INTERRUPT:
                sys.exit(130)  # the second Ctrl-C means now
            self.value = INTERRUPT
        else:
            self.value = max(self.value, PREEMPT)


def time_left(end: float | None, environment: Mapping[str, str]) -> float | None:
    """Seconds until the job is ended from outside: by the limit that was given, or else by SLURM's; None without.

    Args:
        end: of the limit, by `time.monotonic`.
    """
    if end is not None:
        return end - time.monotonic()
    slurms = environment.get(JOB_END, "")
    return float(slurms) - time.time() if slurms.isdigit() else None


@contextmanager
def stop_request(folder: Path, *, watch_file: bool, end: float | None = None) -> Iterator[StopRequest]:
    """Catch SIGTERM, SIGUSR1 and SIGINT for the length of the block.

    When an error leaves it, SIGTERM and SIGUSR1 stay without effect: launchers send them to the ranks that are left,
    which then still have to say what happened. The process ends soon, or SIGKILL follows.

    Args:
        watch_file: this rank looks for the file and at the clock: the main rank.
        end: see `time_left`.
    """
    left = time_left(end, os.environ) if watch_file else None
    request = StopRequest(folder, watch_file=watch_file, time_left_s=left)
    request.clear_file()
    caught = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, request._on_signal) for number in caught}
    try:
        yield request
    except BaseException:
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        raise
    for number, handler in before.items():
        signal.signal(number, handler)
