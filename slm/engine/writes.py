"""Writes of a checkpoint: failures that do not part the ranks, explained, and files that are on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slm.errors import CheckpointError, MachineError, SlmError, from_os_error


@contextmanager
def guarded_writes(engine: Any) -> Iterator[None]:
    """Let DeepSpeed finish its barriers although a file could not be written, then raise.

    A rank that left `save_checkpoint` in the middle would meet the others in different collectives.
    """
    failures: list[Exception] = []

    def guarded(act: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                return act(*args, **kwargs)
            except (OSError, RuntimeError) as error:
                failures.append(error)
                return None

        return run

    writer = engine.checkpoint_engine
    places = ((writer, "save"), (writer, "makedirs"), (engine, "_copy_recovery_script"))
    for owner, name in places:
        setattr(owner, name, guarded(getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name in places:
            delattr(owner, name)
    if failures:
        raise explain_write(failures[0], Path("checkpoint")) from failures[0]


def explain_write(error: Exception, where: Path) -> SlmError:
    """A failed write as an error with advice; torch reports a full disk as a RuntimeError of its zip writer."""
    if isinstance(error, OSError):
        return from_os_error(error, "saving a checkpoint")
    text = str(error)
    if any(sign in text for sign in ("PytorchStreamWriter", "file write", "No space left", "unexpected pos")):
        return MachineError(
            "no space left while saving a checkpoint",
            where=str(where),
            mend="free some space and start the run again; it continues from the last checkpoint",
        )
    return CheckpointError(f"a checkpoint can't be written: {type(error).__name__}: {text[:200]}", where=str(where))


def sync(path: Path) -> None:
    """Have the system write a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
