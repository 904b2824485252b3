"""A shard read in one pass: the same samples, and nothing in the stream is trusted."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
from shard_sets import make_samples, make_set

from slm.data import format as fmt
from slm.data.reader import DamageError, ShardSet
from slm.data.stream import stream_shard

SHARD = fmt.shard_name(1)


def read(source, **limits):
    return list(stream_shard(source, **limits))


def data_of(shard_set) -> bytearray:
    return bytearray((shard_set / SHARD).read_bytes())


def member(shard_set, suffix, group=2):
    with tarfile.open(shard_set / SHARD, "r:") as tar:
        return next(m for m in tar.getmembers() if m.name.endswith(f"g{group:08d}{suffix}"))


def error_of(data) -> DamageError:
    with pytest.raises(DamageError) as caught:
        read(io.BytesIO(bytes(data)))
    return caught.value


def test_the_same_groups_as_by_index(shard_set):
    wanted = ShardSet(shard_set)
    found = [pair for path in sorted(shard_set.glob("*.tar")) for pair in read(path)]
    assert [key for key, _ in found[:2]] == ["s000000g00000000", "s000000g00000001"]
    assert len(found) == wanted.groups
    for number, (_, group) in enumerate(found):
        for mine, theirs in zip(group, wanted.read_group(number), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_a_source_that_gives_little_at_a_time(shard_set):
    class Pipe(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, 100))

    assert len(read(Pipe(bytes(data_of(shard_set))))) == len(read(shard_set / SHARD))


def test_a_compressed_shard_and_a_url(shard_set, tmp_path):
    zstandard = pytest.importorskip("zstandard")
    path = tmp_path / f"{SHARD}.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(bytes(data_of(shard_set))))
    keys = [key for key, _ in read(shard_set / SHARD)]
    assert [key for key, _ in read(path)] == keys == [key for key, _ in read(f"file://{shard_set / SHARD}")]


CUTS = {
    "at a member border": (lambda s: member(s, ".ids.npy").offset, "border of a member"),
    "in a header": (lambda s: member(s, ".len.npy").offset + 100, "in a header"),
    "in data": (lambda s: member(s, ".ids.npy").offset_data + 200, "in the data"),
    "before the end blocks": (lambda s: len(data_of(s)) - 1024, "end blocks"),
    "between the end blocks": (lambda s: len(data_of(s)) - 512, "end blocks"),
    "to nothing": (lambda s: 0, "border of a member"),
}


@pytest.mark.parametrize("where", CUTS)
def test_cut(shard_set, where):
    at, says = CUTS[where]
    error = error_of(data_of(shard_set)[: at(shard_set)])
    assert says in error.what and "byte" in error.where


@pytest.mark.parametrize("suffix", [".ids.npy", ".len.npy", ".mask.npy"])
@pytest.mark.parametrize("part", ["header", "npy header", "data", "padding"])
def test_one_flipped_bit(shard_set, suffix, part):
    found = member(shard_set, suffix)
    at = {
        "header": found.offset + 3,
        "npy header": found.offset_data + 20,
        "data": found.offset_data + 130,
        "padding": found.offset_data + found.size + 1,
    }[part]
    data = data_of(shard_set)
    data[at] ^= 1 << 3
    assert "group 2" in error_of(data).where


def test_not_a_tar_and_something_behind_the_end(shard_set):
    assert "tar header" in error_of(b"x" * 4096).what
    assert "end blocks" in error_of(data_of(shard_set) + b"\0").what


def with_member(shard_set, info: tarfile.TarInfo, data: bytes = b"") -> bytes:
    """The shard with one more member in front of its second group."""
    info.size = len(data)
    at = member(shard_set, ".ids.npy", 1).offset
    raw = data_of(shard_set)
    return (
        bytes(raw[:at]) + info.tobuf(tarfile.USTAR_FORMAT) + data.ljust(fmt.padded(len(data)), b"\0") + bytes(raw[at:])
    )


def entry(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    ("info", "says"),
    [
        (entry("s000001g00000001.ids.npy", tarfile.SYMTYPE, "/etc/passwd"), "no links"),
        (entry("s000001g00000001.ids.npy", tarfile.LNKTYPE, "x"), "no links"),
        (entry("folder", tarfile.DIRTYPE), "no links"),
        (entry("/etc/passwd"), "leads out"),
        (entry("a/../../b"), "leads out"),
        (entry("s000001g00000007.ids.npy"), "expected group s000001g00000001"),
        (entry("s000001g00000001.pyd"), "expected group"),
    ],
)
def test_members_that_no_shard_holds(shard_set, info, says):
    assert says in error_of(with_member(shard_set, info)).what


def test_a_member_that_claims_to_be_huge_costs_no_memory(shard_set):
    raw, at = data_of(shard_set), member(shard_set, ".ids.npy", 1).offset
    info = entry("s000001g00000001.ids.npy")
    info.size = 8**11 - 1
    raw[at : at + 512] = info.tobuf(tarfile.USTAR_FORMAT)
    assert "claims 8589934591 bytes" in error_of(raw).what
    with pytest.raises(DamageError, match="claims"):
        read(shard_set / SHARD, max_member=100)


@pytest.mark.parametrize("array", [np.array([{"run": "this"}], dtype=object), np.zeros((2, 2), "<i4"), np.zeros(3)])
def test_arrays_that_no_shard_holds_are_refused_not_unpickled(shard_set, array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    raw, first = data_of(shard_set), member(shard_set, ".ids.npy", 1)
    lengths = member(shard_set, ".len.npy", 1)
    replaced = fmt.member_bytes(first.name, buffer.getvalue())
    assert "no .npy file" in (error := error_of(raw[: first.offset] + replaced + raw[lengths.offset :])).what or (
        "holds <f8" in error.what
    )


def test_an_end_member_that_says_otherwise(tmp_path):
    folder = make_set(tmp_path / "set", make_samples(20))
    path = folder / fmt.shard_name(0)
    raw = path.read_bytes()
    with tarfile.open(path, "r:") as tar:
        end = tar.getmembers()[-1]
        about = json.loads(tar.extractfile(end).read())
    changed = fmt.member_bytes(fmt.END_MEMBER, json.dumps(about | {"samples": 21}).encode())
    assert "20 samples" in error_of(raw[: end.offset] + changed + fmt.TAR_END).what


def test_a_missing_file(tmp_path):
    with pytest.raises(DamageError, match="No such file"):
        read(tmp_path / "none.tar")
