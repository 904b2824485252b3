"""Parquet files: only the row groups and columns that are asked for are read."""

from __future__ import annotations

from collections.abc import Iterator

from slm.config.listing import expand
from slm.config.shards import ParquetSource, ShardsJob
from slm.data.sources.base import Example, Piece
from slm.data.sources.columns import Columns
from slm.errors import DataError
from slm.tokens.schedules import Splitter
from slm.tokens.vocabulary import UnitSet

BATCH_ROWS = 1024


class ParquetRows:
    """A `Source` of Parquet files; a piece is a file."""

    def __init__(self, job: ShardsJob, units: UnitSet | None, split: Splitter | None = None) -> None:
        assert isinstance(job.source, ParquetSource)
        self.columns = Columns(job, units)
        self.files = expand(job.source.path)

    def pieces(self) -> list[Piece]:
        """The files; reads their footers."""
        import pyarrow
        from pyarrow import parquet

        found = []
        for path in self.files:
            try:
                with parquet.ParquetFile(path) as file:
                    self.columns.require(file.schema_arrow.names, str(path))
                    found.append(Piece(str(path), file.metadata.num_rows))
            except pyarrow.ArrowException as error:
                raise DataError(f"not a readable Parquet file: {error}", where=str(path)) from None
        return found

    def read(self, piece: int, start: int, stop: int | None, first: int) -> Iterator[Example | None]:
        """See `Source.read`."""
        import pyarrow
        from pyarrow import parquet

        path = self.files[piece]
        with parquet.ParquetFile(path) as file:
            groups: list[int] = []
            group_start, skip = 0, start
            for group in range(file.metadata.num_row_groups):
                group_stop = group_start + file.metadata.row_group(group).num_rows
                if group_stop > start and (stop is None or group_start < stop):
                    if not groups:
                        skip = start - group_start
                    groups.append(group)
                group_start = group_stop
            left = (group_start if stop is None else stop) - start
            number = start
            try:
                for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=list(self.columns.needed)):
                    rows = batch.slice(skip, min(left, max(0, batch.num_rows - skip)))
                    skip = max(0, skip - batch.num_rows)
                    for row in rows.to_pylist():
                        where = f"parquet source {path} row {number}"
                        yield self.columns.example(row, first + number - start, where)
                        number += 1
                    left -= rows.num_rows
                    if left <= 0:
                        return
            except pyarrow.ArrowException as error:
                raise DataError(f"damaged near row {number}: {error}", where=f"parquet source {path}") from None
