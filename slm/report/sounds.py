"""Audio inside the page, as far as a budget goes; beyond it, a link to the file."""

from __future__ import annotations

import base64
import os
from pathlib import Path

BUDGET = 8 * 2**20
"""Bytes of audio that one page carries."""


class Sounds:
    """Turns files into sources of `<audio>`.

    Args:
        page: folder of the page, which links are relative to.
        budget: bytes that may go into the page.
    """

    def __init__(self, page: Path, budget: int = BUDGET) -> None:
        self.page, self.left = page, budget
        self._known: dict[Path, str] = {}

    def source(self, path: Path | None) -> str | None:
        """A data URI, a relative link when the budget is spent, None when there is no such file."""
        if path is None or not path.is_file():
            return None
        if path not in self._known:
            size = path.stat().st_size
            if size <= self.left:
                self.left -= size
                self._known[path] = f"data:audio/wav;base64,{base64.b64encode(path.read_bytes()).decode()}"
            else:
                self._known[path] = self.link(path)
        return self._known[path]

    def link(self, path: Path) -> str:
        """The file relative to the page; plays as long as the run folder stays whole."""
        return os.path.relpath(path, self.page).replace(os.sep, "/")
