"""The hooks that the training loop calls, and the one object that calls several callbacks.

Every argument is a plain dictionary, so a callback needs nothing of the engine. Hooks run on
rank 0 only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class Callback:
    """Base class; override the hooks that you need."""

    def on_start(self, info: dict[str, Any]) -> None:
        """Before the first step.

        Args:
            info: `out` (run folder), `name` (of the step, for people), `step` (steps already
                done: 0, or the resumed step), `steps` (in all), `config` (resolved, JSON-able).
        """

    def on_step(self, record: dict[str, Any]) -> None:
        """After an optimizer step; `record` is what becomes a line of `metrics.jsonl`."""

    def on_save(self, info: dict[str, Any]) -> None:
        """After a checkpoint is verified and published: `step`, `path`, `seconds`."""

    def on_end(self, info: dict[str, Any]) -> None:
        """After the last step and the export: `step`, `steps`, `seconds`, `state`."""

    def on_error(self, error: BaseException) -> None:
        """When training stops by an exception; it is raised again afterwards."""


class Callbacks(Callback):
    """Calls several callbacks in their order."""

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self.callbacks = list(callbacks)

    def on_start(self, info: dict[str, Any]) -> None:
        for callback in self.callbacks:
            callback.on_start(info)

    def on_step(self, record: dict[str, Any]) -> None:
        for callback in self.callbacks:
            callback.on_step(record)

    def on_save(self, info: dict[str, Any]) -> None:
        for callback in self.callbacks:
            callback.on_save(info)

    def on_end(self, info: dict[str, Any]) -> None:
        for callback in self.callbacks:
            callback.on_end(info)

    def on_error(self, error: BaseException) -> None:
        for callback in self.callbacks:
            callback.on_error(error)
