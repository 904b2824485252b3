"""Hugging Face data sets: from the Hub, a folder, or `save_to_disk`; in whole or streamed.

Only the columns that a recipe reads are selected, before anything is decoded: audio columns cost nothing and need no
decoder. A streamed data set has no known length, so there a piece is a data file.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from slm.config.shards import HfSource, ShardsJob
from slm.data.sources.base import Example, Piece
from slm.data.sources.columns import Columns
from slm.errors import DataError
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
        import datasets

        datasets.disable_progress_bars()
        try:
            if _was_saved_to_disk(path):
                loaded = datasets.load_from_disk(path)
                if isinstance(loaded, datasets.DatasetDict):
                    if self.source.split not in loaded:
                        raise DataError(
                            f"no split {self.source.split!r}; there are: {', '.join(loaded)}",
                            where=f"hf source {path}",
                        )
                    loaded = loaded[self.source.split]
                if self.source.streaming:
                    loaded = loaded.to_iterable_dataset(num_shards=max(1, len(loaded.cache_files)))
            else:
                loaded = datasets.load_dataset(**self._arguments(path))
        except DataError:
            raise
        except Exception as error:  # of the library, of the Hub's client, or of what that uses for the network
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DataError(
                f"the data set can't be loaded: {first_line}",
                where=f"hf source {path}",
                mend="check path, name, split and revision; private sets on the Hub need HF_TOKEN in the environment",
            ) from error
        if loaded.column_names is not None:
            self.columns.require(loaded.column_names, path)
        return loaded.select_columns(list(self.columns.needed))

    def _arguments(self, path: str) -> dict[str, Any]:
        import datasets

        arguments: dict[str, Any] = {
            "path": path,
            "name": self.source.name,
            "split": self.source.split,
            "revision": self.source.revision,
            "streaming": self.source.streaming,
        }
        if Path(path).is_file():
            suffix = Path(path).suffix.lstrip(".")
            return arguments | {"path": {"jsonl": "json"}.get(suffix, suffix), "data_files": path}
        builder = datasets.load_dataset_builder(path, name=self.source.name, revision=self.source.revision)
        if hasattr(builder.config, "columns"):
            # Parquet: what is not asked for is neither read nor copied to the cache.
            known = builder.info.features
            if known is not None:
                self.columns.require(list(known), path)
            arguments["columns"] = list(self.columns.needed)
        return arguments


def _was_saved_to_disk(path: str) -> bool:
    names = ("state.json", "dataset_dict.json")
    return any((Path(path) / name).is_file() for name in names)
