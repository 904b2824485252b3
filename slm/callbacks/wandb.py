"""Weights & Biases, optional: the only file that imports it.

Offline unless `WANDB_MODE` says otherwise, so a run without a network is no different. The tracker
is a copy of `metrics.jsonl`: when it fails, training goes on and one warning says so.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from slm.callbacks.callback import Callback
from slm.errors import MachineError

log = logging.getLogger(__name__)


class WandbTracker(Callback):
    """Sends the records of a run to W&B.

    Args:
        project: W&B project.
        mode: `offline` (default), `online` or `disabled`; the environment's `WANDB_MODE` wins.

    Raises:
        MachineError: the package is not installed.
    """

    def __init__(self, project: str, mode: str = "offline") -> None:
        try:
            import wandb
        except ImportError:
            raise MachineError("wandb is not installed", mend="pip install 'slm[track]', or leave it out") from None
        self._wandb = wandb
        self.project = project
        self.mode: Any = os.environ.get("WANDB_MODE", mode)
        self._run: Any = None

    def on_start(self, info: dict[str, Any]) -> None:
        try:
            self._run = self._wandb.init(
                project=self.project,
                name=info.get("name"),
                dir=str(info["out"]),
                config=info.get("config"),
                mode=self.mode,
                resume="allow",
            )
        except Exception as error:
            log.warning("wandb can't start (%s): training goes on without it", error)

    def on_step(self, record: dict[str, Any]) -> None:
        if self._run is None:
            return
        try:
            self._run.log(record, step=record["step"])
        except Exception as error:
            log.warning("wandb stopped (%s): training goes on without it", error)
            self._run = None

    def on_end(self, info: dict[str, Any]) -> None:
        self._finish(0)

    def on_error(self, error: BaseException) -> None:
        self._finish(1)

    def _finish(self, code: int) -> None:
        if self._run is not None:
            self._run.finish(exit_code=code)
            self._run = None
