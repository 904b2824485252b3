"""Hugging Face data sets: from the Hub, a folder, or `save_to_disk`; in whole or streamed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from slm.errors import DataError

Require = Callable[[Collection[str], str], None]
"""(columns that are there, path) -> raises a `DataError` when one is missing."""


def open_data_set(
    path: str, columns: Sequence[str], require: Require, *,
    name: str | None = None, split: str = "train", revision: str | None = None, streaming: bool = False,
) -> Any:  # fmt: skip
    """A data set's split with the columns that are read, and no other: those are neither read nor decoded.

    Args:
        path: Hub name, folder of data files, single file, or folder of `save_to_disk`.
        columns: that are read.
        require: checks the names of the columns as soon as they are known.
        name, split, revision, streaming: as `datasets.load_dataset` has them.

    Returns:
        A `datasets.Dataset`, or an `IterableDataset` when streaming.

    Raises:
        DataError: no such data set, split or column.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        if _was_saved_to_disk(path):
            loaded: Any = datasets.load_from_disk(path)
            if isinstance(loaded, datasets.DatasetDict):
                if split not in loaded:
                    raise DataError(
                        f"no split {split!r}; there are: {', '.join(loaded)}", where=f"hf source {path}"
                    )  # fmt: skip
                loaded = loaded[split]
            if streaming:
                loaded = loaded.to_iterable_dataset(num_shards=max(1, len(loaded.cache_files)))
        else:
            arguments = {"path": path, "name": name, "split": split, "revision": revision, "streaming": streaming}
            loaded = datasets.load_dataset(**(arguments | _narrowed(path, columns, require, name, revision)))
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
        require(loaded.column_names, path)
    return loaded.select_columns(list(columns))


def _narrowed(
    path: str, columns: Sequence[str], require: Require, name: str | None, revision: str | None
) -> dict[str, Any]:
    """What a single file needs; and for Parquet the columns, so that no other is read or copied to the cache."""
    import datasets

    if Path(path).is_file():
        suffix = Path(path).suffix.lstrip(".")
        return {"path": {"jsonl": "json"}.get(suffix, suffix), "data_files": path}
    builder = datasets.load_dataset_builder(path, name=name, revision=revision)
    if not hasattr(builder.config, "columns"):
        return {}
    known = builder.info.features
    if known is not None:
        require(list(known), path)
    return {"columns": list(columns)}


def _was_saved_to_disk(path: str) -> bool:
    names = ("state.json", "dataset_dict.json")
    return any((Path(path) / name).is_file() for name in names)
