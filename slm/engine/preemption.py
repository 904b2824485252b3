"""Stopping by agreement.

A signal only sets a flag. The flags of all ranks travel with the count of supervised tokens that
is summed every step anyway, so all ranks save and leave at the same step. A file `STOP` in the run
folder does the same; that is how a batch script or the pipeline asks (the deepspeed launcher
delivers SIGTERM to one rank at a time, and dies of SIGUSR1).
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

STOP_FILE = "STOP"
NONE, PREEMPT, INTERRUPT = 0, 1, 2


class StopRequest:
    """What this rank has been asked: nothing, stop and come back (85), or stop (130).

    Attributes:
        value: NONE, PREEMPT or INTERRUPT.
    """

    def __init__(self, folder: Path, *, watch_file: bool) -> None:
        self.value = NONE
        self._file = folder / STOP_FILE if watch_file else None

    def check(self) -> int:
        """The request so far; looks for the file too."""
        if self._file is not None and self._file.exists():
            asked = self._file.read_text().strip()
            self.value = max(self.value, INTERRUPT if asked == "interrupt" else PREEMPT)
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


@contextmanager
def stop_request(folder: Path, *, watch_file: bool) -> Iterator[StopRequest]:
    """Catch SIGTERM, SIGUSR1 and SIGINT for the length of the block."""
    request = StopRequest(folder, watch_file=watch_file)
    request.clear_file()
    caught = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, request._on_signal) for number in caught}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
