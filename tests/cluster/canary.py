"""Looks for a secret where none may be: on command lines while something runs, and in what it left."""

from __future__ import annotations

import glob
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def command_lines_with(secret: str) -> Iterator[set[str]]:
    """Every command line of this machine that shows the secret while the block lasts."""
    stop, seen = threading.Event(), set[str]()

    def watch() -> None:
        while not stop.wait(0.1):
            for path in glob.glob("/proc/[0-9]*/cmdline"):  # pathlib's raises when a process ends meanwhile
                try:
                    text = Path(path).read_bytes()
                except OSError:
                    continue  # it has ended
                if secret.encode() in text:
                    seen.add(text.replace(b"\0", b" ").decode(errors="replace"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        stop.set()
        watcher.join()


def files_with(secret: str, *folders: Path) -> list[str]:
    """Every file below the folders that holds the secret, hidden ones too."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in files if secret.encode() in path.read_bytes())
