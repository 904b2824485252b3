"""One pipeline per run folder, and no process left over from one that was killed.

The lock is an `flock` on `<run>/.lock`, so it vanishes with its holder, however that ends; the file
names the holder for people. Every child carries a token in its environment; a later run finds and
ends children that outlived their pipeline, because two processes in one step would ruin it.
"""

from __future__ import annotations

import fcntl
import glob
import json
import logging
import os
import secrets
import signal
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from slm.errors import MachineError, from_os_error

log = logging.getLogger(__name__)

TOKEN = "SLM_PIPELINE_TOKEN"
GRACE_S = 20.0
LOADING_S = 0.05
LOOKED_AT_S = 1.0
"""Who only looks whether a folder is held (`is_held`) holds it for a moment."""


class RunLock:
    """Holds a run folder for one pipeline; a context manager.

    Attributes:
        token: what the children of this pipeline carry in `SLM_PIPELINE_TOKEN`.

    Raises:
        MachineError: another pipeline holds the folder (named), or it can't be written.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / ".lock"
        self.token = secrets.token_hex(8)
        self._file: IO[str] | None = None

    def __enter__(self) -> RunLock:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+")
        except OSError as error:
            raise from_os_error(error, f"locking {self.path.parent}") from error
        end = time.monotonic() + LOOKED_AT_S
        while not self._taken():
            if time.monotonic() > end:
                self._file.close()
                by = {"pid": "?", "host": "?", "since": "?", **holder(self.path)}
                raise MachineError(
                    f"another pipeline is at work in {self.path.parent}",
                    where=f"process {by['pid']} on {by['host']} since {by['since']}",
                    mend="wait for it, or stop it (Ctrl-C there) and run again",
                )
            time.sleep(0.05)
        before = holder(self.path)
        if before.get("token"):
            log.info("process %s on %s ended without its cleaning up", before.get("pid"), before.get("host"))
            end_processes(before["token"])
        self._write({"pid": os.getpid(), "host": socket.gethostname(), "since": _now(), "token": self.token})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            if not processes(self.token):  # else the next run finds them by the token, and ends them
                self._write({})
            self._file.close()

    def _taken(self) -> bool:
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            self._file.close()
            raise from_os_error(error, f"locking {self.path.parent}") from error
        return True

    def _write(self, content: dict[str, Any]) -> None:
        assert self._file is not None
        self._file.seek(0)
        self._file.truncate()
        if content:
            json.dump(content, self._file)
        self._file.flush()


def holder(path: Path) -> dict[str, Any]:
    """What the lock file says of its holder; empty when nobody holds it, or did not clean up."""
    try:
        content = json.loads(path.read_text() or "{}")
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_held(run: Path) -> bool:
    """Whether a pipeline works in the run folder now."""
    try:
        with open(run / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def processes(token: str) -> list[int]:
    """Processes of this machine that carry the token or `token.…` (Linux; elsewhere none are found).

    One that was started a moment ago shows no environment yet: that there are none is believed at the second look.
    """
    found = _marked(token)
    if not found:
        time.sleep(LOADING_S)
        found = _marked(token)
    return found


def _marked(token: str) -> list[int]:
    mark = f"{TOKEN}={token}".encode()
    found = []
    for environ in map(Path, glob.glob("/proc/[0-9]*/environ")):  # pathlib's raises when a process ends meanwhile
        try:
            variables = environ.read_bytes().split(b"\0")
            if any(variable == mark or variable.startswith(mark + b".") for variable in variables):
                found.append(int(environ.parent.name))
        except OSError:
            continue  # ended meanwhile, or somebody else's
    return [pid for pid in found if pid != os.getpid()]


def end_processes(token: str, grace_s: float = GRACE_S) -> None:
    """End what carries the token: asked first, killed after `grace_s` seconds."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        alive = processes(token)
        if not alive:
            return
        log.info("ending %d processes that were left over", len(alive))
        for pid in alive:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        end = time.monotonic() + grace_s
        while processes(token) and time.monotonic() < end:
            time.sleep(0.1)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
