"""How a pipeline is asked to stop: by signals, and by a time limit that comes near."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from types import FrameType

from slm.errors import InterruptedRunError, PreemptedError, SlmError

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
STOP_GRACE_S = 1800.0
"""How long a step that was asked to stop may take to save, if Ctrl-C does not come again: large models take minutes."""
SPARE_S, SPARE = 120.0, 0.2
"""Time before a time limit that is kept free for that, and its share of a short limit."""


class StopSignals:
    """Counts Ctrl-C, SIGTERM, SIGUSR1 and a closed terminal instead of dying of them, while the block lasts.

    A closed terminal is passed over where it was before (`nohup`).

    Args:
        limit_s: seconds from now, when a time limit is met; what runs is asked to stop before, in time to save.

    Attributes:
        count: how often it was asked.
        at_once: Ctrl-C came after it was asked: nothing is waited for any more.
    """

    def __init__(self, limit_s: float | None = None) -> None:
        self.count = 0
        self.at_once = False
        self.number = signal.SIGINT
        spare = min(SPARE_S, SPARE * limit_s) if limit_s is not None else 0.0
        self._end = time.monotonic() + limit_s - spare if limit_s is not None else None

    def __enter__(self) -> StopSignals:
        heard = [n for n in STOPPING if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        self._before = {n: signal.signal(n, self._note) for n in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def look_at_clock(self) -> None:
        """A time limit that is near counts as one SIGTERM."""
        if self._end is not None and time.monotonic() >= self._end:
            self._end = None
            self._note(signal.SIGTERM, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.at_once = self.at_once or (self.count > 0 and number == signal.SIGINT)
        self.count += 1
        self.number = signal.Signals(number)

    def error(self, killed: Sequence[str] = ()) -> SlmError:
        """What stopping by these signals means for who called.

        Args:
            killed: steps that were ended before they could save.
        """
        kind = InterruptedRunError if self.number == signal.SIGINT else PreemptedError
        if killed:
            return kind(
                f"stopped at once; ended before it could save: {', '.join(killed)}",
                mend="run the same command again; training continues from its newest checkpoint, other steps anew",
            )
        return kind("stopped as asked; nothing is lost", mend="run the same command again; it continues")
