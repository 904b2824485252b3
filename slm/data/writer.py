"""Writing shards: samples in, groups of 256 out, each shard whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import zlib
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from slm.artifact import write_atomic
from slm.data import format as fmt
from slm.errors import ConfigError, DataError
from slm.tokens.vocabulary import Vocabulary

SHARD_BYTES = 256 * 2**20


@dataclass(frozen=True)
class ShardEntry:
    """What the set's manifest says of one shard."""

    file: str
    bytes: int
    sha256: str
    index: str
    index_bytes: int
    index_sha256: str
    groups: int
    samples: int
    tokens: int
    supervised_tokens: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class ShardWriter:
    """Writes samples into `folder/shard-*.tar`, with an index beside each.

    A shard is written to a hidden `.part` file and renamed when it is complete and on the disk, its
    index after it. Leaving the `with` block by an exception leaves complete shards only.

    Args:
        folder: must exist.
        vocabulary: ids have to lie in it; its fingerprint goes into every shard.
        group_size: samples per group; 1 gives stock readers one sample per key.
        shard_bytes: a shard is closed at the first group border past this size.
        first_shard, stride: number of the first shard, and from one to the next, so that several writers can fill
            one set: writer i of n takes i, i + n, i + 2n, …
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        vocabulary: Vocabulary,
        group_size: int = fmt.GROUP_SIZE,
        shard_bytes: int = SHARD_BYTES,
        first_shard: int = 0,
        stride: int = 1,
    ) -> None:
        if group_size < 1 or shard_bytes < 1:
            raise ConfigError(f"group_size ({group_size}) and shard_bytes ({shard_bytes}) are at least 1")
        self.folder = Path(folder)
        self.vocabulary = vocabulary
        self.group_size = group_size
        self.shard_bytes = shard_bytes
        self.entries: list[ShardEntry] = []
        self.length_counts: Counter[int] = Counter()
        self._number, self._stride = first_shard, stride
        self._shard: _OpenShard | None = None
        self._ids: list[np.ndarray] = []
        self._masks: list[np.ndarray] = []

    def add(self, ids: Sequence[int] | np.ndarray, mask: Sequence[bool] | np.ndarray) -> None:
        """Append one sample.

        Args:
            ids: token ids, (tokens,).
            mask: True where a token is a label, (tokens,).

        Raises:
            DataError: empty, of unequal lengths, or an id outside the vocabulary.
        """
        sample = np.asarray(ids, dtype=np.int64)
        labels = np.asarray(mask, dtype=bool)
        if sample.ndim != 1 or not len(sample) or sample.shape != labels.shape:
            raise DataError(f"a sample needs as many ids as mask values, at least one: {sample.shape}, {labels.shape}")
        if sample.min() < 0 or sample.max() >= self.vocabulary.size:
            raise DataError(
                f"token ids {sample.min()}..{sample.max()} lie outside a vocabulary of {self.vocabulary.size}",
                where=str(self.folder),
                mend="tokenise with the tokenizer that the shards are declared for",
            )
        self._ids.append(sample)
        self._masks.append(labels)
        self.length_counts[len(sample)] += 1
        if len(self._ids) == self.group_size:
            self._flush_group()

    def close(self) -> list[ShardEntry]:
        """Write what is left and return all shards, in order."""
        if self._ids:
            self._flush_group()
        self._finish_shard()
        return self.entries

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            if self._shard is not None:
                self._shard.discard()

    def _flush_group(self) -> None:
        if self._shard is None:
            self._shard = _OpenShard(self.folder, self._number, self.group_size, self.vocabulary.fingerprint)
        self._shard.write_group(self._ids, self._masks)
        self._ids, self._masks = [], []
        if self._shard.bytes >= self.shard_bytes:
            self._finish_shard()

    def _finish_shard(self) -> None:
        if self._shard is not None:
            self.entries.append(self._shard.finish())
            self._shard = None
            self._number += self._stride


class _OpenShard:
    """One shard while it is being written."""

    def __init__(self, folder: Path, number: int, group_size: int, vocabulary: str) -> None:
        self.path = folder / fmt.shard_name(number)
        self.number = number
        self.bytes = 0
        self.supervised_tokens = 0
        self.offsets, self.sizes = array("Q"), array("Q")
        self.crcs, self.counts, self.lengths = array("I"), array("I"), array("I")
        self._sha256 = hashlib.sha256()
        self._part = self.path.with_name(f".{self.path.name}.{socket.gethostname()}-{os.getpid()}.part")
        self._file = open(self._part, "wb")  # noqa: SIM115 (closed by finish or discard)
        head = {"format": "slm shards", "version": fmt.FORMAT, "shard": number, "group_size": group_size}
        self._head_crc = self._write(_json_member(fmt.HEAD_MEMBER, head | {"vocabulary": vocabulary}))

    def write_group(self, ids: list[np.ndarray], masks: list[np.ndarray]) -> None:
        lengths = [len(sample) for sample in ids]
        mask = np.concatenate(masks)
        key = fmt.group_key(self.number, len(self.offsets))
        data = fmt.group_bytes(key, np.concatenate(ids), np.array(lengths), mask)
        self.offsets.append(self.bytes)
        self.sizes.append(len(data))
        self.crcs.append(self._write(data))
        self.counts.append(len(lengths))
        self.lengths.extend(lengths)
        self.supervised_tokens += int(mask.sum())

    def finish(self) -> ShardEntry:
        tokens = sum(self.lengths)
        counts = {"groups": len(self.offsets), "samples": len(self.lengths), "tokens": tokens}
        end = {**counts, "supervised_tokens": self.supervised_tokens, "crc32": self.crcs.tolist()}
        tail_crc = self._write(_json_member(fmt.END_MEMBER, end) + fmt.TAR_END)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._part, self.path)
        arrays = (np.array(values) for values in (self.offsets, self.sizes, self.crcs, self.counts, self.lengths))
        index = fmt.ShardIndex(self.number, self.bytes, tokens, self._head_crc, tail_crc, *arrays).to_bytes()
        index_file = fmt.index_path(self.path)
        write_atomic(index_file, index)
        return ShardEntry(
            file=self.path.name,
            bytes=self.bytes,
            sha256=self._sha256.hexdigest(),
            index=index_file.name,
            index_bytes=len(index),
            index_sha256=hashlib.sha256(index).hexdigest(),
            supervised_tokens=self.supervised_tokens,
            **counts,
        )

    def discard(self) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)

    def _write(self, data: bytes) -> int:
        """Append, and return the crc32 of what was appended."""
        self._file.write(data)
        self._sha256.update(data)
        self.bytes += len(data)
        return zlib.crc32(data)


def _json_member(name: str, value: dict[str, Any]) -> bytes:
    return fmt.member_bytes(name, json.dumps(value).encode())
