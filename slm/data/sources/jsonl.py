"""JSON Lines: one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from slm.config.listing import expand
from slm.config.shards import JsonlSource, ShardsJob
from slm.data.sources.base import Example, Piece
from slm.data.sources.columns import Columns
from slm.errors import DataError
from slm.tokens.schedules import Splitter
from slm.tokens.vocabulary import UnitSet

BLOCK = 1 << 20
MARK_EVERY = 1024
"""Every so many lines the counting pass notes where a line starts, so that a range is reached by one seek."""


class JsonlRows:
    """A `Source` of JSON Lines files; a piece is a file."""

    def __init__(self, job: ShardsJob, units: UnitSet | None, split: Splitter | None = None) -> None:
        assert isinstance(job.source, JsonlSource)
        self.columns = Columns(job, units)
        self.files = expand(job.source.path)
        self._marks: dict[Path, list[int]] = {}

    def pieces(self) -> list[Piece]:
        """The files; counts their lines."""
        return [Piece(str(path), self._count(path)) for path in self.files]

    def read(self, piece: int, start: int, stop: int | None, first: int) -> Iterator[Example | None]:
        """See `Source.read`."""
        path = self.files[piece]
        if start and path not in self._marks:
            self._count(path)
        with open(path, "rb") as file:
            file.seek(self._marks[path][start // MARK_EVERY] if start else 0)
            skip = start % MARK_EVERY
            count = None if stop is None else skip + stop - start
            for offset, line in enumerate(islice(file, skip, count)):
                where = f"jsonl source {path} line {start + offset + 1}"
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DataError(f"not valid JSON: {error}", where=where) from None
                if not isinstance(row, dict):
                    raise DataError(f"expected an object of columns, found a {type(row).__name__}", where=where)
                yield self.columns.example(row, first + offset, where)

    def _count(self, path: Path) -> int:
        """Lines of a file; the last one need not be ended."""
        lines, marks, ended, offset = 0, [0], True, 0
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                found = block.count(b"\n")
                if lines // MARK_EVERY != (lines + found) // MARK_EVERY:
                    at = -1
                    for number in range(lines + 1, lines + found + 1):
                        at = block.index(b"\n", at + 1)
                        if number % MARK_EVERY == 0:
                            marks.append(offset + at + 1)
                lines, ended, offset = lines + found, block.endswith(b"\n"), offset + len(block)
        self._marks[path] = marks
        return lines if ended else lines + 1
