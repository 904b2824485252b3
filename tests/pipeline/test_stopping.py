"""What must not be lost: steps whose command dies before its ranks, broken terminals, saves that fail."""

from __future__ import annotations

import io
import signal
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from slm.config.base import Job
from slm.errors import PreemptedError, SlmError
from slm.pipeline.child import StepError
from slm.pipeline.lock import RunLock, processes
from slm.pipeline.run import run_pipeline
from slm.pipeline.signals import StopSignals

ROOT = str(Path(__file__).parents[2])
WAITS = """
import pathlib, sys, time
sys.path.insert(0, {root!r})
from slm.artifact import write_status
out = pathlib.Path({out!r})
while not (out / "STOP").exists(): time.sleep(0.05)
{then}
"""
"""A train step that does something once it is asked to stop."""


def waits(out: Path, then: str) -> str:
    return WAITS.format(root=ROOT, out=str(out), then=then)


def press(number: int, when: Path) -> None:
    """Raise a signal here, once the file `when` is there."""

    def send() -> None:
        deadline = time.monotonic() + 60
        while not when.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        signal.raise_signal(number)

    threading.Thread(target=send).start()


def launched(inner: str) -> str:
    """A launcher that is killed while what it has started goes on."""
    start = f"subprocess.Popen([sys.executable, '-c', {inner!r}])"
    return f"import os, signal, subprocess, sys; {start}; os.kill(os.getpid(), signal.SIGKILL)"


def test_ranks_that_outlive_their_launcher_are_waited_for(make_plan, tmp_path, screen):
    out = tmp_path / "run" / "a"
    inner = f"import time, pathlib; time.sleep(1.5); o = pathlib.Path({str(out)!r}); o.mkdir(); (o / 'saved').touch()"
    with pytest.raises(StepError, match="killed by signal 9"):
        run_pipeline(make_plan({"a": {"kind": "train", "code": launched(inner)}}), screen)
    assert (out / "saved").exists()


def test_ranks_that_go_on_for_ever_without_their_launcher_are_ended(make_plan, screen, monkeypatch):
    monkeypatch.setattr("slm.pipeline.child.LINGER_S", 0.5)
    tokens = []
    monkeypatch.setattr("slm.pipeline.run.RunLock", lambda run: tokens.append(RunLock(run)) or tokens[-1])
    with pytest.raises(StepError, match="killed by signal 9"):
        run_pipeline(make_plan({"a": {"kind": "train", "code": launched("import time; time.sleep(60)")}}), screen)
    assert processes(tokens[0].token) == []


def test_a_step_that_hangs_after_it_has_made_everything_is_done(make_plan, screen, monkeypatch):
    monkeypatch.setattr("slm.pipeline.child.FAREWELL_S", 5.0)
    hangs = "import atexit; from slm.artifact import write_status; atexit.register(time.sleep, 60)"
    hangs += "; write_status(out, 'done')"
    plan = make_plan({"a": {"kind": "train", "extra": hangs}})
    began = time.monotonic()
    assert run_pipeline(plan, screen).made == ("a",)
    assert time.monotonic() - began < 30


class Closed(io.StringIO):
    """A terminal that goes away after its first line."""

    def write(self, text: str) -> int:
        if self.tell():
            raise OSError(5, "Input/output error")
        return super().write(text)


@pytest.fixture
def hangs_up():
    """Whoever runs the tests may do so under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangs_up")
def test_a_terminal_that_is_closed_ends_nothing_before_it_has_saved(make_plan, tmp_path):
    out = tmp_path / "run" / "a"
    plan = make_plan({"a": {"kind": "train", "code": waits(out, "(out / 'saved').touch()")}})
    press(signal.SIGHUP, tmp_path / "run" / "logs" / "a.log")
    with pytest.raises(PreemptedError, match="nothing is lost"):
        run_pipeline(plan, Console(file=Closed(), width=80))
    assert (out / "saved").exists()


def test_an_error_of_the_pipeline_itself_lets_its_steps_save(make_plan, tmp_path, screen, monkeypatch):
    out = tmp_path / "run" / "a"
    plan = make_plan({"a": {"kind": "train", "code": waits(out, "time.sleep(1); (out / 'saved').touch()")}})

    def broken(*_):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr("slm.pipeline.view.View.tick", broken)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run_pipeline(plan, screen)
    assert (out / "saved").exists()


def test_a_save_that_fails_is_not_reported_as_a_good_stop(make_plan, tmp_path, screen):
    out = tmp_path / "run" / "a"
    fails = "write_status(out, 'failed', exit_code=4, step=7, reason='disk full'); sys.exit(4)"
    press(signal.SIGTERM, tmp_path / "run" / "logs" / "a.log")
    with pytest.raises(StepError, match=r"disk full \(rank 0, step 7") as caught:
        run_pipeline(make_plan({"a": {"kind": "train", "code": waits(out, fails)}}), screen)
    assert caught.value.exit_code == 4


def test_a_hangup_that_was_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.count == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_only_ctrl_c_hurries_a_stop():
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert (signals.count, signals.at_once) == (2, False)
        signal.raise_signal(signal.SIGINT)
        assert signals.at_once


def test_an_input_that_can_not_be_read_moves_nothing_away(make_plan, screen, monkeypatch):
    plan = make_plan({"a": {}, "b": {"kind": "train", "needs": ["a"]}})
    run_pipeline(plan, screen)
    read = Job.fingerprints

    def unreachable(self):
        if self.out.endswith("/b"):
            raise SlmError("the disk is not mounted")
        return read(self)

    monkeypatch.setattr("slm.config.base.Job.fingerprints", unreachable)
    with pytest.raises(SlmError, match="not mounted"):
        run_pipeline(plan, screen)
    assert (plan.folder / "b" / "result.txt").exists() and not (plan.folder / "superseded").exists()
