"""Reading shards: memory-mapped, each byte checked against a crc before it is used.

What is checked when: opening a set compares every shard's size and every index's sha256 with the
manifest; the first touch of a shard checks its head and end members; reading a group checks that
group. So a shard that is cut, changed, swapped or missing is an error that says where, never data.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slm.artifact import Manifest, read_manifest
from slm.data import format as fmt
from slm.data.format import ShardIndex, group_key, group_layout
from slm.errors import DataError
from slm.tokens.vocabulary import Vocabulary

OPEN_SHARDS = 128
MEND = "copy the file from where it is intact, or build the shard set again"


class Group(NamedTuple):
    """The samples of one group.

    Attributes:
        ids: int32, (tokens,); aliases the file.
        lengths: uint32, (samples,); aliases the file.
        mask: bool, (tokens,): True where a token is a label.
    """

    ids: np.ndarray
    lengths: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Damage:
    """One finding of `ShardSet.check`."""

    file: str
    group: int | None
    offset: int
    what: str

    def __str__(self) -> str:
        group = "" if self.group is None else f" group {self.group}"
        return f"{self.file}{group} at byte {self.offset}: {self.what}"

    def error(self, folder: Path) -> DataError:
        """This finding as an exception."""
        group = "" if self.group is None else f" group {self.group}"
        return DataError(self.what, where=f"{folder / self.file}{group} at byte {self.offset}", mend=MEND)


class ShardSet:
    """A finished shard set, opened for reading.

    Attributes:
        manifest: of the set.
        vocabulary: of its tokens.
        fingerprint: of the artifact.
        samples, tokens, supervised_tokens, longest: counts; `longest` is the longest sample's tokens.
        groups: number of groups, over all shards.

    Raises:
        DataError: not a shard set, or files missing, of another size, or with another index.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(folder, fmt.KIND)
        if self.manifest.format != fmt.FORMAT:
            raise DataError(
                f"shards of format {self.manifest.format}, this program reads {fmt.FORMAT}", where=str(folder)
            )
        about = self.manifest.about
        self.fingerprint = self.manifest.fingerprint
        self.vocabulary = Vocabulary.from_json(about["vocabulary"])
        self.samples, self.tokens = int(about["samples"]), int(about["tokens"])
        self.supervised_tokens, self.longest = int(about["supervised_tokens"]), int(about["longest"])
        self.entries: list[dict[str, Any]] = about["shards"]
        damages, self._indexes = self._read_indexes()
        if damages:
            raise self._report(damages)
        counts = np.array([len(index.offsets) for index in self._indexes])
        self._first_group = np.concatenate([[0], np.cumsum(counts)])
        self._starts = [np.concatenate([[0], np.cumsum(index.counts, dtype=np.int64)]) for index in self._indexes]
        self.groups = int(self._first_group[-1])
        self._maps: OrderedDict[int, memoryview] = OrderedDict()
        self._lock = threading.Lock()

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of every sample in the set, uint32, (samples,)."""
        return np.concatenate([index.lengths for index in self._indexes])

    def group_lengths(self, group: int) -> np.ndarray:
        """Tokens of every sample of a group, uint32, (samples,); read from the index alone."""
        shard, local = self._locate(group)
        starts = self._starts[shard]
        return self._indexes[shard].lengths[starts[local] : starts[local + 1]]

    def read_group(self, group: int) -> Group:
        """A group's samples, checked.

        Raises:
            DataError: damaged; names shard, group and byte offset.
        """
        shard, local = self._locate(group)
        damage = self._check_group(shard, local)
        if damage is not None:
            raise damage.error(self.folder)
        lengths = self.group_lengths(group)
        samples, tokens = len(lengths), int(lengths.sum(dtype=np.int64))
        layout, data = group_layout(samples, tokens), self._map(shard)
        start = int(self._indexes[shard].offsets[local])
        return Group(
            np.frombuffer(data, "<i4", tokens, start + layout.ids),
            np.frombuffer(data, "<u4", samples, start + layout.lengths),
            np.unpackbits(
                np.frombuffer(data, np.uint8, -(-tokens // 8), start + layout.mask), count=tokens, bitorder="little"
            ).view(bool),
        )

    def check(self) -> list[Damage]:
        """Read every byte; everything that is wrong with the shards' contents, in order."""
        found: list[Damage] = []
        for shard, index in enumerate(self._indexes):
            try:
                self._map(shard)
            except DataError as error:
                found.append(Damage(self.entries[shard]["file"], None, 0, error.what))
                continue
            checks = (self._check_group(shard, local) for local in range(len(index.offsets)))
            found += [damage for damage in checks if damage is not None]
        return found

    def _read_indexes(self) -> tuple[list[Damage], list[ShardIndex]]:
        damages, indexes = [], []
        for entry in self.entries:
            found = self._read_index(entry)
            if isinstance(found, Damage):
                damages.append(found)
            else:
                indexes.append(found)
        return damages, indexes

    def _read_index(self, entry: dict[str, Any]) -> Damage | ShardIndex:
        path, index_file = self.folder / entry["file"], self.folder / entry["index"]
        for file in (path, index_file):
            if not file.is_file():
                return Damage(file.name, None, 0, "file of the shard set is missing")
        size = path.stat().st_size
        if size != entry["bytes"]:
            whole = "is empty" if size == 0 else f"has {size} bytes, its manifest says {entry['bytes']}"
            return Damage(path.name, None, min(size, entry["bytes"]), f"the shard {whole}")
        data = _mapped(index_file) if index_file.stat().st_size else memoryview(b"")
        if hashlib.sha256(data).hexdigest() != entry["index_sha256"]:
            return Damage(index_file.name, None, 0, "the index differs from the manifest: damaged, or of another set")
        index = ShardIndex.from_buffer(data, str(index_file))
        agreed = (len(index.offsets), len(index.lengths), index.tokens, index.shard_bytes)
        if agreed != (entry["groups"], entry["samples"], entry["tokens"], entry["bytes"]):
            return Damage(index_file.name, None, 0, "the index and the manifest count differently")
        return index

    def _report(self, damages: list[Damage]) -> DataError:
        if len(damages) == 1:
            return damages[0].error(self.folder)
        listed = "; ".join(str(damage) for damage in damages[:20]) + ("; …" if len(damages) > 20 else "")
        return DataError(f"{len(damages)} files of the shard set are bad: {listed}", where=str(self.folder), mend=MEND)

    def _locate(self, group: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._first_group, group, side="right")) - 1
        return shard, group - int(self._first_group[shard])

    def _check_group(self, shard: int, local: int) -> Damage | None:
        index, data = self._indexes[shard], self._map(shard)
        start, size, file = int(index.offsets[local]), int(index.sizes[local]), self.entries[shard]["file"]
        lengths = index.lengths[self._starts[shard][local] : self._starts[shard][local + 1]]
        if size != group_layout(len(lengths), int(lengths.sum(dtype=np.int64))).size or start + size > len(data):
            return Damage(file, local, start, "the group's size in the index does not fit its samples")
        found, wanted = zlib.crc32(data[start : start + size]), int(index.crcs[local])
        if found != wanted:
            key = group_key(index.number, local)
            what = f"the group {key} is damaged (crc32 {found:08x}, index says {wanted:08x})"
            return Damage(file, local, start, what)
        return None

    def _map(self, shard: int) -> memoryview:
        """A shard's bytes; its head and end members are checked when it is opened."""
        with self._lock:
            if shard in self._maps:
                self._maps.move_to_end(shard)
                return self._maps[shard]
            data = _mapped(self.folder / self.entries[shard]["file"])
            self._check_frame(shard, data)
            self._maps[shard] = data
            if len(self._maps) > OPEN_SHARDS:
                self._maps.popitem(last=False)  # arrays that alias it keep the mapping alive
            return data

    def _check_frame(self, shard: int, data: memoryview) -> None:
        index, file = self._indexes[shard], self.entries[shard]["file"]
        first, last = int(index.offsets[0]), int(index.offsets[-1] + index.sizes[-1])
        if len(data) != index.shard_bytes:
            what = f"the shard has {len(data)} bytes, its index says {index.shard_bytes}"
            raise Damage(file, None, min(len(data), index.shard_bytes), what).error(self.folder)
        if zlib.crc32(data[:first]) != index.head_crc:
            raise Damage(file, None, 0, "the shard's head member is damaged, or of another shard").error(self.folder)
        if zlib.crc32(data[last:]) != index.tail_crc:
            raise Damage(file, None, last, "the shard's end member is damaged").error(self.folder)
        head = json.loads(bytes(data[fmt.BLOCK : first]).rstrip(b"\0"))
        if head["vocabulary"] != self.vocabulary.fingerprint or head["shard"] != index.number:
            what = "the shard was written with another vocabulary or number than the manifest says"
            raise Damage(file, None, 0, what).error(self.folder)


def _mapped(path: Path) -> memoryview:
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
