"""Checking a shard set as a whole: every bad place of it, not the first one.

`ShardSet` stops at the first thing that is wrong, because a run must; here each shard is judged on
its own, so that one look says what has to be copied again. What is read without `full`: the
manifest, every index, head and end of every shard. With it: every byte, against the crc32 of its
group and the sha256 of its file.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slm.artifact import MANIFEST, Manifest, fingerprint_of, read_manifest
from slm.data import format as fmt
from slm.data.format import ShardIndex, group_key
from slm.data.reader import Damage
from slm.data.storage import Storage, open_storage
from slm.errors import DataError, MachineError, from_os_error
from slm.tokens.vocabulary import Vocabulary

CHUNK = 1 << 20
COUNTED = ("groups", "samples", "tokens", "supervised_tokens")

Progress = Callable[[int], None]
"""Called with the bytes read since the last call."""


@dataclass
class Verification:
    """What was looked at, and what is wrong with it.

    Attributes:
        folder: the shard set.
        full: whether every byte was read.
        shards, groups, samples, tokens, bytes: what the manifest promises.
        damages: everything that is wrong, by shard and offset.
        strays: shard-like files that the manifest does not know: harmless here, but a stock reader
            that is given `*.tar` reads them too.
    """

    folder: str
    full: bool
    shards: int
    groups: int
    samples: int
    tokens: int
    bytes: int
    damages: list[Damage] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damages

    @property
    def bad_files(self) -> list[str]:
        """Files that something is wrong with, each once."""
        return list(dict.fromkeys(damage.file for damage in self.damages))


def verify_shards(folder: str | Path, *, full: bool = False, progress: Progress | None = None) -> Verification:
    """Check a shard set.

    Args:
        folder: the shard set.
        full: read every byte.
        progress: told how many bytes were read, with `full`.

    Raises:
        DataError: no finished shard set of this format: there is nothing to check against.
    """
    manifest = set_manifest(folder)
    files = open_storage(str(folder))
    entries: list[dict[str, Any]] = manifest.about["shards"]
    found = Verification(
        folder=str(folder),
        full=full,
        shards=len(entries),
        groups=int(manifest.about["groups"]),
        samples=int(manifest.about["samples"]),
        tokens=int(manifest.about["tokens"]),
        bytes=set_bytes(manifest),
        damages=_check_manifest(manifest),
    )
    vocabulary = Vocabulary.from_json(manifest.about["vocabulary"]).fingerprint
    for entry in entries:
        found.damages += _Shard(files, entry, vocabulary, progress).check(full)
    known = {entry[name] for entry in entries for name in ("file", "index")}
    found.strays = [name for name in shard_files(Path(folder)) if name not in known]
    return found


def shard_files(folder: Path) -> list[str]:
    """Names of what look like shards, indexes or their unfinished parts in a local folder."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".tar", ".idx", ".part"))


def set_manifest(folder: str | Path) -> Manifest:
    """The manifest of a shard set, with all that is needed to read on.

    Raises:
        DataError: missing, of another kind or format, or without the counts of its shards.
    """
    manifest = read_manifest(folder, fmt.KIND)
    if manifest.format != fmt.FORMAT:
        raise DataError(f"shards of format {manifest.format}, this program reads {fmt.FORMAT}", where=str(folder))
    wanted = {*COUNTED, "longest", "vocabulary", "shards", "length_histogram"}
    lacking = sorted(wanted - manifest.about.keys())
    if lacking:
        where = str(Path(folder) / MANIFEST)
        raise DataError(f"the manifest lacks {', '.join(lacking)}", where=where, mend="build the shard set again")
    return manifest


def set_bytes(manifest: Manifest) -> int:
    """Bytes of all shards and indexes."""
    return sum(int(entry["bytes"]) + int(entry["index_bytes"]) for entry in manifest.about["shards"])


def _check_manifest(manifest: Manifest) -> list[Damage]:
    """Whether the manifest agrees with itself."""
    found = []
    made = (manifest.kind, manifest.format, manifest.config, manifest.inputs, manifest.files)
    if fingerprint_of(*made) != manifest.fingerprint:
        found.append(Damage(MANIFEST, None, 0, "its fingerprint is not that of what it says: it was edited"))
    for name in COUNTED:
        counted = sum(int(entry[name]) for entry in manifest.about["shards"])
        if counted != manifest.about[name]:
            found.append(Damage(MANIFEST, None, 0, f"{name}: {manifest.about[name]}, its shards hold {counted}"))
    return found


