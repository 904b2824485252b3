"""Recordings of a folder, of tars, or of Hugging Face data sets: listed without decoding, read one by one."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from slm.config.recordings import FolderRecordings, HfRecordings, Recordings, TarRecordings
from slm.errors import DataError
from slm.hub import open_data_set
from slm.parts import Piece
from slm.speech.audio import as_wave, decode_audio

HF_BATCH_ROWS = 16
"""Rows of a data set that are read at a time: audio is large."""


@dataclass(frozen=True)
class Member:
    """Where a file's bytes lie within a tar."""

    tar: Path
    offset: int
    size: int

    def read(self, where: str) -> bytes:
        """The bytes.

        Raises:
            DataError: the tar ends within them, or can't be read.
        """
        try:
            with open(self.tar, "rb") as file:
                data = os.pread(file.fileno(), self.size, self.offset)
        except OSError as error:
            raise DataError(f"tar can't be read: {error.strerror or error}", where=where) from None
        if len(data) < self.size:
            raise DataError(f"audio file is cut: the tar has {len(data):,} of its {self.size:,} bytes", where=where)
        return data


@dataclass(frozen=True)
class Samples:
    """Audio that the data set holds decoded: [samples] or [channels, samples]."""

    array: np.ndarray
    rate: int


@dataclass(frozen=True)
class Recording:
    """One recording, not decoded yet.

    Attributes:
        id: names the utterance in unit sets, transcripts and alignments.
        where: for messages.
        data: its file, its file's bytes, or its samples; None when there is nothing to be had.
        fault: why there is nothing to be had.
    """

    id: str
    where: str
    data: Path | Member | bytes | Samples | None
    fault: str = ""

    def wave(self, shortest_s: float, longest_s: float) -> np.ndarray:
        """Float32 [samples], 16 kHz, mono.

        Raises:
            DataError: it can't be used, see `decode_audio`.
        """
        if self.data is None:
            raise DataError(self.fault, where=self.where)
        if isinstance(self.data, Samples):
            seconds = self.data.array.shape[-1] / max(1, self.data.rate) if self.data.array.ndim else 0.0
            if seconds > longest_s or 0 < seconds < shortest_s:
                side = "long" if seconds > longest_s else "short"
                raise DataError(f"audio is too {side}: {seconds:,.3g} s", where=self.where)
            return as_wave(self.data.array, self.data.rate, where=self.where)
        data = self.data.read(self.where) if isinstance(self.data, Member) else self.data
        return decode_audio(data, where=self.where, shortest_s=shortest_s, longest_s=longest_s)


class RecordingSource(Protocol):
    """Recordings in an order that never changes."""

    def pieces(self) -> list[Piece]:
        """What the source consists of, in order.

        Raises:
            DataError: missing or empty; an id that comes twice.
        """
        ...

    def read(self, piece: int, start: int, stop: int | None) -> Iterator[Recording]:
        """The recordings [start, stop) of a piece; one that can't be read at all has a `fault`."""
        ...


def open_recordings(source: Recordings) -> RecordingSource:
    """The source that a job names."""
    if isinstance(source, FolderRecordings):
        return FolderRows(source)
    if isinstance(source, TarRecordings):
        return TarRows(source)
    return HfAudioRows(source)


class FolderRows:
    """One piece: all audio files below a folder."""

    def __init__(self, source: FolderRecordings) -> None:
        self.source = source

    @cached_property
    def recordings(self) -> list[Recording]:
        """Every audio file, sorted."""
        found: dict[str, Recording] = {}
        root = Path(self.source.path)
        for path in self.source.files():
            name = path.stem if self.source.ids == "name" else path.relative_to(root).with_suffix("").as_posix()
            if name in found:
                raise DataError(
                    f"two recordings have the id {name!r}",
                    where=f"{found[name].where}, {path}",
                    mend="source.ids=path takes the path for the id; of files that differ in suffix alone, keep one",
                )
            found[name] = Recording(name, str(path), path)
        if not found:
            raise DataError(
                f"no recordings ({', '.join(self.source.suffixes)}) here",
                where=self.source.path,
                mend="check source.path and source.suffixes",
            )
        return list(found.values())

    def pieces(self) -> list[Piece]:
        """See `RecordingSource.pieces`."""
        return [Piece(self.source.path, len(self.recordings))]

    def read(self, piece: int, start: int, stop: int | None) -> Iterator[Recording]:
        """See `RecordingSource.read`."""
        return iter(self.recordings[start:stop])


