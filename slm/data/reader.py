"""Reading shards: each byte checked against a crc before it is used, in a local folder or behind a URL.

What is checked when: opening a set compares every index's sha256 with the manifest, and the size of every
local shard; the first touch of a shard checks its head and end members; reading a group checks that group.
So a shard that is cut, changed, swapped or missing is an error that says where, never data.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slm.artifact import Manifest, read_manifest
from slm.data import format as fmt
from slm.data.checksum import crc32
from slm.data.format import ShardIndex, group_key, group_layout
from slm.data.storage import REQUESTS, RemoteFolder, open_storage
from slm.errors import ConfigError, DataError, MachineError, SlmError, from_os_error
from slm.tokens.vocabulary import Vocabulary

log = logging.getLogger(__name__)

DAMAGED = ("error", "skip")
MISSING = "file of the shard set is missing"
MEND = "copy the file from where it is intact, or build the shard set again"


class DamageError(DataError):
    """A shard or group whose bytes are not what was written."""


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
        return f"{self.file}{self._group} at byte {self.offset}: {self.what}"

    @property
    def _group(self) -> str:
        return "" if self.group is None else f" group {self.group}"

    def error(self, path: str) -> DamageError:
        """This finding as an exception; `path` is the file's whole path or URL."""
        return DamageError(self.what, where=f"{path}{self._group} at byte {self.offset}", mend=MEND)


