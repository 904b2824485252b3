"""Reading a shard as a stream: one pass, no index, no seeking; every member is checked before it is believed.

For tools and cold storage: a pipe, a socket, a compressed file. Training reads by index (`slm.data.reader`).
A stream may come from anywhere, so nothing in it is trusted: members are plain files with the names of format
1 and bounded sizes, no links; array headers are matched, never evaluated or unpickled.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from slm.data import format as fmt
from slm.data.reader import Damage, DamageError, Group
from slm.errors import MachineError
from slm.remote import is_url, open_filesystem

MAX_MEMBER = 2**30
"""Bytes of a member at most; a group of 256 samples has about half a MiB."""
CHUNK = 2**20
NPY_PREFIX = b"\x93NUMPY\x01\x00"
NPY_HEADER = re.compile(rb"\{'descr': '([<|]\w\d)', 'fortran_order': False, 'shape': \((\d{1,18}),\), \} *\n")
KEY = re.compile(r"s(\d{6,})g(\d{8,})$")


class _Member(NamedTuple):
    name: str
    data: bytes
    start: int
    crc: int


def stream_shard(source: str | Path | IO[bytes], *, max_member: int = MAX_MEMBER) -> Iterator[tuple[str, Group]]:
    """The groups of one shard, in order, as (key, samples).

    The checksums lie at the shard's end: a group is given before they are read, and what does not agree with
    them is an error after the last group. Who must not use a damaged sample reads the iterator to its end first.

    Args:
        source: a path, a URL, or an open binary file; a name that ends in `.zst` is decompressed.
        max_member: bytes of a member at most.

    Raises:
        DamageError: not a shard of format 1, cut, changed, or holding what no shard holds; names the source,
            group and byte offset (of the decompressed tar).
        ConfigError, MachineError: a URL that may not, or can't, be read.
    """
    name = str(source) if isinstance(source, str | Path) else str(getattr(source, "name", "stream"))
    with ExitStack() as stack:
        file = stack.enter_context(_opened(name)) if isinstance(source, str | Path) else source
        if name.partition("?")[0].endswith(".zst"):
            file = stack.enter_context(_decompressed(file, name))
        yield from _Stream(file, name, max_member).groups()


class _Stream:
    def __init__(self, file: IO[bytes], name: str, max_member: int) -> None:
        self.file, self.name, self.max_member = file, name, max_member
        self.at = 0
        self.group: int | None = None

    def groups(self) -> Iterator[tuple[str, Group]]:
        head = self._member()
        if head is None or head.name != fmt.HEAD_MEMBER:
            raise self._bad(0, "not a shard: it does not start with the head member")
        shard = self._json(head)
        if (shard.get("format"), shard.get("version")) != ("slm shards", fmt.FORMAT):
            raise self._bad(0, f"not a shard of format {fmt.FORMAT}")
        crcs: list[int] = []
        starts: list[int] = []
        counts = {"groups": 0, "samples": 0, "tokens": 0, "supervised_tokens": 0}
        while True:
            self.group = len(crcs)
            member = self._member()
            if member is None:
                raise self._bad(self.at, "the shard ends without its end member: it was cut")
            if member.name == fmt.END_MEMBER:
                break
            key, group, crc = self._group(member, int(shard["shard"]))
            crcs.append(crc)
            starts.append(member.start)
            sizes = (1, len(group.lengths), len(group.ids), int(group.mask.sum()))
            counts = {what: n + more for (what, n), more in zip(counts.items(), sizes, strict=True)}
            yield key, group
        self.group = None
        self._check_end(member, counts, crcs, starts)

    def _group(self, ids_member: _Member, shard: int) -> tuple[str, Group, int]:
        """The group that starts with a member, and the crc32 of its bytes."""
        key = ids_member.name.removesuffix(fmt.IDS)
        found = KEY.match(key)
        if found is None or (int(found[1]), int(found[2])) != (shard, self.group):
            what = f"expected group {fmt.group_key(shard, self.group or 0)}, found {ids_member.name}"
            raise self._bad(ids_member.start, what)
        members, crc = [ids_member], ids_member.crc
        for suffix in (fmt.LENGTHS, fmt.MASK):
            member = self._member(crc)
            if member is None or member.name != key + suffix:
                raise self._bad(ids_member.start, f"the group {key} has no {suffix}")
            members.append(member)
            crc = member.crc
        ids, lengths, bits = (
            self._array(member, dtype) for member, dtype in zip(members, ("<i4", "<u4", "|u1"), strict=True)
        )
        if int(lengths.sum(dtype=np.uint64)) != len(ids) or len(bits) != -(-len(ids) // 8) or not lengths.all():
            raise self._bad(ids_member.start, f"the arrays of the group {key} do not fit each other")
        mask = np.unpackbits(bits, count=len(ids), bitorder="little").view(bool)
        return key, Group(ids, lengths, mask), crc

    def _member(self, crc: int = 0) -> _Member | None:
        """The next member, None at the end blocks; `crc` goes on over its header, data and padding."""
        start = self.at
        header = self._read(fmt.BLOCK)
        if len(header) < fmt.BLOCK:
            raise self._bad(start, f"the shard is cut {'in a header' if header else 'at the border of a member'}")
        if not any(header):
            return None
        name, size = self._header(header, start)
        data = self._read(fmt.padded(size))
        if len(data) < fmt.padded(size):
            raise self._bad(start, f"the shard is cut in the data of {name}")
        return _Member(name, data[:size], start, zlib.crc32(data, zlib.crc32(header, crc)))

    def _header(self, header: bytes, start: int) -> tuple[str, int]:
        """Name and size of a member; anything but a small plain file with a relative name is refused."""
        stated = header[148:156].rstrip(b"\0 ")
        summed = sum(header[:148]) + 8 * 32 + sum(header[156:])
        if header[257:265] != b"ustar\x0000" or stated != b"%06o" % summed:
            raise self._bad(start, "not a tar header, or a damaged one (its checksum does not fit)")
        if header[156:157] not in (b"0", b"\0") or any(header[157:257]) or any(header[345:500]):
            raise self._bad(start, "a shard holds plain files only, no links, folders or long names")
        try:
            name, size = header[:100].rstrip(b"\0").decode("ascii"), int(header[124:136].rstrip(b"\0 "), 8)
        except ValueError:
            raise self._bad(start, "a member's name or size can't be read") from None
        if not name or name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
            raise self._bad(start, f"a member's name leads out of the shard: {name!r}")
        if size > self.max_member:
            raise self._bad(start, f"the member {name} claims {size} bytes, {self.max_member} are allowed")
        return name, size

    def _array(self, member: _Member, dtype: str) -> np.ndarray:
        data, end = member.data, fmt.NPY_HEADER
        found = NPY_HEADER.fullmatch(data[len(NPY_PREFIX) + 2 : end])
        if data[: len(NPY_PREFIX)] != NPY_PREFIX or data[8:10] != (end - 10).to_bytes(2, "little") or found is None:
            raise self._bad(member.start, f"{member.name} is no .npy file of format 1")
        kind, count = found[1].decode(), int(found[2])
        if kind != dtype or len(data) - end != count * np.dtype(dtype).itemsize:
            raise self._bad(member.start, f"{member.name} holds {kind} × {count} in {len(data) - end} bytes")
        return np.frombuffer(data, dtype, count, end)

    def _json(self, member: _Member) -> dict[str, Any]:
        try:
            value = json.loads(member.data)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise self._bad(member.start, f"{member.name} is no JSON object")
        return value

    def _check_end(self, member: _Member, counts: dict[str, int], crcs: list[int], starts: list[int]) -> None:
        stated = self._json(member)
        wanted = stated.get("crc32")
        if not isinstance(wanted, list) or len(wanted) != len(crcs):
            raise self._bad(member.start, f"the shard has {len(crcs)} groups, its end member tells of others")
        for group, (found, crc) in enumerate(zip(crcs, wanted, strict=True)):
            if found != crc:
                self.group = group
                raise self._bad(starts[group], f"the group is damaged (crc32 {found:08x}, end member says {crc})")
        for what, count in counts.items():
            if stated.get(what) != count:
                raise self._bad(member.start, f"the shard has {count} {what}, its end member says {stated.get(what)}")
        start = self.at
        if self._read(len(fmt.TAR_END) + 1) != fmt.TAR_END:
            raise self._bad(start, "the shard does not end with its two end blocks")

    def _read(self, size: int) -> bytes:
        """So many bytes, fewer at the end: in pieces, for a size that lies must not cost memory."""
        pieces: list[bytes] = []
        while size > 0:
            piece = self.file.read(min(size, CHUNK))
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
            self.at += len(piece)
        return b"".join(pieces)

    def _bad(self, at: int, what: str) -> DamageError:
        return Damage(self.name, self.group, at, what).error(self.name)


def _opened(name: str) -> Any:
    if is_url(name):
        return open_filesystem(name).open(name, "rb")
    try:
        return open(name, "rb")
    except OSError as error:
        raise DamageError(error.strerror or str(error), where=name) from error


def _decompressed(file: IO[bytes], name: str) -> Any:
    try:
        import zstandard
    except ImportError:
        raise MachineError("zstandard is not installed", where=name, mend="pip install zstandard") from None
    return zstandard.ZstdDecompressor().stream_reader(file)
