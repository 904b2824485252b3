"""One running step: its process in a session of its own, its log, and how it is asked to stop."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from slm.artifact import STATUS, find_manifest, is_current, read_status
from slm.cluster.environment import without_forwarded
from slm.config.base import input_fingerprints
from slm.errors import MachineError, PreemptedError, SlmError, from_os_error
from slm.pipeline import commands
from slm.pipeline.graph import Step
from slm.pipeline.lock import TOKEN, end_processes, processes
from slm.pipeline.planner import ROOT
from slm.pipeline.signals import STOP_GRACE_S

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
EXPLAINED = (2, 3, 4, 5, 6)
"""Exit codes of a train step that says itself what is wrong: configuration, data, machine, divergence, checkpoint."""
STOP = "STOP"
"""A file of this name in a train step's folder makes its ranks save at the next step boundary and end."""

LINGER_S = 6.0
"""How long a step may go on after it has said that it failed, or one of its hosts has: launchers wait for ever for
a stopped process, and pdsh for a host that does not answer. So long may its processes outlive its command, too."""

FAREWELL_S = 600.0
"""How long a train step that has all it was to make may go on: a tracker may still send what it has."""

FIRST_PORT, PORTS = 15_000, 5_000
_START = int.from_bytes(os.urandom(4), "little")
_taken = itertools.count()
"""Two steps of this process that start at the same time are not given the same port."""

_HOST_ENDED = re.compile(r"^pdsh@\S*: (\S+): ssh exited with exit code (\d+)", re.MULTILINE)
_CLOCK = re.compile(r"^\d\d:\d\d:\d\d ")
_ERROR = re.compile(r"(?:[\w.-]+: )?error: ")
_LAUNCHER_NOISE = re.compile(
    r"\[(launch|runner|multinode_runner)\.py:\d+:|^\s*$|exits with return code|Killing subprocess"
)


class Child:
    """A step that runs.

    The process leads its own session, so a Ctrl-C on the terminal reaches the pipeline alone, which
    then asks the step to stop in the way that loses nothing.

    Args:
        step: what is made.
        log: file that gets all its output, appended.
        token: marks the process and its descendants as this pipeline's.
    """

    def __init__(self, step: Step, log: Path, token: str) -> None:
        self.step, self.log, self.token = step, log, f"{token}.{step.name}."
        self.began = time.monotonic()
        self._asked, self._over_since, self._ended_at = False, 0.0, 0.0
        self._status_before = self._status_stamp()
        (step.folder / STOP).unlink(missing_ok=True)
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            self._output = open(log, "a")  # noqa: SIM115  (closed in `close`, when the process has ended)
        except OSError as error:
            raise from_os_error(error, f"opening {log}") from error
        self._offset = self._output.tell()
        self._output.write(f"$ {commands.shown(step.argv, step.environment)}\n")
        self._output.flush()
        own = without_forwarded(os.environ) if "--hostfile" in step.argv else os.environ
        environment = {**own, **step.environment, TOKEN: self.token, "PYTHONUNBUFFERED": "1"}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        argv = executable(step.argv)
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise MachineError(f"can't start step '{step.name}': {error}", where=argv[0]) from error

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.began

    def poll(self) -> int | None:
        """The exit code, None while it runs, or what it has started does. What only lingers is ended."""
        code = self._process.poll()
        if code is None and self._lingers():
            self.kill()
            code = self._process.poll()
        return None if code is None or self._is_survived() else code

    def _is_survived(self) -> bool:
        """Whether processes of the ended command still run: a launcher may die before its ranks have saved."""
        self._ended_at = self._ended_at or time.monotonic()
        if not processes(self.token):
            return False
        if time.monotonic() - self._ended_at < (STOP_GRACE_S if self._asked else LINGER_S):
            return True
        end_processes(self.token, 1.0)
        return False

    def _lingers(self) -> bool:
        """Whether a train step has ended some time ago, by its own word or by that of a host's ssh."""
        if self.step.kind != "train":
            return False
        state = self._status().get("state", "running")
        if state == "failed" or (state == "running" and self._ended_host() is not None):
            patience = LINGER_S
        elif state in ("done", "preempted"):
            patience = FAREWELL_S
        else:
            self._over_since = 0.0
            return False
        self._over_since = self._over_since or time.monotonic()
        return time.monotonic() - self._over_since > patience

    def _ended_host(self) -> tuple[str, int] | None:
        """The first host whose ranks ended with an error, and ssh's exit code; None without one, and without pdsh."""
        if "--hostfile" not in self.step.argv:
            return None
        found = _HOST_ENDED.search("\n".join(self._tail(1 << 14)))
        return (found[1], int(found[2])) if found is not None else None

    def ask_to_stop(self) -> None:
        """Train steps: the STOP file (a signal would end one rank before the other); others: Ctrl-C.

        Called again and again while waiting: ranks that are still starting clear an old STOP first.
        """
        if self.step.kind == "train":
            try:
                self.step.folder.mkdir(parents=True, exist_ok=True)
                (self.step.folder / STOP).touch()
            except OSError as error:
                log.warning("%s can't be asked to save: %s", self.step.name, error)
        elif not self._asked:
            self._signal(signal.SIGINT)
        self._asked = True

    def kill(self, grace_s: float = 0.0) -> None:
        """End the process and its descendants; asked by SIGTERM first when `grace_s` is not 0."""
        if grace_s:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        self._signal(signal.SIGKILL)
        end_processes(self.token, 1.0)
        self._process.wait()

    def close(self) -> None:
        """Close the log; forget a STOP that was not needed."""
        self._output.close()
        (self.step.folder / STOP).unlink(missing_ok=True)

    def last_line(self) -> str:
        """The newest line that the step itself wrote into its log, without its time of day; empty before the first."""
        lines = [line for line in self._tail(4096) if not line.startswith("$ ") and not _LAUNCHER_NOISE.search(line)]
        return _CLOCK.sub("", lines[-1].strip()) if lines else ""

    def last_lines(self, count: int = 15) -> str:
        """From the last `error:` on, or else the last lines, launcher chatter left out."""
        lines = [line for line in self._tail(1 << 16) if not _LAUNCHER_NOISE.search(line)]
        starts = [i for i, line in enumerate(lines) if _ERROR.match(line)]
        chosen = lines[starts[-1] :][:count] if starts else lines[-count:]
        return "\n".join(f"  | {line.rstrip()}" for line in chosen)

    def _tail(self, size: int) -> list[str]:
        with open(self.log, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._offset, end - size))
            return file.read().decode(errors="replace").splitlines()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _status_stamp(self) -> tuple[int, int] | None:
        """Tells one writing of `status.json` from the next, which is another file; None without one."""
        try:
            found = (self.step.folder / STATUS).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _status(self) -> dict[str, Any]:
        """What this attempt of a train step wrote of itself; an earlier attempt's file says nothing."""
        if self.step.kind != "train" or self._status_stamp() == self._status_before:
            return {}
        try:
            return read_status(self.step.folder) or {}
        except (OSError, SlmError):  # replaced at this very moment by another host of a network disk
            return {}

    def outcome(self, code: int) -> SlmError | None:
        """What became of the step, from its artifact and `status.json`; the exit code comes last.

        Returns:
            None when the artifact is there and current, else the error to raise.
        """
        step = self.step
        try:
            current, why = is_current(
                step.folder, step.job.kind, step.job.identity(), input_fingerprints(step.job), format=step.job.format
            )
        except SlmError as error:
            current, why = False, error.what
        if current:
            return None
        status = self._status()
        if status.get("state") == "preempted":
            return PreemptedError(
                f"step '{step.name}' was asked to stop and saved at step {status.get('step', '?')}",
                where=str(step.folder),
                mend="run the same command again; it continues there",
            )
        if code == 0 and find_manifest(step.folder) is not None:
            why = f"it made another artifact than planned ({why})"
        elif code == 0:
            why = "it ended without its artifact"
        else:
            why = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        ended = self._ended_host()
        if status.get("lost"):
            why = str(status["reason"])
        elif status.get("state") == "failed" and status.get("reason"):
            why = f"{status['reason']} (rank {status.get('rank', '?')}, step {status.get('step', '?')})"
        elif ended is not None:
            unreachable = ": its connection is gone" if ended[1] == 255 else ""
            why = f"host {ended[0]} ended first, ssh's exit code {ended[1]}{unreachable}"
        failure = StepError(
            f"step '{step.name}' failed: {why}\n{self.last_lines()}",
            where=str(self.log),
            mend="put right what it says, then run the same command again; finished steps are kept",
        )
        failure.may_succeed_again = self._may_succeed_again(status, code)
        typed = status.get("exit_code") or code
        failure.exit_code = typed if typed in EXPLAINED else 1
        return failure

    def _may_succeed_again(self, status: dict[str, Any], code: int) -> bool:
        """Whether what ended the step was no fault of its configuration, its data, or a full disk."""
        if self.step.kind != "train" or status.get("state") == "done":
            return False
        explained = status["exit_code"] if status.get("state") == "failed" else code
        return bool(status.get("lost")) or explained not in EXPLAINED

    def reached(self) -> int:
        """Optimizer steps that the train step had taken when it was last heard of; 0 of others."""
        if self.step.kind != "train":
            return 0
        return max(int(self._status().get("step", 0)), int(last_record(self.step.folder / METRICS).get("step", 0)))