class _Shard:
    """One shard and its index against its entry in the manifest."""

    def __init__(self, files: Storage, entry: dict[str, Any], vocabulary: str, progress: Progress | None) -> None:
        self.files, self.entry, self.vocabulary = files, entry, vocabulary
        self.file, self.index_file = entry["file"], entry["index"]
        self.progress = progress or (lambda _: None)

    def check(self, full: bool) -> list[Damage]:
        found, index = self._guarded(self.index_file, self._check_index)
        own, _ = self._guarded(self.file, lambda: (self._check_shard(index, full), None))
        return sorted([*found, *own], key=lambda damage: (damage.file, damage.offset))

    def _guarded(
        self, name: str, check: Callable[[], tuple[list[Damage], ShardIndex | None]]
    ) -> tuple[list[Damage], ShardIndex | None]:
        try:
            return check()
        except FileNotFoundError:
            return [Damage(name, None, 0, "file of the shard set is missing")], None
        except (OSError, MachineError) as error:
            known = error if isinstance(error, MachineError) else from_os_error(error, "reading it")
            return [Damage(name, None, 0, f"can't be read: {known.what}")], None

    def _bad(self, what: str, at: int = 0, group: int | None = None) -> Damage:
        return Damage(self.file, group, at, what)

    def _check_shard(self, index: ShardIndex | None, full: bool) -> list[Damage]:
        wanted = int(self.entry["bytes"])
        size = self.files.size(self.file)
        found = [] if size in (wanted, None) else [self._wrong_size(int(size or 0), index)]
        if size is None:  # then what lies at its end tells whether it ends where it should
            size = wanted + len(self.files.part(self.file, wanted - 1, 2)) - 1
            found = [] if size == wanted else [self._bad(f"the shard does not end at its {wanted:,} bytes", wanted - 1)]
        if index is not None and size:
            found += self._check_frame(index, size)
        if full and size:
            found += self._check_bytes(index, size, quiet=bool(found))
        return found

    def _check_index(self) -> tuple[list[Damage], ShardIndex | None]:
        """Findings, and the index if it can be used."""
        data = self.files.part(self.index_file, 0, int(self.entry["index_bytes"]) + 1)
        self.progress(len(data))
        try:
            index = ShardIndex.from_buffer(data, self.index_file)
        except DataError as error:
            return [Damage(self.index_file, None, 0, error.what)], None
        if hashlib.sha256(data).hexdigest() != self.entry["index_sha256"]:
            what = "differs from the manifest (sha256): the index of another shard or of another set"
            return [Damage(self.index_file, None, 0, what)], None
        ends = index.offsets + index.sizes
        counted = (len(index.offsets), len(index.lengths), index.tokens, index.shard_bytes)
        if (
            counted != tuple(self.entry[name] for name in ("groups", "samples", "tokens", "bytes"))
            or int(index.counts.sum(dtype=np.int64)) != len(index.lengths)
            or int(index.lengths.sum(dtype=np.int64)) != index.tokens
            or not np.array_equal(index.offsets[1:], ends[:-1])
            or not (len(ends) and index.offsets[0] < ends[-1] <= index.shard_bytes)
        ):
            return [Damage(self.index_file, None, 0, "the index and the manifest count differently")], None
        return [], index

    def _wrong_size(self, size: int, index: ShardIndex | None) -> Damage:
        at = min(size, self.entry["bytes"])
        what = "is empty" if size == 0 else f"has {size:,} bytes, its manifest says {self.entry['bytes']:,}"
        if index is None or size > self.entry["bytes"]:
            return self._bad(f"the shard {what}", at)
        whole = int(np.searchsorted(index.offsets + index.sizes, size, side="right"))
        lost = len(index.offsets) - whole
        if not lost:
            return self._bad(f"the shard {what}: its end is cut off, its groups are whole", at)
        return self._bad(f"the shard {what}: {lost} of {len(index.offsets)} groups are cut off", at, whole)

    def _check_frame(self, index: ShardIndex, size: int) -> list[Damage]:
        """The members before the first group and after the last."""
        first, last = int(index.offsets[0]), int(index.offsets[-1] + index.sizes[-1])
        found = []
        head = bytes(self.files.part(self.file, 0, first))
        if size >= first and zlib.crc32(head) != index.head_crc:
            found.append(self._bad("the shard's head member is damaged, or of another shard"))
        elif size >= first:
            said = json.loads(head[fmt.BLOCK :].rstrip(b"\0"))
            if said["vocabulary"] != self.vocabulary or said["shard"] != index.number:
                found.append(
                    self._bad("the shard was written with another vocabulary or number than the manifest says")
                )
        if size != index.shard_bytes:
            return found
        tail = bytes(self.files.part(self.file, last, size - last))
        if zlib.crc32(tail) != index.tail_crc:
            found.append(self._bad("the shard's end member is damaged, or of another shard", last))
            return found
        said = json.loads(tail[fmt.BLOCK :].rstrip(b"\0"))
        if [said[name] for name in COUNTED] != [self.entry[name] for name in COUNTED] or not np.array_equal(
            said["crc32"], index.crcs
        ):
            found.append(self._bad("the shard's end member and the manifest count differently", last))
        return found

    def _check_bytes(self, index: ShardIndex | None, size: int, quiet: bool) -> list[Damage]:
        """Every group's crc32, and the sha256 of the file.

        Args:
            quiet: leave out the sha256, because what is wrong with the shard has been said already.
        """
        found, sha256 = [], hashlib.sha256()
        for group, first, length in _stretches(index, size):
            crc, start, stop = 0, first, first + length
            while start < stop and (chunk := self.files.part(self.file, start, min(CHUNK, stop - start))):
                start += len(chunk)
                crc = zlib.crc32(chunk, crc)
                sha256.update(chunk)
                self.progress(len(chunk))
            if group is not None and index is not None and crc != int(index.crcs[group]):
                key = group_key(index.number, group)
                what = f"the group {key} is damaged (crc32 {crc:08x}, index says {int(index.crcs[group]):08x})"
                found.append(self._bad(what, first, group))
        if not found and not quiet and sha256.hexdigest() != self.entry["sha256"]:
            found.append(self._bad("differs from the manifest (sha256): of another build of this set"))
        return found


def _stretches(index: ShardIndex | None, size: int) -> Iterator[tuple[int | None, int, int]]:
    """(group, start, length) of the file's bytes in order; what is no whole group has None."""
    at = 0
    if index is not None:
        for group, (start, length) in enumerate(zip(index.offsets.tolist(), index.sizes.tolist(), strict=True)):
            if start + length > size:
                break
            if start > at:
                yield None, at, start - at
            yield group, start, length
            at = start + length
    if at < size:
        yield None, at, size - at
