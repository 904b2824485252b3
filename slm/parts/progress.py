"""Progress of a job: a rich bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger(__name__)


def tokens_a_second(tokens: int, seconds: float) -> str:
    """`1.25 Mtok/s`."""
    return f"{tokens / seconds / 1e6:.2f} Mtok/s"


class BuildProgress:
    """How many rows are done, how fast, and the time that is left.

    Args:
        name: of what is built.
        total: rows to go through, None where nobody knows.
        row: what a row is called.
        rate: (what the rows held, seconds) -> how fast that is, in words.
        every_s: seconds between two plain lines.
        console: where the bar is drawn (default: standard error).

    Attributes:
        rows: done.
        held: what they held: tokens, or milliseconds of audio.
    """

    def __init__(
        self, name: str, total: int | None, *, row: str = "example",
        rate: Callable[[int, float], str] = tokens_a_second, every_s: float = 10.0, console: Console | None = None,
    ) -> None:  # fmt: skip
        self.name, self.total, self.every_s = name, total, every_s
        self._row, self._rate = row, rate
        self.began = self._last = time.monotonic()
        self.rows = self.held = 0
        console = console or Console(file=sys.stderr)
        self._bar = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console,
            )  # fmt: skip
            self._task = self._bar.add_task(name, total=total, rate="")
            self._bar.start()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self.began

    def update(self, rows: int, held: int) -> None:
        """Show how far it is: both counts from the beginning."""
        self.rows, self.held = rows, held
        seconds = max(self.seconds, 1e-9)
        rate = self._rate(held, seconds)
        if self._bar is not None:
            self._bar.update(self._task, completed=rows, rate=rate)
        elif time.monotonic() - self._last >= self.every_s:
            self._last = time.monotonic()
            left = f"  left {seconds / rows * (self.total - rows):.0f} s" if self.total and rows else ""
            of = f"/{self.total}" if self.total else ""
            per_second = f"{rows / seconds:.0f} {self._row}s/s"
            log.info("%s: %s %d%s  %s  %s%s", self.name, self._row, rows, of, per_second, rate, left)

    def add(self, rows: int, held: int) -> None:
        """Show what was done since the last call."""
        self.update(self.rows + rows, self.held + held)

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
