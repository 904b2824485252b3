"""Loggers: one format, rank 0 on the screen, every rank in its own file.

A module asks for `logging.getLogger(__name__)`; the entry calls `setup_logging` once. The values of secret
environment variables never reach a log: `redact` puts `***` in their place.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from pathlib import Path

FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
SHORTEST_SECRET = 8
"""Shorter values are no secrets, and taking them out would maim the text."""


def redact(text: str) -> str:
    """`text` with `***` for the value of every environment variable whose name says that it is a secret."""
    secrets = {
        value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= SHORTEST_SECRET
    }
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


FILE_ONLY = {"file_only": True}
"""`extra` of a record that goes to the rank's own file, because the screen gets it by another way."""


class _Redacted(logging.Formatter):
    """Takes secrets out of messages and tracebacks alike."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def rank() -> int:
    """This process's global rank, 0 outside a distributed job."""
    return int(os.environ.get("RANK", "0"))


class _OnlyRankZero(logging.Filter):
    """Other ranks reach the screen with warnings only; what is for the file alone does not, on any."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(record, "file_only", False) and (rank() == 0 or record.levelno >= logging.WARNING)


def setup_logging(folder: str | Path | None = None, level: int = logging.INFO) -> None:
    """Log to standard error and, with a folder, to `folder/rank{RANK}.log` too.

    Args:
        folder: where the per-rank files go; made if missing.
        level: the lowest level shown.
    """
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.setLevel(level)
    screen = logging.StreamHandler(sys.stderr)
    screen.addFilter(_OnlyRankZero())
    screen.setFormatter(_Redacted("%(asctime)s %(message)s", "%H:%M:%S"))
    root.addHandler(screen)
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(Path(folder) / f"rank{rank()}.log")
        file.setFormatter(_Redacted(FORMAT))
        root.addHandler(file)
    # deepspeed 0.19.8 calls collectives that torch 2.13 renamed: a warning for every message it sends.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    for noisy in ("DeepSpeed", "deepspeed", "numba", "matplotlib", "urllib3", "httpx", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
