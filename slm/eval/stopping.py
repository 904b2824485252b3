"""Being asked to stop in the middle of an evaluation: SIGTERM as an exception that is not lost."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

AGAIN_S = 0.05
"""Seconds until an exception that was lost is raised again."""


class Stopped(BaseException):
    """SIGTERM came. No `Exception`: logging would swallow one that is raised while it writes a line."""


@dataclass
class _Request:
    held: bool = False
    asked: bool = False


_request = _Request()


@contextmanager
def stopping() -> Iterator[None]:
    """Raise `Stopped` in the main thread, once, when SIGTERM comes, for the length of the block.

    Python drops what is raised while it finalises an object (`__del__`, weak references' callbacks) and goes on, and
    a signal's handler may run there as anywhere. The signal is sent once more then, so the work does stop.
    """
    again: list[threading.Timer] = []
    over = False

    def stop(signum: int, frame: object) -> None:
        if over:
            return
        if _request.held:
            _request.asked = True
            return
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is put in order now must not be cut short
        raise Stopped

    def dropped(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, Stopped):
            hook(unraisable)
            return
        signal.signal(signal.SIGTERM, stop)
        again.append(threading.Timer(AGAIN_S, os.kill, (os.getpid(), signal.SIGTERM)))
        again[-1].daemon = True
        again[-1].start()

    hook = sys.unraisablehook
    before = signal.signal(signal.SIGTERM, stop)
    sys.unraisablehook = dropped
    _request.held = _request.asked = False
    try:
        yield
    finally:
        over = True
        for timer in again:
            timer.cancel()
            timer.join()
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)


@contextmanager
def held() -> Iterator[Callable[[], None]]:
    """For a block in which threads share locks with the main thread: an exception anywhere would leave one taken.

    Yields:
        To be called often: raises `Stopped` if SIGTERM came meanwhile. The end of the block does so too.
    """

    def look() -> None:
        if _request.asked:
            raise Stopped

    _request.held = True
    try:
        yield look
        look()
    finally:
        _request.held = False
