"""Progress of a build: a rich bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger(__name__)


class BuildProgress:
    """Examples, tokens a second and the time that is left.

    Args:
        name: of what is built.
        total: examples to go through, None where nobody knows.
        every_s: seconds between two plain lines.
        console: where the bar is drawn (default: standard error).
    """

    def __init__(self, name: str, total: int | None, *, every_s: float = 10.0, console: Console | None = None) -> None:
        self.name, self.total, self.every_s = name, total, every_s
        self.began = self._last = time.monotonic()
        self.examples = self.tokens = 0
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

    def update(self, examples: int, tokens: int) -> None:
        """Show how far it is: both counts from the beginning."""
        self.examples, self.tokens = examples, tokens
        seconds = max(self.seconds, 1e-9)
        rate = f"{tokens / seconds / 1e6:.2f} Mtok/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=examples, rate=rate)
        elif time.monotonic() - self._last >= self.every_s:
            self._last = time.monotonic()
            left = f"  left {seconds / examples * (self.total - examples):.0f} s" if self.total and examples else ""
            of = f"/{self.total}" if self.total else ""
            log.info("%s: example %d%s  %.0f examples/s  %s%s", self.name, examples, of, examples / seconds, rate, left)

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
