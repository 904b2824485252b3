"""Writing a checkpoint when files can't be written."""

from __future__ import annotations

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
    """torch reports a full disk as a RuntimeError of its zip writer."""
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
