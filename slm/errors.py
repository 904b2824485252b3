"""The error tree and its exit codes.

Everything a user can cause is an `SlmError`: one line says what is wrong, one where, one how to
mend it. Entries run through `run_entry`, which prints those lines (no traceback) and returns the
exit code, so that launchers and batch scripts can tell a bad config from a full disk.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable


class SlmError(Exception):
    """A failure that has an explanation.

    Args:
        what: one line, what is wrong.
        where: the file, key, shard or rank concerned; empty when `what` says it already.
        mend: one line, what to do next.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", mend: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.mend = what, where, mend

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.mend:
            lines.append(f"  mend:  {self.mend}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple:
        return (_rebuild, (type(self), self.what, self.where, self.mend))


def _rebuild(kind: type[SlmError], what: str, where: str, mend: str) -> SlmError:
    return kind(what, where=where, mend=mend)


class ConfigError(SlmError):
    """A configuration that can't be used: unknown key, wrong type, missing argument."""

    exit_code = 2


class DataError(SlmError):
    """Data that is missing, damaged, or of another vocabulary."""

    exit_code = 3


class MachineError(SlmError):
    """The machine can't do it: disk full, package missing, port taken, device absent."""

    exit_code = 4


class LostRankError(MachineError):
    """A rank died, fell silent or hangs. Started again, the run continues from its newest checkpoint."""


class DivergedError(SlmError):
    """Training produced non-finite numbers and was stopped."""

    exit_code = 5


class CheckpointError(SlmError):
    """A checkpoint, adapter or model folder that can't be written, verified or loaded."""

    exit_code = 6


class PreemptedError(SlmError):
    """The run was asked to stop, saved, and can be started again as it was."""

    exit_code = 85


class InterruptedRunError(SlmError):
    """Ctrl-C: the run saved what it had and stopped."""

    exit_code = 130


def from_os_error(error: OSError, doing: str) -> SlmError:
    """Turn an `OSError` met while `doing` something into a typed error with advice."""
    where = str(error.filename or "")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return MachineError(
            f"no space left while {doing}",
            where=where,
            mend="free some space and run the same command again; what was complete before is intact",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return MachineError(f"no permission while {doing}", where=where, mend="choose a folder that you may write to")
    return MachineError(f"{error.strerror or error} while {doing}", where=where)


KNOWN_ERRNO = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)
"""What a person can mend: a full or forbidden disk."""


def run_entry(main: Callable[[], int | None]) -> int:
    """Run an entry's body and map what it raises to printed lines and an exit code.

    `SLM_DEBUG=1` shows the traceback too. Faults of ours (anything but `SlmError`, `OSError` of a
    full or forbidden disk, and Ctrl-C) keep their traceback. Values of secret environment variables are not shown.
    The process, when it ends, does not look for garbage once more (`slm.startup`).
    """
    from slm.log import redact
    from slm.startup import leave_without_collecting

    leave_without_collecting()
    try:
        return main() or 0
    except SlmError as error:
        if os.environ.get("SLM_DEBUG") == "1":
            print(redact(traceback.format_exc()), file=sys.stderr)
        print(redact(f"error: {error}"), file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return InterruptedRunError.exit_code
    except Exception as error:
        if not isinstance(error, OSError) or error.errno not in KNOWN_ERRNO:
            print(redact(traceback.format_exc()), end="", file=sys.stderr, flush=True)
            return 1
        known = from_os_error(error, "writing")
        print(redact(f"error: {known}"), file=sys.stderr, flush=True)
        return known.exit_code
