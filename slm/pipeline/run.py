"""Running a plan on this machine: what can be made is made, side by side where slots allow.

Nothing is remembered outside the artifacts and `pipeline.json`, so a run that was killed anywhere
continues: done steps stay done, begun train steps resume from their checkpoints.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console

from slm.errors import ConfigError, MachineError, PreemptedError, SlmError
from slm.pipeline.batch import refuse_while_queued
from slm.pipeline.child import EXPLAINED, Child, StepError, saved_steps
from slm.pipeline.graph import Plan, Step, state_of, states
from slm.pipeline.lock import RunLock
from slm.pipeline.record import Record
from slm.pipeline.recovery import Recovery
from slm.pipeline.signals import STOP_GRACE_S, StopSignals
from slm.pipeline.superseded import clear
from slm.pipeline.view import View, make_view

log = logging.getLogger(__name__)

POLL_S = 0.2


@dataclass(frozen=True)
class Outcome:
    """What a run did.

    Attributes:
        made: names of the steps that were made, in the order they ended.
        seconds: wall time.
    """

    made: tuple[str, ...]
    seconds: float


def run_pipeline(
    plan: Plan,
    console: Console,
    *,
    only: str | None = None,
    start: str | None = None,
    recovery: Recovery | None = None,
    time_limit_s: float | None = None,
) -> Outcome:
    """Make every step that is not done.

    Args:
        plan: what to make.
        console: where progress is shown.
        only: make this step alone; what it needs must be done.
        start: make this step and everything that comes from it again, done or not; not with `only`.
        recovery: what is done about train steps that lose a rank or a host; they are on this machine without it.
        time_limit_s: seconds until this process is ended from outside; it stops before, as it does by SIGTERM.

    Raises:
        ConfigError: no such step, both `only` and `start`, or a step that is needed is not done.
        SlmError: a step failed; the others were stopped, finished ones are kept.
        InterruptedRunError, PreemptedError: asked to stop by Ctrl-C, by SIGTERM.
        MachineError: another pipeline works in the run folder.
    """
    chosen = choose(plan, only=only, start=start)
    if start:
        _check_reachable(plan, start)
    with RunLock(plan.folder) as lock, StopSignals(time_limit_s) as signals:
        refuse_while_queued(plan)
        record = Record(plan)
        record.write()
        if start:
            for step in plan.steps:
                if step.name in chosen:
                    clear(step, record)
        run = _Run(plan, chosen, record, lock.token, console, signals, recovery or Recovery())
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


class _Run:
    """The state of one run: what runs now, what was made."""

    def __init__(
        self,
        plan: Plan,
        chosen: set[str],
        record: Record,
        token: str,
        console: Console,
        signals: StopSignals,
        recovery: Recovery,
    ) -> None:
        self.recovery = recovery
        self.restarts: dict[str, int] = {}
        self.reached: dict[str, int] = {}
        self.plan, self.chosen, self.record, self.token, self.signals = plan, chosen, record, token, signals
        self.number = {step.name: i for i, step in enumerate(plan.steps, 1)}
        self.done = {name for name, state in states(plan).items() if state.word == "done"}
        self.running: dict[str, Child] = {}
        self.made: list[str] = []
        self.killed: list[str] = []
        self.unsaved: SlmError | None = None
        self.asked = False
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
        """Whatever ends the run, no child outlives it, and each is asked to save first."""
        try:
            yield
        finally:
            if not self.asked:
                with contextlib.suppress(OSError, SlmError):
                    self._stop_all()
            left = list(self.running.values())
            for child in left:
                child.kill(grace_s=10.0)
            for child in left:
                with contextlib.suppress(OSError, SlmError):  # a full disk must not keep the others from being told
                    child.close()
                    self.recovery.clear(child.step)
                    self.record.end(child.step, child.seconds, "stopped")
            self.running.clear()
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
        identity = step.identity  # an input that can't be read is an error here, before anything is moved
        changed = state.word == "partial" and self.record.begun_identity(step.name) not in ("", identity)
        if step.kind == "train" and (state.word == "stale" or changed):
            why = "configuration or inputs changed" if changed else state.why
            aside = clear(step, self.record)
            self.view.note(f"{step.name}: {why}; it starts anew" + (f", the old one is {aside}" if aside else ""))
        self.record.begin(step)
        self.reached.setdefault(step.name, saved_steps(step) if step.kind == "train" else 0)
        step = self.recovery.start(step)
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
            self.signals.look_at_clock()
            if self.signals.count:
                self._stop_all()
                raise self._stopped()
            self.view.tick([(child, self.number[name]) for name, child in self.running.items()])
            time.sleep(POLL_S)

    def _take_in(self, child: Child, code: int) -> None:
        error = child.outcome(code)
        child.close()
        name = child.step.name
        word = "done" if error is None else ("preempted" if isinstance(error, PreemptedError) else "failed")
        self.record.end(child.step, child.seconds, word)
        if self.signals.count and error is not None:
            self._note_unsaved(child, error)
            self._stop_all()
            raise self._stopped()
        self.view.ended(child, self.number[name], error.what.splitlines()[0] if error else "")
        if error is not None:
            if isinstance(error, StepError) and error.may_succeed_again and self._starts_again(child, error):
                return
            self._stop_all()
            raise error
        self.done.add(name)
        self.made.append(name)

    def _starts_again(self, child: Child, error: StepError) -> bool:
        """Whether a train step that lost a rank is started again: so many times at most, never without progress.

        What is left of it is ended in any case. Why it is not started again is added to the error.
        """
        step, name = child.step, child.step.name
        self.recovery.clear(step)
        before, self.reached[name] = self.reached[name], child.reached()
        made = self.restarts.get(name, 0)
        if made >= self.recovery.most:
            error.what += f"\nstarted again {made} times already (--max-restarts {self.recovery.most})"
        elif self.reached[name] <= before:
            error.what += f"\nnot started again: this attempt did not get beyond step {before}"
        else:
            try:
                self.recovery.again(step)
            except MachineError as why:
                error.what, error.mend = f"{error.what}\nnot started again: {why.what}", why.mend
                return False
            self.restarts[name] = made + 1
            words = f"starts again from its newest checkpoint (restart {made + 1} of {self.recovery.most})"
            self.view.note(f"{name}: {words}")
            return True
        return False

    def _stop_all(self) -> None:
        """Ask what runs to stop, wait for it; a second Ctrl-C or the grace time ends it at once."""
        self.asked = True
        if not self.running:
            return
        for child in self.running.values():
            child.ask_to_stop()
        self.view.note("stopping: running steps save first (Ctrl-C again: at once)")
        end = time.monotonic() + STOP_GRACE_S
        while self.running and time.monotonic() < end and not self.signals.at_once:
            for name, child in list(self.running.items()):
                code = child.poll()
                if code is None:
                    child.ask_to_stop()
                else:
                    error = child.outcome(code)
                    self._note_unsaved(child, error)
                    child.close()
                    self.record.end(child.step, child.seconds, "stopped" if error else "done")
                    del self.running[name]
            time.sleep(POLL_S)
        for name, child in self.running.items():
            child.kill()
            self.recovery.clear(child.step)
            self.killed.append(name)

    def _note_unsaved(self, child: Child, error: SlmError | None) -> None:
        """A train step that was asked to save and says why it could not, is what the run ends with."""
        if child.step.kind == "train" and error is not None and error.exit_code in EXPLAINED:
            self.unsaved = self.unsaved or error

    def _stopped(self) -> SlmError:
        return self.unsaved or self.signals.error(self.killed)

    def _complain_if_blocked(self) -> None:
        if self.signals.count:
            raise self._stopped()
        left = [step for step in self.plan.steps if step.name in self.chosen and step.name not in self.done]
        if left:
            needs = [need for need in left[0].needs if need not in self.done]
            raise ConfigError(
                f"step '{left[0].name}' needs {', '.join(needs)}, not done yet",
                mend="run without --only, or make those first",
            )
