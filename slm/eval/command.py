"""The command of an evaluation, which `python -m slm.eval` and `slm eval` both are."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slm.config.evaluation import EvalJob
from slm.config.loader import load_config
from slm.errors import PreemptedError
from slm.log import setup_logging

if TYPE_CHECKING:
    from slm.eval.evaluate import Load


def evaluate(config: str, overrides: Sequence[str], load: Load) -> int:
    """Load the configuration, evaluate, print the table and where the summary is.

    Args:
        load: loads a model; a function that worker processes can import.

    Returns:
        The exit code 0.

    Raises:
        PreemptedError: SIGTERM came; models that are evaluated are kept.
        SlmError: see `run_evaluation` and `load_config`.
    """
    setup_logging()
    job = load_config(EvalJob, config, overrides)

    from rich.console import Console

    from slm.eval.run import SUMMARY, run_evaluation, summary_table

    before = signal.signal(signal.SIGTERM, _stop)
    try:
        summary = run_evaluation(job, load)
    except _Stopped:
        raise PreemptedError(
            "asked to stop", mend="run the same command again; models that are evaluated are kept"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    Console(width=None if sys.stdout.isatty() else 160).print(summary_table(summary))
    sys.stdout.write(f"{Path(job.out) / SUMMARY}\n")
    return 0


class _Stopped(BaseException):
    """SIGTERM came. No `Exception`: logging would swallow one that is raised while it writes a line."""


def _stop(signum: int, frame: object) -> None:
    raise _Stopped
