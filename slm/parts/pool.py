"""The processes that build parts. Each makes its builder for itself, once; a part is one call.

A failure anywhere ends the job with its own error: the others are told to stop and leave the part they are at.
Workers whose parent was killed end by themselves.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cached_property
from typing import Any, Protocol, TypeVar

from slm.errors import MachineError
from slm.parts.plan import Part

POLL_S = 0.5

Report = Callable[[int, int], None]
"""Called with two counts since the last call: of rows, and of what they hold (tokens, milliseconds)."""
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class StopBuilding(Exception):
    """Another process failed, or the user asked; raised by a worker's `report`."""


class Builder(Protocol[R_co]):
    """What a process keeps from part to part."""

    def build(self, part: Part, report: Report) -> R_co:
        """Make one part and say what it holds."""
        ...


def run_parts(
    make: Callable[[int], Builder[R]], parts: Sequence[Part], workers: int, report: Report, *, name: str
) -> Iterator[R]:
    """Build parts and yield each one's record as soon as it is done, in any order.

    Args:
        make: a worker's number -> its builder; is sent to other processes.
        parts: those that are to be built.
        workers: processes; 1 builds in this one.
        report: told of progress.
        name: of what is built, for messages.

    Raises:
        DataError: what a worker met.
        MachineError: no space left; or a worker was killed.
    """
    if workers == 1 or len(parts) <= 1:
        builder = make(0)
        for part in parts:
            yield builder.build(part, report)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy locks of tokenizer and Arrow threads
    stop, counted, numbers = context.Event(), context.Array("q", 2), context.Value("i", 0)
    pool = ProcessPoolExecutor(
        min(workers, len(parts)), context, initializer=_begin, initargs=(make, stop, counted, numbers)
    )
    told = [0, 0]

    def tell() -> None:
        now = [counted[0], counted[1]]
        report(now[0] - told[0], now[1] - told[1])
        told[:] = now

    waiting: set[Future[R]] = {pool.submit(_build, part) for part in parts}
    try:
        while waiting:
            finished, waiting = wait(waiting, POLL_S, FIRST_COMPLETED)
            tell()
            for future in sorted(finished, key=lambda done: done.exception() is not None):
                yield future.result()
    except BrokenProcessPool:
        raise MachineError(
            "a process of the build was killed from outside, as when memory runs out",
            where=name,
            mend="run it again with fewer workers; finished parts are kept",
        ) from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


class _Worker:
    """What a worker process keeps from call to call."""

    def __init__(self, make: Callable[[int], Builder[Any]], stop: Any, counted: Any, numbers: Any) -> None:
        self.make, self.stop, self.counted = make, stop, counted
        with numbers.get_lock():
            self.number = numbers.value
            numbers.value += 1

    @cached_property
    def builder(self) -> Builder[Any]:
        return self.make(self.number)

    def report(self, rows: int, held: int) -> None:
        if self.stop.is_set():
            raise StopBuilding
        with self.counted.get_lock():
            self.counted[0] += rows
            self.counted[1] += held


_worker: _Worker


def _begin(*arguments: Any) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C and says what happens
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = _Worker(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _build(part: Part) -> Any:
    return _worker.builder.build(part, _worker.report)
