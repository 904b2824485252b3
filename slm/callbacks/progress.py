"""Progress of a stage: a rich bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from slm.callbacks.callback import Callback

log = logging.getLogger(__name__)


def describe(record: dict[str, Any]) -> str:
    """The figures of a step in a few words: loss, tokens/s (supervised), MFU, waiting for data, learning rate."""
    parts = []
    if "loss" in record:
        parts.append(f"loss {float(record['loss']):.3f}")
    if "tokens_per_s" in record:
        labels = f" ({float(record['supervised_tokens_per_s']):,.0f})" if "supervised_tokens_per_s" in record else ""
        parts.append(f"{float(record['tokens_per_s']):,.0f}{labels} tok/s")
    if "mfu" in record:
        parts.append(f"mfu {float(record['mfu']):.0%}")
    if record.get("data_wait", 0) >= 0.05:
        parts.append(f"waits {float(record['data_wait']):.0%}")
    if "lr" in record:
        parts.append(f"lr {float(record['lr']):.1e}")
    return "  ".join(parts)


class ProgressBar(Callback):
    """A bar with loss, tokens/s and the time that is left.

    Not on a terminal: one line every `every_s` seconds or every tenth of the steps, whichever
    comes first.

    Args:
        every_s: seconds between two plain lines.
        console: where the bar is drawn (default: standard error).
    """

    def __init__(self, every_s: float = 10.0, console: Console | None = None) -> None:
        self.every_s = every_s
        self.console = console or Console(file=sys.stderr)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._steps = self._first = 0
        self._began = self._last_time = 0.0
        self._last_step = 0

    def on_start(self, info: dict[str, Any]) -> None:
        self._steps, self._first = info["steps"], info["step"]
        self._began = self._last_time = time.monotonic()
        self._last_step = self._first
        name = info.get("name", "train")
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._bar.add_task(name, total=self._steps, completed=self._first, figures="")
            self._bar.start()
        else:
            log.info("%s: %d of %d steps done", name, self._first, self._steps)

    def on_step(self, record: dict[str, Any]) -> None:
        step = record["step"]
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, figures=describe(record))
            return
        now = time.monotonic()
        tenth = max(1, self._steps // 10)
        if now - self._last_time >= self.every_s or step - self._last_step >= tenth or step == self._steps:
            self._last_time, self._last_step = now, step
            left = (now - self._began) / max(1, step - self._first) * (self._steps - step)
            log.info("step %d/%d  %s  left %.0f s", step, self._steps, describe(record), left)

    def on_save(self, info: dict[str, Any]) -> None:
        log.info("checkpoint at step %s: %s", info.get("step"), info.get("path", ""))

    def on_end(self, info: dict[str, Any]) -> None:
        self._stop()

    def on_error(self, error: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
