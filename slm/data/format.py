"""Format 1, byte for byte: where members lie in a shard, how they are written, what the index holds.

A shard is a USTAR file: a head member, then three members a group, then an end member. Every byte
offset inside a group follows from its number of samples and tokens, so a reader that has the index
parses no tar header at all. The page for people: `data_shards/README.md`.
"""

from __future__ import annotations

import struct
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slm.errors import DataError

FORMAT = 1
KIND = "shards"
GROUP_SIZE = 256
BLOCK = 512
NPY_HEADER = 128
TAR_END = bytes(2 * BLOCK)
HEAD_MEMBER = "__meta__/shard.json"
END_MEMBER = "__meta__/end.json"
IDS, LENGTHS, MASK = ".ids.npy", ".len.npy", ".mask.npy"
MAX_MEMBER = 8**11 - 1  # a USTAR size field holds eleven octal digits

INDEX_MAGIC = b"slm-idx\n"
INDEX_HEADER = struct.Struct("<8sIIQQQQIIII")


def shard_name(number: int) -> str:
    """File name of a shard: 42 -> `shard-000042.tar`."""
    return f"shard-{number:06d}.tar"


def index_path(shard: Path) -> Path:
    """The index that belongs to a shard file."""
    return shard.with_suffix(".idx")


def group_key(shard: int, group: int) -> str:
    """Key of a group, unique in a set: (42, 7) -> `s000042g00000007`."""
    return f"s{shard:06d}g{group:08d}"


def padded(size: int) -> int:
    """A size rounded up to whole tar blocks."""
    return -(-size // BLOCK) * BLOCK


def member_bytes(name: str, data: bytes) -> bytes:
    """One tar member: header, data, padding; the same bytes on every machine and day.

    Raises:
        DataError: too large for a USTAR header.
    """
    if len(data) > MAX_MEMBER:
        raise DataError(f"member {name} has {len(data)} bytes, a tar member holds {MAX_MEMBER}")
    info = tarfile.TarInfo(name)
    info.size = len(data)  # mtime, uid, gid are 0 and the names empty by default
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(padded(len(data)) - len(data))


def npy_bytes(array: np.ndarray) -> bytes:
    """A one-dimensional array as a `.npy` file, format 1.0, with a header of exactly 128 bytes.

    Written here and not by numpy because the length of numpy's own header is numpy's business, and
    offsets inside a group must not depend on its version.
    """
    description = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': ({len(array)},), }}"
    prefix = b"\x93NUMPY\x01\x00" + struct.pack("<H", NPY_HEADER - 10)
    return prefix + description.encode().ljust(NPY_HEADER - 11) + b"\n" + array.tobytes()


class GroupLayout(NamedTuple):
    """Where a group's array data starts, in bytes from the group's first tar header, and its whole size."""

    ids: int
    lengths: int
    mask: int
    size: int


def group_layout(samples: int, tokens: int) -> GroupLayout:
    """The layout of a group of so many samples and tokens."""
    start = BLOCK + NPY_HEADER
    ids = padded(NPY_HEADER + 4 * tokens) + BLOCK
    lengths = padded(NPY_HEADER + 4 * samples) + BLOCK
    mask = padded(NPY_HEADER + -(-tokens // 8)) + BLOCK
    return GroupLayout(start, ids + start, ids + lengths + start, ids + lengths + mask)


def group_bytes(key: str, ids: np.ndarray, lengths: np.ndarray, mask: np.ndarray) -> bytes:
    """A group's three members.

    Args:
        ids: token ids of all samples end to end, (tokens,).
        lengths: tokens of each sample, (samples,).
        mask: True where a token is a label, (tokens,).
    """
    return (
        member_bytes(key + IDS, npy_bytes(ids.astype("<i4")))
        + member_bytes(key + LENGTHS, npy_bytes(lengths.astype("<u4")))
        + member_bytes(key + MASK, npy_bytes(np.packbits(mask, bitorder="little")))
    )


@dataclass(frozen=True)
class ShardIndex:
    """What the sidecar `.idx` says of its shard.

    Attributes:
        number: the shard's number in the set.
        shard_bytes: size of the tar file.
        tokens: tokens in it.
        head_crc, tail_crc: crc32 of the bytes before the first group and after the last.
        offsets, sizes: uint64, (groups,): where each group's members start, and their bytes, headers included.
        crcs: uint32, (groups,): crc32 of those bytes.
        counts: uint32, (groups,): samples of each group.
        lengths: uint32, (samples,): tokens of each sample, in order.
    """

    number: int
    shard_bytes: int
    tokens: int
    head_crc: int
    tail_crc: int
    offsets: np.ndarray
    sizes: np.ndarray
    crcs: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray

    def to_bytes(self) -> bytes:
        """The file: a 64-byte header, then the five arrays, little-endian."""
        body = b"".join(
            [
                self.offsets.astype("<u8").tobytes(),
                self.sizes.astype("<u8").tobytes(),
                self.crcs.astype("<u4").tobytes(),
                self.counts.astype("<u4").tobytes(),
                self.lengths.astype("<u4").tobytes(),
            ]
        )
        fields = (INDEX_MAGIC, FORMAT, self.number, len(self.offsets), len(self.lengths), self.tokens)
        rest = (self.shard_bytes, self.head_crc, self.tail_crc, zlib.crc32(body))
        bare = INDEX_HEADER.pack(*fields, *rest, 0)
        return INDEX_HEADER.pack(*fields, *rest, zlib.crc32(bare[:-4])) + body

    @classmethod
    def from_buffer(cls, data: memoryview | bytes, where: str) -> ShardIndex:
        """Arrays that alias `data`.

        Raises:
            DataError: it is no index, of another format, cut, or changed.
        """
        if len(data) < INDEX_HEADER.size or bytes(data[:8]) != INDEX_MAGIC:
            raise DataError("not a shard index", where=where, mend="build the shard set again")
        fields = INDEX_HEADER.unpack_from(data)
        _, version, number, groups, samples, tokens, size, head, tail, body_crc, own_crc = fields
        wanted = INDEX_HEADER.size + 24 * groups + 4 * samples
        if version != FORMAT:
            raise DataError(f"shard index of format {version}, this program reads {FORMAT}", where=where)
        if (
            zlib.crc32(data[: INDEX_HEADER.size - 4]) != own_crc
            or len(data) != wanted
            or zlib.crc32(data[INDEX_HEADER.size :]) != body_crc
        ):
            raise DataError("the shard index is damaged", where=where, mend="build the shard set again")
        arrays, at = [], INDEX_HEADER.size
        for dtype, count in (("<u8", groups), ("<u8", groups), ("<u4", groups), ("<u4", groups), ("<u4", samples)):
            arrays.append(np.frombuffer(data, dtype, count, at))
            at += arrays[-1].nbytes
        return cls(number, size, tokens, head, tail, *arrays)
