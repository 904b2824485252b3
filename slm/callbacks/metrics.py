"""`metrics.jsonl`: one JSON object per optimizer step, flushed as it is written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TextIO

from slm.artifact import write_atomic
from slm.callbacks.callback import Callback
from slm.errors import from_os_error

FILE = "metrics.jsonl"


def keep_until(path: Path, step: int) -> int:
    """Drop the records after `step` and a last line that a kill cut; returns how many were dropped."""
    if not path.is_file():
        return 0
    lines = path.read_text().splitlines()
    kept = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.get("step", step + 1) <= step:
            kept.append(line)
    if len(kept) != len(lines):
        write_atomic(path, "".join(f"{line}\n" for line in kept))
    return len(lines) - len(kept)


def _finite(value: Any) -> Any:
    """NaN and infinities are no JSON: write them as strings, so that every reader can parse the line."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class MetricsFile(Callback):
    """Writes `<out>/metrics.jsonl`; on resume, records past the resumed step are removed first."""

    def __init__(self) -> None:
        self._file: TextIO | None = None

    def on_start(self, info: dict[str, Any]) -> None:
        path = Path(info["out"]) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        keep_until(path, info["step"])
        self._file = open(path, "a")  # noqa: SIM115  (open for the length of the run, closed in on_end/on_error)

    def on_step(self, record: dict[str, Any]) -> None:
        """Append one line.

        Raises:
            MachineError: no space left; the lines before are intact.
        """
        if self._file is None:
            return
        line = json.dumps({key: _finite(value) for key, value in record.items()})
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise from_os_error(error, f"writing {self._file.name}") from error

    def on_end(self, info: dict[str, Any]) -> None:
        self._close()

    def on_error(self, error: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
