"""Starting and leaving faster: torch, DeepSpeed and transformers are 400,000 objects that live as long as the process.

Python's collector looks for cycles among them again and again while they are imported, and once more at
the very end: two seconds of a rank's seven, in which every other rank waits.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def importing() -> Iterator[None]:
    """For a block of imports: cycles are looked for after it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def leave_without_collecting() -> None:
    """At the end of this process the collector leaves alone what is there; the memory goes back as a whole."""
    atexit.unregister(gc.freeze)  # once, however often an entry is called
    atexit.register(gc.freeze)


def leave_with(code: int) -> int:
    """The exit code; a process that has loaded torch ends with it here and now.

    The interpreter's own end takes connections and the GPU's memory apart piece by piece. NCCL's would wait for ranks
    that are in the middle of a message to this one, and a thread of gloo's that has yet to let go of the last message
    would abort the process (exit code -6).
    """
    if "torch" in sys.modules:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # who read it may be gone
                stream.flush()
        os._exit(code)
    return code
