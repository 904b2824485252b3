"""What a source is, and the registry of sources."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from slm.config.shards import ShardsJob
from slm.parts import Piece
from slm.tokens.schedules import Splitter
from slm.tokens.vocabulary import UnitSet

Example = Mapping[str, Any]

SOURCES = {
    "hf": "slm.data.sources.hf:HfRows",
    "jsonl": "slm.data.sources.jsonl:JsonlRows",
    "parquet": "slm.data.sources.parquet:ParquetRows",
    "audio": "slm.data.sources.audio:AudioRows",
    "units": "slm.data.sources.units:UnitsRows",
}
"""`kind` of a source -> `module:class`, made from (job, unit set, splitter); imported only when named."""


class Source(Protocol):
    """Examples in an order that never changes."""

    def pieces(self) -> list[Piece]:
        """What the source consists of, in order.

        Raises:
            DataError: missing, unreadable, or without a column that the recipe needs.
        """
        ...

    def read(self, piece: int, start: int, stop: int | None, first: int) -> Iterator[Example | None]:
        """Examples of the rows [start, stop) of a piece; None for a row that the job leaves out.

        Args:
            piece: index in `pieces()`.
            start, stop: rows within the piece; None reads to its end.
            first: number of row `start` within the whole source, which chooses wordings.

        Raises:
            DataError: a row can't be used; names source, row and column.
        """
        ...


def open_source(job: ShardsJob, units: UnitSet | None, split: Splitter | None = None) -> Source:
    """The source that a job names.

    Args:
        job: the job.
        units: the unit set of the job, None for text.
        split: cuts text into tokens, for schedules of interleaving that count them.
    """
    module, _, name = SOURCES[job.source.kind].partition(":")
    opened: Source = getattr(importlib.import_module(module), name)(job, units, split)
    return opened
