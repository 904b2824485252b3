"""What a person sees while a pipeline runs: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from slm.pipeline.child import METRICS, Child, last_record

EVERY_S = 10.0


@dataclass(frozen=True)
class Figures:
    """How far a step is: steps done of all (0 of 0 when unknown) and a few words."""

    done: int = 0
    total: int = 0
    words: str = ""


def figures_of(child: Child) -> Figures:
    """A train step's loss, tokens/s and time left; of others the newest line of the log."""
    if child.step.kind == "train":
        record = last_record(child.step.folder / METRICS)
        if record.get("steps"):
            return Figures(record["step"], record["steps"], describe(record))
    return Figures(words=child.last_line()[:70] or "starting")


def describe(record: dict[str, Any]) -> str:
    """The figures of a training step in a few words."""
    parts = [f"loss {float(record['loss']):.3f}"] if "loss" in record else []
    if "tokens_per_s" in record:
        parts.append(f"{float(record['tokens_per_s']):,.0f} tok/s")
    left = (record.get("steps", 0) - record.get("step", 0)) * float(record.get("step_s", 0))
    if left > 0:
        parts.append(f"{clock(left)} left")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """`75` as `1:15`."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


@contextlib.contextmanager
def to_nobody_too() -> Iterator[None]:
    """A terminal that was closed, or a pipe whose reader has gone, ends no run: rich answers with SystemExit."""
    with contextlib.suppress(OSError, SystemExit):
        yield


class View:
    """Plain lines: one when a step starts, one each ten seconds while it runs, one when it ends.

    Args:
        console: where to write.
        total: steps of the pipeline.
        done: steps that are done already.
    """

    def __init__(self, console: Console, total: int, done: int) -> None:
        self.console, self.total, self.done = console, total, done
        self._said: dict[str, float] = {}

    def started(self, child: Child, number: int) -> None:
        """A step's command was started."""
        self._said[child.step.name] = time.monotonic()
        self._print(f"[{number}/{self.total}] {child.step.name}: {child.step.kind} …")

    def tick(self, children: Sequence[tuple[Child, int]]) -> None:
        """Called several times a second with what runs."""
        now = time.monotonic()
        for child, number in children:
            if now - self._said[child.step.name] >= EVERY_S:
                self._said[child.step.name] = now
                figures = figures_of(child)
                steps = f"{figures.done}/{figures.total}  " if figures.total else ""
                self._print(
                    f"[{number}/{self.total}] {child.step.name}: {clock(child.seconds)}  {steps}{figures.words}"
                )

    def ended(self, child: Child, number: int, error: str = "") -> None:
        """A step's command ended."""
        words = "" if error else _closing_words(child)
        mark = "✗" if error else "✓"
        self.done += not error
        text = f"{mark} [{number}/{self.total}] {child.step.name:<14} {clock(child.seconds):>6}  {error or words}"
        self._print(text, "red" if error else "")

    def note(self, text: str) -> None:
        """A line of its own."""
        self._print(text)

    def close(self) -> None:
        """Nothing more is coming."""

    def _print(self, text: str, style: str = "") -> None:
        with to_nobody_too():
            self.console.print(escape(text), style=style or None, highlight=False, soft_wrap=True)


def _closing_words(child: Child) -> str:
    if child.step.kind != "train":
        return child.step.kind
    record = last_record(child.step.folder / METRICS)
    return f"train  {record['step']} steps  loss {float(record['loss']):.3f}" if "loss" in record else "train"


class LiveView(View):
    """On a terminal: a bar for the pipeline and one for each running step; finished steps scroll up above."""

    def __init__(self, console: Console, total: int, done: int) -> None:
        super().__init__(console, total, done)
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[words]}"),
            console=console,
            transient=True,
        )
        self._all = self._progress.add_task(
            "[bold]pipeline", total=total, completed=done, count=f"{done}/{total}", words=""
        )
        self._progress.start()

    def started(self, child: Child, number: int) -> None:
        name = child.step.name
        self._bars[name] = self._progress.add_task(
            f"{number:>2}. {escape(name)}", total=None, count="", words="starting"
        )

    def tick(self, children: Sequence[tuple[Child, int]]) -> None:
        for child, _ in children:
            figures = figures_of(child)
            count = f"{figures.done}/{figures.total}" if figures.total else ""
            self._progress.update(
                self._bars[child.step.name],
                total=figures.total or None,
                completed=figures.done,
                count=count,
                words=escape(figures.words),
            )

    def ended(self, child: Child, number: int, error: str = "") -> None:
        self._progress.remove_task(self._bars.pop(child.step.name))
        super().ended(child, number, error)
        self._progress.update(self._all, completed=self.done, count=f"{self.done}/{self.total}")

    def close(self) -> None:
        with to_nobody_too():
            self._progress.stop()


def make_view(console: Console, total: int, done: int) -> View:
    """The live view on a terminal, plain lines elsewhere."""
    return (LiveView if console.is_terminal else View)(console, total, done)