class ShardSet:
    """A finished shard set, opened for reading. Safe to use from several threads.

    Args:
        folder: a local folder, or a URL (`slm.remote.SCHEMES`).
        damaged: what opening does about shards that are missing or of another size, and the first touch about a
            bad head or end: `error` raises; `skip` logs it, and leaves to `read_group` which groups are lost.
            A damaged index is always an error: what is in the shard is unknown without it.
        cache: folder for a remote set's indexes; None is `slm.data.storage.cache_folder()`.

    Attributes:
        location: path or URL, as given; `folder` is the same as a path, and means nothing for a URL.
        manifest: of the set.
        vocabulary: of its tokens.
        fingerprint: of the artifact.
        samples, tokens, supervised_tokens, longest: counts; `longest` is the longest sample's tokens.
        groups: number of groups, over all shards.
        is_remote: whether they come over a network.
        bytes_read: bytes of groups asked for so far.

    Raises:
        ConfigError: a scheme that is not allowed.
        DataError: not a shard set, or files missing, of another size, or with another index.
        MachineError: a server that can't be reached.
    """

    def __init__(self, folder: str | Path, *, damaged: str = "error", cache: Path | None = None) -> None:
        if damaged not in DAMAGED:
            raise ConfigError(f"damaged: expected one of {', '.join(DAMAGED)}, got {damaged!r}")
        self.location, self.damaged = str(folder), damaged
        self.folder = Path(_without_file_scheme(self.location))
        self._storage = open_storage(self.location, cache)
        self.is_remote = isinstance(self._storage, RemoteFolder)
        self.manifest: Manifest = read_manifest(_without_file_scheme(self.location), fmt.KIND)
        if self.manifest.format != fmt.FORMAT:
            raise DataError(
                f"shards of format {self.manifest.format}, this program reads {fmt.FORMAT}", where=self.location
            )
        about = self.manifest.about
        self.fingerprint = self.manifest.fingerprint
        self.vocabulary = Vocabulary.from_json(about["vocabulary"])
        self.samples, self.tokens = int(about["samples"]), int(about["tokens"])
        self.supervised_tokens, self.longest = int(about["supervised_tokens"]), int(about["longest"])
        self.entries: list[dict[str, Any]] = about["shards"]
        self.bytes_read = 0
        self._indexes = self._read_indexes()
        counts = np.array([len(index.offsets) for index in self._indexes])
        self._first_group = np.concatenate([[0], np.cumsum(counts)])
        self._starts = [np.concatenate([[0], np.cumsum(index.counts, dtype=np.int64)]) for index in self._indexes]
        self.groups = int(self._first_group[-1])
        self._touched: set[int] = set()
        self._lock = threading.Lock()

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of every sample in the set, uint32, (samples,)."""
        return np.concatenate([index.lengths for index in self._indexes])

    def count_longer(self, capacity: int) -> int:
        """How many samples have more tokens than `capacity`."""
        if self.longest <= capacity:
            return 0
        return sum(int((index.lengths > capacity).sum()) for index in self._indexes)

    def group_lengths(self, group: int) -> np.ndarray:
        """Tokens of every sample of a group, uint32, (samples,); read from the index alone."""
        shard, local = self._locate(group)
        starts = self._starts[shard]
        return self._indexes[shard].lengths[starts[local] : starts[local + 1]]

    def group_name(self, group: int) -> str:
        """Shard file and group number, as errors name it."""
        shard, local = self._locate(group)
        return f"{self.entries[shard]['file']} group {local}"

    def read_group(self, group: int) -> Group:
        """A group's samples, checked.

        Raises:
            DamageError: damaged; names shard, group and byte offset.
            MachineError: it can't be read at all; names the same.
        """
        shard, local = self._locate(group)
        self._touch(shard)
        data = self._checked(shard, local)
        if isinstance(data, Damage):
            raise data.error(self._storage.where(data.file))
        lengths = self.group_lengths(group)
        samples, tokens = len(lengths), int(lengths.sum(dtype=np.int64))
        layout = group_layout(samples, tokens)
        bits = np.frombuffer(data, np.uint8, -(-tokens // 8), layout.mask)
        return Group(
            np.frombuffer(data, "<i4", tokens, layout.ids),
            np.frombuffer(data, "<u4", samples, layout.lengths),
            np.unpackbits(bits, count=tokens, bitorder="little").view(bool),
        )

    def read_ahead(self, groups: Iterable[int]) -> dict[int, Future[Group]]:
        """Start what will be read soon: a hint to a local disk; requests in the background to a server.

        Returns:
            The groups that are on their way; each result is that of `read_group`.
        """
        under_way = {}
        for group in groups:
            future = self._storage.ahead(*self._range(*self._locate(group)), use=partial(self.read_group, group))
            if future is not None:
                under_way[group] = future
        return under_way

    def done_with(self, groups: Iterable[int]) -> None:
        """Let go of the memory that holds groups of which no array is in use any more."""
        for group in groups:
            self._storage.done_with(*self._range(*self._locate(group)))

    def close(self) -> None:
        """Drop what is still on its way; the set can go on being read."""
        self._storage.close()

    def check(self) -> list[Damage]:
        """Read every byte; everything that is wrong with the shards' contents, in order.

        Raises:
            MachineError: a server that can't be reached.
        """
        found: list[Damage] = []
        for shard, index in enumerate(self._indexes):
            frame = self._check_frame(shard)
            if frame is not None:
                found.append(frame)
                if frame.what == MISSING:
                    continue
            checks = (self._checked(shard, local) for local in range(len(index.offsets)))
            found += [damage for damage in checks if isinstance(damage, Damage)]
        return found

    def _read_indexes(self) -> list[ShardIndex]:
        if self.is_remote:
            with ThreadPoolExecutor(REQUESTS) as pool:
                results = list(pool.map(self._read_index, self.entries))
        else:
            results = [self._read_index(entry) for entry in self.entries]
        damages = [damage for _, found in results for damage in found]
        if damages:
            raise self._report(damages)
        return [index for index, _ in results if index is not None]

    def _read_index(self, entry: dict[str, Any]) -> tuple[ShardIndex | None, list[Damage]]:
        """A shard's index, and what is wrong with the two files."""
        damages = []
        shard = self._check_size(entry)
        if shard is not None and self.damaged == "skip":
            log.warning("%s: %s; its groups are skipped as far as they are damaged", self.location, shard)
        elif shard is not None:
            damages.append(shard)
        file = entry["index"]
        try:
            data = self._storage.whole(file, entry["index_sha256"])
        except FileNotFoundError:
            return None, [*damages, Damage(file, None, 0, MISSING)]
        if hashlib.sha256(data).hexdigest() != entry["index_sha256"]:
            what = "the index differs from the manifest: damaged, or of another set"
            return None, [*damages, Damage(file, None, 0, what)]
        index = ShardIndex.from_buffer(data, self._storage.where(file))
        agreed = (len(index.offsets), len(index.lengths), index.tokens, index.shard_bytes)
        if agreed != (entry["groups"], entry["samples"], entry["tokens"], entry["bytes"]):
            damages.append(Damage(file, None, 0, "the index and the manifest count differently"))
        return index, damages

    def _check_size(self, entry: dict[str, Any]) -> Damage | None:
        file, wanted = entry["file"], entry["bytes"]
        try:
            size = self._storage.size(file)
        except FileNotFoundError:
            return Damage(file, None, 0, MISSING)
        if size is None or size == wanted:
            return None
        whole = "is empty" if size == 0 else f"has {size} bytes, its manifest says {wanted}"
        return Damage(file, None, min(size, wanted), f"the shard {whole}")

    def _report(self, damages: list[Damage]) -> DataError:
        if len(damages) == 1:
            return damages[0].error(self._storage.where(damages[0].file))
        listed = "; ".join(str(damage) for damage in damages[:20]) + ("; …" if len(damages) > 20 else "")
        return DataError(f"{len(damages)} files of the shard set are bad: {listed}", where=self.location, mend=MEND)

    def _locate(self, group: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._first_group, group, side="right")) - 1
        return shard, group - int(self._first_group[shard])

    def _range(self, shard: int, local: int) -> tuple[str, int, int]:
        index = self._indexes[shard]
        return self.entries[shard]["file"], int(index.offsets[local]), int(index.sizes[local])

    def _checked(self, shard: int, local: int) -> memoryview | Damage:
        """A group's bytes, or what is wrong with them."""
        index = self._indexes[shard]
        file, start, size = self._range(shard, local)
        lengths = index.lengths[self._starts[shard][local] : self._starts[shard][local + 1]]
        if size != group_layout(len(lengths), int(lengths.sum(dtype=np.int64))).size:
            return Damage(file, local, start, "the group's size in the index does not fit its samples")
        key, wanted = group_key(index.number, local), int(index.crcs[local])
        damage = None
        for _ in range(2 if self.is_remote else 1):  # bytes can also be damaged on their way
            data = self._part(file, local, start, size)
            if isinstance(data, Damage):
                return data
            if len(data) < size:
                what = f"the group {key} is cut: {len(data)} of its {size} bytes are there"
                return Damage(file, local, start, what)
            found = crc32(data)
            if found == wanted:
                self.bytes_read += size
                return data
            damage = Damage(
                file, local, start, f"the group {key} is damaged (crc32 {found:08x}, index says {wanted:08x})"
            )
        assert damage is not None
        return damage

    def _part(self, file: str, local: int | None, start: int, size: int) -> memoryview | Damage:
        try:
            return self._storage.part(file, start, size)
        except FileNotFoundError:
            return Damage(file, local, start, MISSING)
        except (MachineError, OSError) as error:
            known = error if isinstance(error, SlmError) else from_os_error(error, "reading shards")
            at = Damage(file, local, start, known.what).error(self._storage.where(file))
            raise MachineError(known.what, where=at.where, mend=known.mend) from error

    def _touch(self, shard: int) -> None:
        """Check a shard's head and end members when it is first read from."""
        if shard in self._touched:
            return
        frame = self._check_frame(shard)
        with self._lock:
            known = shard in self._touched
            if frame is None or self.damaged == "skip":
                self._touched.add(shard)
        if frame is not None and self.damaged != "skip":
            raise frame.error(self._storage.where(frame.file))
        if frame is not None and not known:
            log.warning("%s: %s; its groups are read as far as they are intact", self.location, frame)

    def _check_frame(self, shard: int) -> Damage | None:
        index, file = self._indexes[shard], self.entries[shard]["file"]
        first, last = int(index.offsets[0]), int(index.offsets[-1] + index.sizes[-1])
        # One byte more than there should be: a shard with something behind its end is not what was written.
        head, tail = self._part(file, None, 0, first), self._part(file, None, last, index.shard_bytes - last + 1)
        for part in (head, tail):
            if isinstance(part, Damage):
                return part
        assert not isinstance(head, Damage) and not isinstance(tail, Damage)
        if len(tail) != index.shard_bytes - last:
            how = "is empty" if not head else "is cut" if len(tail) < index.shard_bytes - last else "goes on"
            return Damage(file, None, last, f"the shard {how}: it does not end at its {index.shard_bytes} bytes")
        if crc32(head) != index.head_crc:
            return Damage(file, None, 0, "the shard's head member is damaged, or of another shard")
        if crc32(tail) != index.tail_crc:
            return Damage(file, None, last, "the shard's end member is damaged")
        about = json.loads(bytes(head[fmt.BLOCK :]).rstrip(b"\0"))
        if about["vocabulary"] != self.vocabulary.fingerprint or about["shard"] != index.number:
            what = "the shard was written with another vocabulary or number than the manifest says"
            return Damage(file, None, 0, what)
        return None


def _without_file_scheme(location: str) -> str:
    return location.removeprefix("file://")
