"""Ranks that start in a moment: a process that has imported torch, transformers and DeepSpeed, and forks.

Importing them takes a rank several seconds and a test suite many minutes. What runs in the forks is
`launcher/train.py` itself, with the variables that a launcher sets. Tests of the launchers' own ways
(exit codes, signals) start the real ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import psutil

LEAVE_S = 30.0
"""What ranks get for leaving by themselves after the first has failed; DeepSpeed's launcher grants the same."""


class WarmRun:
    """A job of forked ranks; the part of `subprocess.Popen` that tests use."""

    def __init__(self, pid: int, output: Path, code: Path) -> None:
        self.pid, self.returncode = pid, None
        self._output, self._code = output, code

    def wait(self, timeout: float = 180.0) -> int:
        end = time.monotonic() + timeout
        while not self._code.exists():
            if not psutil.pid_exists(self.pid):
                break
            if time.monotonic() > end:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
                raise TimeoutError(f"ranks did not end:\n{self._output.read_text()[-4000:]}")
            time.sleep(0.01)
        self.returncode = int(self._code.read_text()) if self._code.exists() else -signal.SIGKILL
        return self.returncode

    def communicate(self, timeout: float = 180.0) -> tuple[str, None]:
        self.wait(timeout)
        return self._output.read_text(), None

    def send_signal(self, number: int) -> None:
        """To every rank, as a terminal does."""
        for rank in psutil.Process(self.pid).children():
            rank.send_signal(number)


class Zygote:
    """The process that is forked; one a session."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, argv: list[str], ranks: int, env: dict[str, str], cwd: Path, file_limit: int | None) -> WarmRun:
        self.count += 1
        output, code = self.folder / f"{self.count}.txt", self.folder / f"{self.count}.code"
        job = {"argv": argv, "ranks": ranks, "env": env, "cwd": str(cwd), "limit": file_limit}
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({**job, "output": str(output), "code": str(code)}) + "\n")
        self._process.stdin.flush()
        return WarmRun(int(self._process.stdout.readline()), output, code)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(120)


def serve() -> None:
    """Import, then fork a supervisor for every line of standard input."""
    os.environ["OMP_NUM_THREADS"] = "1"  # a pool of threads would not survive the fork
    answers = os.dup(1)
    os.dup2(2, 1)
    import deepspeed  # noqa: F401
    import faults  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401

    import slm.engine.run  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.close(answers)
            _supervise(job)
        os.write(answers, f"{pid}\n".encode())


def _supervise(job: dict) -> None:
    """Fork the ranks; the first that fails ends the others, as launchers do."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    sink = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    silence = os.open(os.devnull, os.O_RDONLY)
    for number, source in ((0, silence), (1, sink), (2, sink)):
        os.dup2(source, number)
    running = {}
    for rank in range(job["ranks"]):
        pid = os.fork()
        if pid == 0:
            _become_rank(job, rank)
        running[pid] = rank
    code, asked = 0, 0.0
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            del running[pid]
            ended = os.waitstatus_to_exitcode(status)
            if ended and not code:
                code, asked = ended, time.monotonic()
                _signal(running, signal.SIGTERM)
        elif asked and time.monotonic() - asked > LEAVE_S:
            _signal(running, signal.SIGKILL)
        if not pid:
            time.sleep(0.005)
    part = Path(job["code"]).with_suffix(".part")
    part.write_text(str(code))
    part.replace(job["code"])
    os._exit(0)


def _signal(running: dict[int, int], number: int) -> None:
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _become_rank(job: dict, rank: int) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": job["ranks"], "LOCAL_WORLD_SIZE": job["ranks"]}
    os.environ.clear()
    os.environ.update(job["env"] | {name: str(value) for name, value in place.items()})
    os.chdir(job["cwd"])
    if job["limit"] is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
    if "TEST_FAULT" in job["env"]:
        sys.modules["faults"].install(json.loads(job["env"]["TEST_FAULT"]), rank)
    sys.argv = list(job["argv"])
    sys.path[0] = str(Path(sys.argv[0]).parent)
    code = 0
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
