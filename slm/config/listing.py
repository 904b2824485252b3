"""The files that a source of training data consists of, and what tells one collection of files from another.

Sources are no artifacts: nobody sealed them with a manifest, and a corpus of speech is too large to be hashed
whenever somebody asks whether a shard set is up to date. So names, sizes and, for tables, the last bytes stand for
the content: the end of a Parquet file holds the statistics of all of it.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from slm.artifact import digest, file_sha256
from slm.errors import DataError

TAIL_BYTES = 1 << 16
TABLE_SUFFIXES = (".parquet", ".jsonl", ".json", ".arrow", ".csv", ".txt")


def expand(patterns: str | Sequence[str]) -> list[Path]:
    """Files that paths and glob patterns name: patterns in their order, the files of each sorted, none twice.

    Raises:
        DataError: a path or pattern that names no file.
    """
    found: dict[Path, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        files = [Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(name)]
        if not files:
            raise DataError("no such file", where=pattern, mend="check the path, or the pattern in it")
        found.update(dict.fromkeys(files))
    return list(found)


def walk(folder: str | Path) -> list[Path]:
    """Every file below a folder, sorted, hidden ones left out.

    Raises:
        DataError: no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError("no such folder", where=str(folder))
    found = []
    for here, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(here) / name for name in sorted(files) if not name.startswith(".")]
    return found


def listing_digest(files: Iterable[Path], root: str | Path | None = None) -> str:
    """Hex sha256 of the files' names, sizes and, for tables, last 64 KiB.

    Args:
        files: in an order that matters.
        root: names are relative to it; None takes the bare file names, so that moving a file changes nothing.
    """
    rows: list[list[str | int | None]] = []
    for path in files:
        name = str(path.relative_to(root)) if root is not None else path.name
        try:
            row: list[str | int | None] = [name, path.stat().st_size]
        except FileNotFoundError:  # a link to nowhere, or gone since it was listed: who reads it says so
            rows.append([name, None])
            continue
        if path.suffix in TABLE_SUFFIXES:
            row.append(_tail_sha256(path))
        rows.append(row)
    return digest(rows)


def data_sets_digest(paths: Iterable[str], revision: str | None) -> str:
    """Hex sha256 of Hugging Face data sets: of the files of local ones; of name and revision of what is on the Hub."""
    found: list[str | list[str | None]] = []
    for path in paths:
        if Path(path).is_dir():
            found.append(listing_digest(walk(path), path))
        elif Path(path).is_file():
            found.append(listing_digest([Path(path)]))
        else:
            found.append([path, revision])
    return digest(found)


def files_digest(folder: str | Path, names: Sequence[str]) -> str:
    """Hex sha256 of the content of those of a folder's files that exist.

    Raises:
        DataError: the first of them does not.
    """
    root = Path(folder)
    if not (root / names[0]).is_file():
        raise DataError(f"no {names[0]} here", where=str(folder))
    return digest({name: file_sha256(root / name) for name in names if (root / name).is_file()})


def _tail_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
        return hashlib.sha256(file.read()).hexdigest()
