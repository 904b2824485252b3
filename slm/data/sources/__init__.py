"""Sources of shard-building jobs, one a file: rows in, examples with a recipe's columns out.

Owns how a data set is listed, cut into ranges of rows and read; knows neither tokens nor shards. A row that can't be
used raises a `DataError` that names the source, the row and the column.
"""

from slm.data.sources.base import Piece, Source, open_source

__all__ = ["Piece", "Source", "open_source"]
