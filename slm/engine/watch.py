"""Nobody waits for a rank that is gone.

A thread in every rank tells rank 0 that it lives and where it is; rank 0 watches all, all watch rank 0. What ends a
job is judged once, told to everybody, written to `status.json`, and explained with the last lines of the log of the
rank that is to blame. Every rank leaves its stacks in `logs/stacks.rank*.txt`, also a stopped one (SIGUSR2 asks for
them, by faulthandler, at any time). The main thread gets some seconds to leave by its own error; then the process
ends, in whatever call it is stuck.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slm.artifact import read_status, write_status
from slm.config.stage import WatchConfig
from slm.engine.distributed import Place, all_sum, from_main
from slm.engine.pulse import Pulse, Sign, sign_of
from slm.engine.verdict import Verdict
from slm.engine.wire import BEAT_S, Alone, Hub, Line, Spoke
from slm.errors import InterruptedRunError, LostRankError, PreemptedError, SlmError
from slm.log import redact

log = logging.getLogger(__name__)

GRACE_S = 4.0
"""How long the main thread may take to leave by itself, once the job is judged."""
MOMENT_S, LAST_S = 0.05, 2.0
PATIENCE_S = 6.0
"""How long an error that nobody explains waits for a verdict: a lost rank breaks the connections of all others."""
LOG_LINES = 12
STACKS_S = 3.0
"""What a stopped process gets, once it may go on, for writing its stacks."""


class Watch:
    """This rank's part in the watching; made by `watching`.

    Attributes:
        pulse: the marks that the main thread sets.
        verdict: what ended the job, once that is known.
    """

    def __init__(self, place: Place, out: Path, config: WatchConfig) -> None:
        self.pulse, self.verdict = Pulse(), None  # type: tuple[Pulse, Verdict | None]
        self._place, self._out, self._config = place, out, config
        self._host, self._machine = own_host(""), own_machine("")
        self._found, self._leaving = threading.Event(), threading.Event()
        self._speaks = False
        path = out / "logs" / f"stacks.rank{place.rank}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stacks = open(path, "a")  # noqa: SIM115  (faulthandler writes to it until `close`)
        faulthandler.register(signal.SIGUSR2, self._stacks, all_threads=True)
        self._line = self._join()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def _own(self) -> Sign:
        return sign_of(self.pulse, self._place.rank, self._host, self._machine, look_after_s=BEAT_S)

    def _join(self) -> Line:
        """Connect to rank 0. Collective. Where that can't be done, each rank watches itself alone."""
        place, config = self._place, self._config
        if place.world_size == 1:
            return Alone(self._own, config.silent_s, config.stuck_s)
        line: Line | None = None
        address = os.environ.get("MASTER_ADDR", "127.0.0.1")
        if place.is_main:
            self._host, self._machine = own_host(address), own_machine(address)
            line = Hub(self._own, range(1, place.world_size), config.silent_s, config.stuck_s)
        facts = from_main(place, lambda: (line.port, line.token, self._own()) if isinstance(line, Hub) else None)
        if facts is not None and not place.is_main:
            with contextlib.suppress(OSError):
                line = spoke = Spoke(self._own, config.silent_s, address, *facts)
                self._host, self._machine = own_host(spoke.address), own_machine(spoke.address)
                spoke.tell({"sign": vars(self._own())})  # a rank may be lost before its next one, 2 s from now
        if all_sum([float(line is None)], place.device)[0]:
            log.warning("ranks can't connect to rank 0 at %s: a lost rank is found by the time-out alone", address)
            if line is not None:
                line.tell({"bye": True})
                line.close()
            return Alone(self._own, config.silent_s, config.stuck_s)
        return line or Alone(self._own, config.silent_s, config.stuck_s)

    def _run(self) -> None:
        while not self._leaving.is_set():
            # Dumps the stacks without Python's help, should a call hold the interpreter for so long.
            faulthandler.dump_traceback_later(self._config.silent_s, file=self._stacks)
            verdict = self._line.turn()
            if verdict is not None and not self._leaving.is_set():
                self._end(verdict)
                return

    def _end(self, verdict: Verdict) -> None:
        """Tell it, leave the stacks, and see to it that this process ends."""
        self.verdict = verdict
        if self._place.is_main:
            self._line.tell({"verdict": verdict.to_json()})
        self._speaks = self._write(verdict)
        self._found.set()
        if verdict.kind == "failed" and self._leaving.wait(GRACE_S):
            return  # it left by an error that this rank has met too, or explains by the verdict
        with contextlib.suppress(OSError):
            self._stacks.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {verdict}\n")
            self._stacks.flush()
        faulthandler.dump_traceback(self._stacks, all_threads=True)
        if verdict.kind == "silent" and self._is_beside(verdict.sign):
            end_stopped(verdict.sign.pid)
        if self._leaving.wait(GRACE_S):
            time.sleep(GRACE_S)  # leaving can hang too: in the process group's own end
        elif self._speaks:
            sys.stderr.write(redact(f"error: {self.error(verdict)}\n"))
            sys.stderr.flush()
        os._exit(LostRankError.exit_code)

    def _is_beside(self, sign: Sign) -> bool:
        return sign.machine == self._machine and sign.rank != self._place.rank and sign.pid > 1

    def _write(self, verdict: Verdict) -> bool:
        """Put the verdict into `status.json`; whether it falls to this rank to say it.

        That is rank 0. When rank 0 is the lost one it is the first of the others: they come a moment apart.
        """
        sign = verdict.sign
        if not self._place.is_main:
            if sign.rank != 0:
                return False
            time.sleep(min(MOMENT_S * (self._place.rank - 1), LAST_S))
        before: dict[str, Any] = {}
        with contextlib.suppress(SlmError, OSError):
            before = read_status(self._out) or {}
        if before.get("lost"):  # the first verdict stands: a host that was cut off blames the others
            return self._place.is_main
        if verdict.kind == "failed" and before.get("exit_code"):
            return True  # it has written why itself
        with contextlib.suppress(SlmError, OSError):
            write_status(
                self._out,
                "failed",
                exit_code=LostRankError.exit_code,
                step=sign.step,
                steps=before.get("steps", 0),
                reason=str(verdict),
                rank=sign.rank,
                about={"host": sign.host, "pid": sign.pid, "phase": sign.phase, "lost": verdict.lost},
            )
        return True

    def error(self, verdict: Verdict) -> LostRankError:
        """The verdict for people, with the last lines of the log of the rank that is to blame."""
        logs = self._out / "logs"
        return LostRankError(
            "\n".join([str(verdict), *last_lines(logs / f"rank{verdict.sign.rank}.log")]),
            where=f"{logs}/rank{verdict.sign.rank}.log; the stacks of all ranks: {logs}/stacks.rank*.txt",
            mend="start the same command again: it continues from the newest checkpoint",
        )

    def explained(self, error: BaseException) -> BaseException:
        """The error that this rank ends with: a broken connection is explained by who broke it.

        Ranks that do not speak end without a word.
        """
        if isinstance(error, SlmError | KeyboardInterrupt | SystemExit) or isinstance(self._line, Alone):
            return error
        if not self._found.wait(PATIENCE_S) or self.verdict is None:
            return error
        if not self._speaks:
            return SystemExit(LostRankError.exit_code)
        return self.error(self.verdict)

    def leave(self, error: BaseException | None = None) -> None:
        """The main thread is through; with an error, the others are told."""
        if error is None or isinstance(error, PreemptedError | InterruptedRunError):  # all ranks agreed to stop
            self._line.tell({"bye": True})
        elif self.verdict is None:
            words = error.what if isinstance(error, SlmError) else f"{type(error).__name__}: {error}"
            first = (words.splitlines() or [""])[0]
            self._line.tell({"failed": redact(first), "lost": not isinstance(error, SlmError)})
        self._leaving.set()
        if error is None or self.verdict is None:
            self._thread.join(2 * BEAT_S)
            self._close()

    def _close(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        faulthandler.unregister(signal.SIGUSR2)
        self._line.close()
        self._stacks.close()
        path = Path(self._stacks.name)
        with contextlib.suppress(OSError):
            if not path.stat().st_size:
                path.unlink()


@contextmanager
def watching(place: Place, out: Path, config: WatchConfig) -> Iterator[Watch]:
    """Watch, and be watched, for the length of the block, in which the process group stands. Collective.

    Raises:
        LostRankError: in place of an error that a lost rank is the cause of.
    """
    watch = Watch(place, out, config)
    try:
        yield watch
    except BaseException as error:
        explained = watch.explained(error)
        watch.leave(explained)
        if explained is not error:
            raise explained from error
        raise
    watch.leave()


def end_stopped(pid: int) -> None:
    """Have a process of this machine that gives no sign write its stacks, then kill it.

    Its main thread is asked: of a stopped process any thread may take a signal, and would then read the main thread's
    frames while they change, which ends the process in the middle of its stacks.
    """
    libc = ctypes.CDLL(None)
    with contextlib.suppress(OSError):
        if not hasattr(libc, "tgkill") or libc.tgkill(pid, pid, int(signal.SIGUSR2)):  # a thread's; glibc 2.30
            os.kill(pid, signal.SIGUSR2)
        os.kill(pid, signal.SIGCONT)
        time.sleep(STACKS_S)
        os.kill(pid, signal.SIGKILL)


def own_host(address: str) -> str:
    """This machine's name, and its address where that says more."""
    name = socket.gethostname()
    return name if address in ("", name, "localhost", "::1") or address.startswith("127.") else f"{name} ({address})"


def own_machine(address: str) -> str:
    """Equal for processes that can send each other signals: the same host, the same numbers of processes."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return f"{socket.gethostname()} {address} {space}"


def last_lines(path: Path, count: int = LOG_LINES) -> list[str]:
    """The end of a log, marked as a quotation; nothing when it can't be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [f"  | {line.rstrip()}" for line in lines if line.strip()][-count:]