class TarRows:
    """A piece is a tar. Where it is damaged, what comes before is read and the damage counts as one recording."""

    def __init__(self, source: TarRecordings) -> None:
        self.source, self.files = source, source.files()
        self._listed = lru_cache(maxsize=2)(self._list)

    def pieces(self) -> list[Piece]:
        """See `RecordingSource.pieces`."""
        return [Piece(str(path), len(self._listed(number))) for number, path in enumerate(self.files)]

    def read(self, piece: int, start: int, stop: int | None) -> Iterator[Recording]:
        """See `RecordingSource.read`."""
        return iter(self._listed(piece)[start:stop])

    def _list(self, number: int) -> list[Recording]:
        path, found, fault = self.files[number], dict[str, Recording](), ""
        wanted = {suffix.lower() for suffix in self.source.suffixes}
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    folder, _, name = member.name.rpartition("/")
                    stem, point, suffix = name.partition(".")
                    if member.isreg() and (point + suffix).lower() in wanted and stem:
                        key = f"{folder}/{stem}" if folder else stem
                        data = Member(path, member.offset_data, member.size)
                        if key in found:
                            raise DataError(f"two members have the key {key!r}", where=str(path))
                        found[key] = Recording(key, f"{path} member {member.name}", data)
                fault = _fault_at_end(path, tar.offset)
        except tarfile.ReadError as error:
            fault = f"tar is damaged: {error}"
        if fault:
            found[path.name] = Recording(path.name, str(path), None, fault)
        return list(found.values())


def _fault_at_end(path: Path, offset: int) -> str:
    """Why what follows the last member is no end of a tar; `tarfile` takes a damaged header for one."""
    with open(path, "rb") as file:
        block = os.pread(file.fileno(), tarfile.BLOCKSIZE, offset)
    if not block:
        return f"tar is cut: no end mark at byte {offset:,}"
    return "" if not any(block) else f"tar is damaged: a header is unreadable at byte {offset:,}"


class HfAudioRows:
    """A piece is a data set, or one of its files when streaming."""

    def __init__(self, source: HfRecordings) -> None:
        self.source = source
        self.columns = [source.column, *([source.id] if source.id else [])]
        self._open = lru_cache(maxsize=1)(self._load)

    @cached_property
    def places(self) -> list[tuple[str, int]]:
        """Of each piece, the data set and the file in it."""
        if not self.source.streaming:
            return [(path, 0) for path in self.source.paths()]
        return [(path, file) for path in self.source.paths() for file in range(self._open(path).num_shards)]

    def pieces(self) -> list[Piece]:
        """See `RecordingSource.pieces`."""
        if self.source.streaming:
            return [Piece(f"{path} file {file}", None) for path, file in self.places]
        return [Piece(path, len(self._open(path))) for path, _ in self.places]

    def read(self, piece: int, start: int, stop: int | None) -> Iterator[Recording]:
        """See `RecordingSource.read`."""
        path, file = self.places[piece]
        rows = self._open(path)
        if self.source.streaming:
            rows = rows.shard(num_shards=rows.num_shards, index=file)
        else:
            rows = rows.select(range(start, len(rows) if stop is None else stop))
        number = start
        # In Arrow's format nothing is decoded: no codec is needed, and what can't be decoded is ours to report.
        try:
            for batch in rows.with_format("arrow").iter(HF_BATCH_ROWS):
                for row in batch.to_pylist():
                    yield self._recording(row, piece, number)
                    number += 1
        except (OSError, ValueError) as error:  # of the file system, and of Arrow
            raise DataError(f"the data set can't be read: {error}", where=f"hf source {path} row {number}") from None

    def _recording(self, row: dict[str, Any], piece: int, number: int) -> Recording:
        path, file = self.places[piece]
        where = f"hf source {path}" + (f" file {file}" if self.source.streaming else "") + f" row {number}"
        name = f"row-{number:09d}" if len(self.places) == 1 else f"{piece:04d}-row-{number:09d}"
        if self.source.id is not None:
            name = row[self.source.id]
            if not isinstance(name, str | int):
                raise DataError(f"column {self.source.id!r} holds no id: {name!r}", where=where)
        value = row[self.source.column]
        data = _audio_of(value)
        told = "nothing" if value is None else f"a {type(value).__name__}"
        fault = "" if data is not None else f"no audio in column {self.source.column!r}: {told}"
        return Recording(str(name), where, data, fault)

    def _load(self, path: str) -> Any:
        source = self.source

        def require(there: Any, where: str) -> None:
            missing = [name for name in self.columns if name not in there]
            if missing:
                raise DataError(
                    f"column {missing[0]!r} is missing; there are: {', '.join(sorted(there))}",
                    where=f"hf source {where}",
                    mend="source.column names the audio, source.id the ids",
                )

        return open_data_set(
            path, self.columns, require,
            name=source.name, split=source.split, revision=source.revision, streaming=source.streaming,
        )  # fmt: skip


def _audio_of(value: Any) -> Path | bytes | Samples | None:
    """The audio in a row's value, as data sets store it."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("bytes"), bytes):
        return value["bytes"]
    if value.get("array") is not None and isinstance(value.get("sampling_rate"), int):
        try:
            return Samples(np.asarray(value["array"], np.float32), value["sampling_rate"])
        except ValueError:  # channels of different lengths
            return None
    if isinstance(value.get("path"), str) and Path(value["path"]).is_file():
        return Path(value["path"])
    return None
