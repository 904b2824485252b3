"""Hugging Face data sets: from the Hub, a folder, or `save_to_disk`; in whole or streamed.

Only the columns that a recipe reads are selected, before anything is decoded: audio columns cost nothing and need no
decoder. A streamed data set has no known length, so there a piece is a data file.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from slm.config.shards import HfSource, ShardsJob
from slm.data.sources.base import Example, Piece
from slm.data.sources.columns import Columns
from slm.hub import open_data_set
from slm.tokens.schedules import Splitter
from slm.tokens.vocabulary import UnitSet

BATCH_ROWS = 1024


class HfRows:
    """A `Source` of Hugging Face data sets; a piece is a data set, or one of its files when streaming."""

    def __init__(self, job: ShardsJob, units: UnitSet | None, split: Splitter | None = None) -> None:
        assert isinstance(job.source, HfSource)
        self.source = job.source
        self.columns = Columns(job, units)
        self._open = lru_cache(maxsize=1)(self._load)
        self._places: list[tuple[str, int]] = []

    def pieces(self) -> list[Piece]:
        """Every data set's rows, or files."""
        found = []
        for path in self.source.paths():
            loaded = self._open(path)
            if self.source.streaming:
                names = [f"{path} file {number}" for number in range(loaded.num_shards)]
                found += [Piece(name, None) for name in names]
            else:
                found.append(Piece(path, len(loaded)))
        return found

    def read(self, piece: int, start: int, stop: int | None, first: int) -> Iterator[Example | None]:
        """See `Source.read`."""
        path, file = self._place(piece)
        loaded = self._open(path)
        if self.source.streaming:
            rows, name = loaded.shard(num_shards=loaded.num_shards, index=file), f"{path} file {file}"
            rows = rows.skip(start) if start else rows
            rows = rows if stop is None else rows.take(stop - start)
        else:
            rows, name = loaded.select(range(start, len(loaded) if stop is None else stop)), path
        # A batch at a time: one row a call costs several times as much.
        number = start
        for batch in rows.with_format("arrow").iter(BATCH_ROWS):
            for row in batch.to_pylist():
                yield self.columns.example(row, first + number - start, f"hf source {name} row {number}")
                number += 1

    def _place(self, piece: int) -> tuple[str, int]:
        """The data set of a piece, and the file in it."""
        if not self.source.streaming:
            return self.source.paths()[piece], 0
        if not self._places:
            for path in self.source.paths():
                self._places += [(path, file) for file in range(self._open(path).num_shards)]
        return self._places[piece]

    def _load(self, path: str) -> Any:
        """The split's needed columns.

        Raises:
            DataError: no such data set, split or column.
        """
        source = self.source
        return open_data_set(
            path, self.columns.needed, self.columns.require,
            name=source.name, split=source.split, revision=source.revision, streaming=source.streaming,
        )  # fmt: skip
