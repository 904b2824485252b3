"""One running step: its process in a session of its own, its log, and how it is asked to stop."""

from __future__ import annotations

import contextlib
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
from slm.pipeline.lock import TOKEN, end_processes
from slm.pipeline.planner import ROOT

STOP = "STOP"
"""A file of this name in a train step's folder makes its ranks save at the next step boundary and end."""

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
        self.step, self.log, self.token = step, log, f"{token}.{step.name}"
        self.began = time.monotonic()
        self._asked = False
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
        """The exit code, None while it runs."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """Train steps: the STOP file (a signal would end one rank before the other); others: Ctrl-C.

        Called again and again while waiting: ranks that are still starting clear an old STOP first.
        """
        if self.step.kind == "train":
            self.step.folder.mkdir(parents=True, exist_ok=True)
            (self.step.folder / STOP).touch()
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
        """The newest line of the log that says something."""
        lines = [line for line in self._tail(4096) if not _LAUNCHER_NOISE.search(line)]
        return lines[-1].strip() if lines else ""

    def last_lines(self, count: int = 15) -> str:
        """From the last `error:` on, or else the last lines, launcher chatter left out."""
        lines = [line for line in self._tail(1 << 16) if not _LAUNCHER_NOISE.search(line)]
        starts = [i for i, line in enumerate(lines) if line.startswith("error: ")]
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
        return read_status(self.step.folder) or {}

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
        if status.get("state") == "failed" and status.get("reason"):
            why = f"{status['reason']} (rank {status.get('rank', '?')}, step {status.get('step', '?')})"
        failure = SlmError(
            f"step '{step.name}' failed: {why}\n{self.last_lines()}",
            where=str(self.log),
            mend="put right what it says, then run the same command again; finished steps are kept",
        )
        typed = status.get("exit_code") or code
        failure.exit_code = typed if typed in (2, 3, 4, 5, 6) else 1
        return failure


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
    """A TCP port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
