"""The command of an evaluation, which `python -m slm.eval` and `slm eval` both are."""

from __future__ import annotations

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
    from slm.eval.stopping import Stopped, stopping

    try:
        with stopping():
            summary = run_evaluation(job, load)
    except Stopped:
        raise PreemptedError(
            "asked to stop", mend="run the same command again; models that are evaluated are kept"
        ) from None
    Console(width=None if sys.stdout.isatty() else 160).print(summary_table(summary))
    sys.stdout.write(f"{Path(job.out) / SUMMARY}\n")
    return 0
