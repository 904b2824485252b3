"""`slm pipeline --detach`: the same pipeline in a process that needs no terminal."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from slm.errors import SlmError, from_os_error
from slm.pipeline.lock import holder, is_held

if TYPE_CHECKING:
    from rich.console import Console

    from slm.pipeline.graph import Plan

LOG = "pipeline.log"
PATIENCE_S = 90.0
"""How long a start is watched: checks of all hosts come before the first step."""
SETTLE_S = 2.0
"""How long it is watched once it works: a step whose inputs are missing ends it at once."""


def detach(plan: Plan, options: Mapping[str, object], source: Sequence[str], console: Console) -> None:
    """Start the pipeline in a session of its own and come back when it works in the run folder, or is through.

    Args:
        options: of the command line, without `--detach`; None for those that were not given.
        source: the YAML and its overrides.

    Raises:
        SlmError: it ended at once; with its last lines.
        MachineError: the log can't be written.
    """
    given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    path = plan.folder / "logs" / LOG
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as log:
            begin = log.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", "slm", "pipeline", *given, *source],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise from_os_error(error, f"writing {path}") from error
    end, works = time.monotonic() + PATIENCE_S, False
    while process.poll() is None and time.monotonic() < end:
        if not works and is_held(plan.folder) and holder(plan.folder / ".lock").get("pid") == process.pid:
            works, end = True, time.monotonic() + SETTLE_S
        time.sleep(0.1)
    if process.poll():
        with open(path, errors="replace") as said:
            said.seek(begin)
            last = said.read().strip().splitlines()[-8:]
        failure = SlmError(
            "\n".join(["the pipeline ended at once", *(f"  | {line}" for line in last)]), where=str(path)
        )
        failure.exit_code = process.returncode if process.returncode > 0 else 1
        raise failure
    for line in (
        f"process {process.pid} works in {plan.folder}; its log: {path}",
        f"slm status {plan.folder} shows how far it is; kill {process.pid} stops it, and nothing is lost",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
