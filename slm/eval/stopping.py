"""Being asked to stop in the middle of an evaluation: SIGTERM as an exception that is not lost."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

AGAIN_S = 0.05
"""Seconds until an exception that was lost is raised again."""


class Stopped(BaseException):
    """SIGTERM came. No `Exception`: logging would swallow one that is raised while it writes a line."""


@contextmanager
def stopping() -> Iterator[None]:
    """Raise `Stopped` in the main thread when SIGTERM comes, for the length of the block.

    Python drops what is raised while it finalises an object (`__del__`, weak references' callbacks) and goes on, and
    a signal's handler may run there as anywhere. The signal is sent once more then, so the work does stop.
    """
    again: list[threading.Timer] = []

    def stop(signum: int, frame: object) -> None:
        raise Stopped

    def dropped(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, Stopped):
            hook(unraisable)
            return
        again.append(threading.Timer(AGAIN_S, os.kill, (os.getpid(), signal.SIGTERM)))
        again[-1].daemon = True
        again[-1].start()

    hook = sys.unraisablehook
    before = signal.signal(signal.SIGTERM, stop)
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        for timer in again:
            timer.cancel()
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)
