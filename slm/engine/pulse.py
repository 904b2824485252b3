"""Where a rank is in its work, for those who watch whether it gets on.

The main thread marks each phase it enters: three assignments, some hundred nanoseconds. A thread reads the marks
and tells them; so a rank that is stuck still gives signs, and a stopped one gives none.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

WAITING_IN = (os.path.join("torch", "distributed", ""), os.path.join("deepspeed", "comm", ""))
"""Code in which a rank waits for the others."""
WAITING_FOR = ("wait", "barrier")
READING = (os.path.join("engine", "distributed.py"), "read_back")
"""Where a rank reads numbers back from its GPU: messages to other ranks only start there, and this waits for them."""
PACKAGE = f"{Path(__file__).resolve().parents[1]}{os.sep}"
STEPPING = ("reading", "agreeing", "forward", "backward", "updating")
"""Phases of an optimizer step."""
EARLY = ("starting", "building the model", "preparing the data", "resuming")
"""Phases before the first step: imports and compilers can keep a thread from giving signs."""
EARLY_FACTOR = 4.0
LASTING = ("building the model", "preparing the data", "resuming", "saving", "exporting")
"""Phases in which one rank may read, convert or write for hours without a mark, while the others wait for it."""


class Pulse:
    """The marks of this rank's main thread.

    Attributes:
        phase: what it does now, in words.
        step: optimizer steps taken.
        count: marks so far.
        since: when the last one was set (`time.monotonic`).
        longest_step_s: the longest optimizer step so far, but for the first of this process; 0 before the second.
    """

    def __init__(self) -> None:
        self.phase, self.step, self.count, self.since = "starting", 0, 0, time.monotonic()
        self.longest_step_s = 0.0
        self._steps = 0

    def mark(self, phase: str) -> None:
        """A phase begins."""
        self.phase = phase
        self.since = time.monotonic()
        self.count += 1

    def took_step(self, step: int, seconds: float) -> None:
        """A step is taken; the first one compiles, allocates and fills caches, and is no measure of the others."""
        self.step = step
        self._steps += 1
        if self._steps > 1:
            self.longest_step_s = max(self.longest_step_s, seconds)


@dataclass(frozen=True)
class Sign:
    """What a rank says of itself.

    Attributes:
        rank, pid: the process.
        host: its machine's name and address, for people.
        machine: equal for ranks that see each other's processes.
        phase, step, count, longest_step_s: see `Pulse`.
        still_s: seconds since its last mark.
        waits: whether its main thread waits for other ranks.
        at: the line its main thread executes, `file.py:12 function`.
    """

    rank: int
    host: str
    pid: int = 0
    machine: str = ""
    phase: str = "starting"
    step: int = 0
    count: int = 0
    still_s: float = 0.0
    longest_step_s: float = 0.0
    waits: bool = False
    at: str = ""

    @property
    def patience(self) -> float:
        """Factor on how long it may be silent."""
        return EARLY_FACTOR if self.phase in EARLY else 1.0

    @property
    def who(self) -> str:
        """The rank, its host and its process, in words."""
        return f"rank {self.rank} on {self.host} (process {self.pid})"

    @property
    def doing(self) -> str:
        """What it does, in words."""
        return f"'{self.phase}' of step {self.step + 1}" if self.phase in STEPPING else f"'{self.phase}'"


def sign_of(pulse: Pulse, rank: int, host: str, machine: str, *, look_after_s: float) -> Sign:
    """This process's sign; where its main thread stands is looked up once it has stood still so long."""
    still = time.monotonic() - pulse.since
    facts: dict[str, Any] = {"phase": pulse.phase, "step": pulse.step, "count": pulse.count}
    if still >= look_after_s:
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        facts |= {"waits": is_waiting(frame), "at": line_of(frame)}
    return Sign(rank, host, os.getpid(), machine, still_s=round(still, 1), longest_step_s=pulse.longest_step_s, **facts)


def is_waiting(frame: FrameType | None, depth: int = 8) -> bool:
    """Whether the innermost calls of a thread are a message to other ranks, or the wait for one."""
    if frame is not None and _reads_back(frame):
        return True
    while frame is not None and depth:
        code = frame.f_code
        if any(part in code.co_filename for part in WAITING_IN):
            return True
        if code.co_name in WAITING_FOR and "deepspeed" in code.co_filename:
            return True
        frame, depth = frame.f_back, depth - 1
    return False


def _reads_back(frame: FrameType) -> bool:
    file, function = READING
    return frame.f_code.co_filename == f"{PACKAGE}{file}" and frame.f_code.co_name == function


def line_of(frame: FrameType | None) -> str:
    """The innermost line that a thread executes, and the innermost of this package if that is another."""
    found: list[str] = []
    while frame is not None:
        code = frame.f_code
        ours = code.co_filename.startswith(PACKAGE)
        if not found or ours:
            found.append(f"{os.sep.join(code.co_filename.split(os.sep)[-3:])}:{frame.f_lineno} {code.co_name}")
        if ours:
            break
        frame = frame.f_back
    return ", from ".join(found)
