"""Running a plan on this machine: what can be made is made, side by side where slots allow.

Nothing is remembered outside the artifacts and `pipeline.json`, so a run that was killed anywhere
continues: done steps stay done, begun train steps resume from their checkpoints.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from rich.console import Console

from slm.artifact import remove
from slm.errors import ConfigError, InterruptedRunError, PreemptedError, SlmError
from slm.pipeline.child import Child
from slm.pipeline.graph import Plan, Step, state_of, states
from slm.pipeline.lock import RunLock
from slm.pipeline.record import Record
from slm.pipeline.view import View, make_view

log = logging.getLogger(__name__)

POLL_S = 0.2
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_GRACE_S = 120.0
"""How long a step that was asked to stop may take to save."""


@dataclass(frozen=True)
class Outcome:
    """What a run did.

    Attributes:
        made: names of the steps that were made, in the order they ended.
        seconds: wall time.
    """

    made: tuple[str, ...]
    seconds: float


def run_pipeline(plan: Plan, console: Console, *, only: str | None = None, start: str | None = None) -> Outcome:
    """Make every step that is not done.

    Args:
        plan: what to make.
        console: where progress is shown.
        only: make this step alone; what it needs must be done.
        start: make this step and everything that comes from it again, done or not; not with `only`.

    Raises:
        ConfigError: no such step, both `only` and `start`, or a step that is needed is not done.
        SlmError: a step failed; the others were stopped, finished ones are kept.
        InterruptedRunError, PreemptedError: asked to stop by Ctrl-C, by SIGTERM.
        MachineError: another pipeline works in the run folder.
    """
    chosen = choose(plan, only=only, start=start)
    if start:
        _check_reachable(plan, start)
    with RunLock(plan.folder) as lock, _Signals() as signals:
        record = Record(plan)
        record.write()
        if start:
            for step in plan.steps:
                if step.name in chosen:
                    _remove(step, record)
        run = _Run(plan, chosen, record, lock.token, console, signals)
        return run.loop()


def choose(plan: Plan, *, only: str | None = None, start: str | None = None) -> set[str]:
    """Names of the steps that a run with these options is about.

    Raises:
        ConfigError: no such step, or both options.
    """
    if only and start:
        # --from removes what it makes again: with --only, all but one of the removed would stay away
        raise ConfigError("--only and --from exclude each other", mend="give one of them")
    if only:
        return {plan.step(only).name}
    return plan.below(start) if start else {step.name for step in plan.steps}


def _check_reachable(plan: Plan, start: str) -> None:
    """All that `start` is made from must be done.

    Raises:
        ConfigError: a step before it is not.
    """
    found = states(plan)
    unmade = [step.name for step in plan.steps if step.name in _above(plan, start) and found[step.name].word != "done"]
    if unmade:
        raise ConfigError(f"'{start}' needs steps that are not done: {', '.join(unmade)}", mend="run without --from")


def _above(plan: Plan, name: str) -> set[str]:
    found = set(plan.step(name).needs)
    for step in reversed(plan.steps):
        if step.name in found:
            found |= set(step.needs)
    return found


def _remove(step: Step, record: Record) -> None:
    remove(step.folder)
    record.forget(step)


class _Signals:
    """Counts Ctrl-C, SIGTERM and a closed terminal instead of dying of them, while the block lasts."""

    def __init__(self) -> None:
        self.count = 0
        self.number = signal.SIGINT

    def __enter__(self) -> _Signals:
        self._before = {n: signal.signal(n, self._note) for n in STOPPING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
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


class _Run:
    """The state of one run: what runs now, what was made."""

    def __init__(
        self, plan: Plan, chosen: set[str], record: Record, token: str, console: Console, signals: _Signals
    ) -> None:
        self.plan, self.chosen, self.record, self.token, self.signals = plan, chosen, record, token, signals
        self.number = {step.name: i for i, step in enumerate(plan.steps, 1)}
        self.done = {name for name, state in states(plan).items() if state.word == "done"}
        self.running: dict[str, Child] = {}
        self.made: list[str] = []
        self.killed: list[str] = []
        self.view: View = make_view(console, len(plan.steps), len(self.done))

    def loop(self) -> Outcome:
        began = time.monotonic()
        with self._closing():
            while True:
                self._start_ready()
                if not self.running:
                    break
                self._wait()
        self._complain_if_blocked()
        return Outcome(tuple(self.made), time.monotonic() - began)

    @contextmanager
    def _closing(self) -> Iterator[None]:
        """Whatever ends the run, no child outlives it."""
        try:
            yield
        finally:
            for name, child in list(self.running.items()):
                child.kill(grace_s=10.0)
                child.close()
                self.record.end(child.step, child.seconds, "stopped")
                del self.running[name]
            self.view.close()

    def _start_ready(self) -> None:
        for step in self.plan.steps:
            if self.signals.count:
                return
            free = self.plan.slots - sum(child.step.slots for child in self.running.values())
            waiting = step.name in self.chosen and step.name not in self.done and step.name not in self.running
            if waiting and set(step.needs) <= self.done and step.slots <= max(free, 0):
                self._start(step)

    def _start(self, step: Step) -> None:
        state = state_of(step)
        if state.word == "done":  # an input was made again and came out the same
            self.done.add(step.name)
            return
        changed = state.word == "partial" and self.record.begun_identity(step.name) not in ("", step.identity)
        if step.kind == "train" and (state.word == "stale" or changed):
            why = "configuration or inputs changed" if changed else state.why
            self.view.note(f"{step.name}: {why}; it starts anew")
            _remove(step, self.record)
        self.record.begin(step)
        child = Child(step, self.plan.folder / "logs" / f"{step.name}.log", self.token)
        self.running[step.name] = child
        self.view.started(child, self.number[step.name])

    def _wait(self) -> None:
        """Until a step ends; then take it in."""
        while True:
            for name, child in self.running.items():
                code = child.poll()
                if code is not None:
                    del self.running[name]
                    self._take_in(child, code)
                    return
            if self.signals.count:
                self._stop_all()
                raise self.signals.error(self.killed)
            self.view.tick([(child, self.number[name]) for name, child in self.running.items()])
            time.sleep(POLL_S)

    def _take_in(self, child: Child, code: int) -> None:
        error = child.outcome(code)
        child.close()
        name = child.step.name
        word = "done" if error is None else ("preempted" if isinstance(error, PreemptedError) else "failed")
        self.record.end(child.step, child.seconds, word)
        if self.signals.count and error is not None:
            self._stop_all()
            raise self.signals.error(self.killed)
        self.view.ended(child, self.number[name], error.what.splitlines()[0] if error else "")
        if error is not None:
            self._stop_all()
            raise error
        self.done.add(name)
        self.made.append(name)

    def _stop_all(self) -> None:
        """Ask what runs to stop, wait for it; a second Ctrl-C or the grace time ends it at once."""
        if not self.running:
            return
        asked = self.signals.count
        self.view.note("stopping: running steps save first (Ctrl-C again: at once)")
        end = time.monotonic() + STOP_GRACE_S
        while self.running and time.monotonic() < end and self.signals.count <= max(asked, 1):
            for name, child in list(self.running.items()):
                code = child.poll()
                if code is None:
                    child.ask_to_stop()
                else:
                    done = child.outcome(code) is None
                    child.close()
                    self.record.end(child.step, child.seconds, "done" if done else "stopped")
                    del self.running[name]
            time.sleep(POLL_S)
        for name, child in self.running.items():
            child.kill()
            self.killed.append(name)

    def _complain_if_blocked(self) -> None:
        if self.signals.count:
            raise self.signals.error(self.killed)
        left = [step for step in self.plan.steps if step.name in self.chosen and step.name not in self.done]
        if left:
            needs = [need for need in left[0].needs if need not in self.done]
            raise ConfigError(
                f"step '{left[0].name}' needs {', '.join(needs)}, not done yet",
                mend="run without --only, or make those first",
            )
