"""Cold storage: a shard set whose tars are compressed with zstd, and back again.

Compression saves about half and ends memory mapping, so it is for sets that wait. `zstd -d` and `tar --zstd` read the
files; `unpack` makes the very set, fingerprint included, that the same job builds without `compress`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from slm.artifact import Manifest, building, file_sha256, read_manifest, write_manifest
from slm.config.shards import COLD_SHARDS, SHARDS
from slm.data.build import files_of
from slm.data.format import FORMAT
from slm.data.writer import ShardEntry
from slm.errors import DataError, MachineError

log = logging.getLogger(__name__)

SUFFIX = ".zst"
LEVEL = 9
BLOCK = 1 << 20
MEND = "copy the file from where it is intact, or build the set again"


@dataclass(frozen=True)
class ColdShard:
    """A compressed shard as a manifest describes it."""

    file: str
    bytes: int
    sha256: str


class _Hashing:
    """A file that hashes and counts what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.bytes += len(data)
        return self.file.write(data)


def compress(shard: Path) -> ColdShard:
    """Replace `shard-*.tar` by `shard-*.tar.zst`; with one zstd version, the same bytes give the same bytes.

    Raises:
        MachineError: the package zstandard is missing.
    """
    out = shard.with_name(shard.name + SUFFIX)
    with open(shard, "rb") as source, _written(out) as sink:
        compressor = _zstandard().ZstdCompressor(level=LEVEL, write_checksum=True)
        compressor.copy_stream(source, sink, size=shard.stat().st_size, read_size=BLOCK)
    shard.unlink()
    return ColdShard(out.name, sink.bytes, sink.sha256.hexdigest())


def unpack(folder: str | Path, out: str | Path) -> Manifest:
    """Make a shard set of a compressed one; `out` appears when every byte has been checked.

    Raises:
        DataError: not a compressed set, or a file that is missing, cut or changed; names it.
        MachineError: the package zstandard is missing, or no space left.
    """
    manifest = read_manifest(folder, COLD_SHARDS)
    entries = [ShardEntry(**entry) for entry in manifest.about["shards"]]
    about = {key: value for key, value in manifest.about.items() if key != "compress"}
    with building(out) as scratch:
        for number, entry in enumerate(entries, 1):
            _decompress(Path(folder) / (entry.file + SUFFIX), scratch / entry.file, entry)
            index = Path(folder) / entry.index
            if not index.is_file() or file_sha256(index) != entry.index_sha256:
                raise DataError("the index is missing or differs from the manifest", where=str(index), mend=MEND)
            shutil.copyfile(index, scratch / entry.index)
            log.info("%s: %d of %d shards", out, number, len(entries))
        return write_manifest(
            scratch, SHARDS, config=manifest.config, inputs=manifest.inputs, about=about,
            files=files_of(entries), format=FORMAT,
        )  # fmt: skip


def _decompress(source: Path, out: Path, entry: ShardEntry) -> None:
    zstandard = _zstandard()
    if not source.is_file():
        raise DataError("shard of the compressed set is missing", where=str(source), mend=MEND)
    try:
        with open(source, "rb") as packed, _written(out) as sink:
            zstandard.ZstdDecompressor().copy_stream(packed, sink, write_size=BLOCK)
    except zstandard.ZstdError as error:
        raise DataError(f"the compressed shard is damaged: {error}", where=str(source), mend=MEND) from None
    if (sink.bytes, sink.sha256.hexdigest()) != (entry.bytes, entry.sha256):
        what = f"the compressed shard holds {sink.bytes} bytes, its manifest says {entry.bytes}"
        if sink.bytes == entry.bytes:
            what = "the compressed shard holds another content than its manifest says (sha256)"
        raise DataError(what, where=str(source), mend=MEND)


@contextmanager
def _written(path: Path) -> Iterator[_Hashing]:
    """A file that appears under its name when the block succeeds, on the disk."""
    part = path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            yield _Hashing(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise MachineError(
            "the package zstandard is not installed", where="compress: zstd", mend="pip install 'slm[cold]'"
        ) from None
    return zstandard
