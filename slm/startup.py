"""Starting and leaving faster: torch, DeepSpeed and transformers are 400,000 objects that live as long as the process.

Python's collector looks for cycles among them again and again while they are imported, and once more at
the very end: two seconds of a rank's seven, in which every other rank waits.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
