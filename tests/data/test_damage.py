"""Every kind of damage is found and named; stock readers return half of the samples without a word."""

from __future__ import annotations

import json
import shutil
import tarfile
import zlib

import pytest
from shard_sets import make_samples, make_set

from slm.artifact import MANIFEST
from slm.data.format import ShardIndex, shard_name
from slm.data.reader import ShardSet
from slm.errors import DataError

SHARD = shard_name(1)


def member(folder, suffix, group=2):
    with tarfile.open(folder / SHARD, "r:") as tar:
        return next(m for m in tar.getmembers() if m.name.endswith(f"g{group:08d}{suffix}"))


def change(folder, edit, name=SHARD):
    path = folder / name
    path.write_bytes(bytes(edit(bytearray(path.read_bytes()))))


def flip(at, bit=3):
    def edit(data):
        data[at] ^= 1 << bit
        return data

    return edit


def read_everything(folder):
    shards = ShardSet(folder)
    return [shards.read_group(g) for g in range(shards.groups)]


def error_of(folder) -> DataError:
    with pytest.raises(DataError) as caught:
        read_everything(folder)
    return caught.value


CUTS = {
    "at a member border": lambda folder: member(folder, ".ids.npy").offset,
    "in a header": lambda folder: member(folder, ".ids.npy").offset + 100,
    "in data": lambda folder: member(folder, ".ids.npy").offset_data + 200,
    "before the end blocks": lambda folder: len((folder / SHARD).read_bytes()) - 1024,
    "to nothing": lambda folder: 0,
}


@pytest.mark.parametrize("where", CUTS)
def test_a_cut_shard_is_named_before_anything_is_read(shard_set, where):
    at = CUTS[where](shard_set)
    change(shard_set, lambda data: data[:at])
    with pytest.raises(DataError) as caught:
        ShardSet(shard_set)
    assert SHARD in caught.value.where and f"byte {at}" in caught.value.where


@pytest.mark.parametrize("suffix", [".ids.npy", ".len.npy", ".mask.npy"])
@pytest.mark.parametrize("part", ["header", "npy header", "data", "padding"])
def test_one_flipped_bit_is_named_with_shard_group_and_offset(shard_set, suffix, part):
    found = member(shard_set, suffix)
    at = {
        "header": found.offset + 3,
        "npy header": found.offset_data + 20,
        "data": found.offset_data + 130,
        "padding": found.offset_data + found.size + 1,
    }[part]
    start = member(shard_set, ".ids.npy").offset
    change(shard_set, flip(at))
    error = error_of(shard_set)
    assert "s000001g00000002" in error.what
    assert SHARD in error.where and "group 2" in error.where and f"byte {start}" in error.where
    assert [(d.file, d.group, d.offset) for d in ShardSet(shard_set).check()] == [(SHARD, 2, start)]


@pytest.mark.parametrize("at", [5, 520, -1500, -3])
def test_a_bit_of_the_head_the_end_member_or_the_end_blocks(shard_set, at):
    change(shard_set, flip(at))
    assert SHARD in error_of(shard_set).where
    assert [d.file for d in ShardSet(shard_set).check()] == [SHARD]


def test_every_bad_group_is_listed(shard_set):
    for group in (0, 2):
        change(shard_set, flip(member(shard_set, ".mask.npy", group).offset_data + 130))
    change(shard_set, flip(600), shard_name(0))
    found = [(d.file, d.group) for d in ShardSet(shard_set).check()]
    assert found == [(shard_name(0), None), (SHARD, 0), (SHARD, 2)]


def test_not_a_tar(shard_set):
    change(shard_set, lambda data: b"x" * len(data))
    assert SHARD in error_of(shard_set).where


def test_missing_shards_are_all_listed(shard_set):
    (shard_set / SHARD).unlink()
    (shard_set / "shard-000002.idx").unlink()
    with pytest.raises(DataError) as caught:
        ShardSet(shard_set)
    assert SHARD in str(caught.value) and "shard-000002.idx" in str(caught.value) and "missing" in str(caught.value)


def equal_sized_set(folder):
    """Two shards of equal size with different samples."""
    samples = [(ids[:10], mask[:10]) for ids, mask in make_samples(64) if len(ids) >= 10][:32]
    return make_set(folder, samples, shard_bytes=1)


@pytest.mark.parametrize("suffixes", [(".tar",), (".idx",), (".tar", ".idx")])
def test_swapped_shards(tmp_path, suffixes):
    folder = equal_sized_set(tmp_path / "set")
    for suffix in suffixes:
        a, b, aside = folder / f"shard-000000{suffix}", folder / f"shard-000001{suffix}", folder / "aside"
        assert a.stat().st_size == b.stat().st_size and a.read_bytes() != b.read_bytes()
        a.rename(aside), b.rename(a), aside.rename(b)
    assert "shard-00000" in str(error_of(folder))


def test_an_index_of_another_build(tmp_path):
    folder = equal_sized_set(tmp_path / "set")
    samples = [(ids[:10], mask[:10]) for ids, mask in make_samples(64, seed=1) if len(ids) >= 10][:32]
    other = make_set(tmp_path / "other", samples, shard_bytes=1)
    shutil.copy(other / "shard-000000.idx", folder / "shard-000000.idx")
    assert "shard-000000.idx" in error_of(folder).where


def test_a_shard_of_another_build_of_the_same_size(tmp_path):
    folder = equal_sized_set(tmp_path / "set")
    samples = [(ids[:10], mask[:10]) for ids, mask in make_samples(64, seed=1) if len(ids) >= 10][:32]
    other = make_set(tmp_path / "other", samples, shard_bytes=1)
    shutil.copy(other / "shard-000000.tar", folder / "shard-000000.tar")
    assert "shard-000000.tar" in error_of(folder).where


@pytest.mark.parametrize("at", [9, 40, 63, 64, 100, -1])
def test_every_part_of_an_index_is_covered_by_its_own_crc(shard_set, at):
    data = bytearray((shard_set / "shard-000000.idx").read_bytes())
    assert ShardIndex.from_buffer(bytes(data), "x").number == 0
    with pytest.raises(DataError):
        ShardIndex.from_buffer(bytes(flip(at)(data)), "x")


def test_a_cut_index(shard_set):
    data = (shard_set / "shard-000000.idx").read_bytes()
    for size in (0, 10, 64, len(data) - 4):
        with pytest.raises(DataError):
            ShardIndex.from_buffer(data[:size], "x")
        (shard_set / "shard-000000.idx").write_bytes(data[:size])
        with pytest.raises(DataError, match="index"):
            ShardSet(shard_set)


def test_a_manifest_of_another_vocabulary(shard_set):
    manifest = json.loads((shard_set / MANIFEST).read_text())
    manifest["about"]["vocabulary"]["text_sha256"] = "o" * 64
    (shard_set / MANIFEST).write_text(json.dumps(manifest))
    assert "another vocabulary" in error_of(shard_set).what


def test_an_unfinished_set(shard_set):
    (shard_set / MANIFEST).unlink()
    with pytest.raises(DataError, match="no finished shards"):
        ShardSet(shard_set)


def test_both_implementations_of_the_checksum_agree():
    from slm.data.checksum import crc32

    data = bytes(range(256)) * 3
    for start in (0, 1234):
        assert crc32(memoryview(data), start) == zlib.crc32(data, start)