class StepError(SlmError):
    """A step failed.

    Attributes:
        may_succeed_again: a rank or a host was lost, or it ended without a word.
    """

    may_succeed_again = False


def saved_steps(step: Step) -> int:
    """Optimizer steps in a train step's newest checkpoint; 0 without one."""
    names = [path.name.removeprefix("step_") for path in (step.folder / "checkpoints").glob("step_*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def last_record(path: Path) -> dict[str, Any]:
    """The newest whole line of a `metrics.jsonl`; empty when there is none."""
    try:
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 8192))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    for line in reversed(lines[:-1]):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        return record if isinstance(record, dict) else {}
    return {}


def executable(argv: tuple[str, ...]) -> list[str]:
    """argv with this environment's interpreter and scripts, the checkout's files, and a free port."""
    if argv[0] == commands.PYTHON:
        first = [sys.executable]
    else:
        beside = Path(sys.executable).parent / argv[0]
        found = str(beside) if beside.is_file() else shutil.which(argv[0])
        if found is None:
            raise MachineError(f"'{argv[0]}' is not installed", mend="pip install -e '.[all]' in this environment")
        first = [found]
    rest = [_located(part) for part in argv[1:]]
    return [*first, *(str(free_port()) if part == commands.PORT else part for part in rest)]


def _located(part: str) -> str:
    """A file of the checkout, from wherever the pipeline was started."""
    if part.endswith((".py", ".yaml", ".yml")) and not Path(part).exists() and (ROOT / part).is_file():
        return str(ROOT / part)
    return part


def free_port() -> int:
    """A TCP port that nobody uses now.

    Below those that the kernel hands out (from 32768 on): one of them may be given to anybody before it is used.
    """
    for _ in range(PORTS):
        with socket.socket() as probe:
            try:
                port = FIRST_PORT + (_START + next(_taken)) % PORTS
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise MachineError(f"no free port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1}", mend="end what uses them")
