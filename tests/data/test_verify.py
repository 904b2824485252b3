"""Verifying a set: all bad places, each by file, group and offset; nothing that is good is called bad."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from shard_sets import make_samples, make_set

from slm.artifact import MANIFEST
from slm.data.format import shard_name
from slm.data.reader import ShardSet
from slm.data.storage import LocalFolder
from slm.data.verify import set_bytes, set_manifest, verify_shards
from slm.errors import DataError

NAMES = [shard_name(i) for i in range(4)]


@pytest.fixture
def shard_set(tmp_path, samples):
    """100 samples in groups of 8, of which the four shards hold 4, 4, 4 and 1."""
    folder = make_set(tmp_path / "set", samples, shard_bytes=14_000)
    assert [entry["groups"] for entry in ShardSet(folder).entries] == [4, 4, 4, 1]
    return folder


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 8
    path.write_bytes(bytes(data))


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def places(found):
    return [(damage.file, damage.group) for damage in found.damages]


def offsets(folder, shard):
    return ShardSet(folder)._indexes[shard].offsets.tolist()


def test_a_good_set_is_good_and_every_byte_is_counted(shard_set):
    seen = []
    found = verify_shards(shard_set, full=True, progress=seen.append)
    assert found.ok and found.strays == [] and found.bad_files == []
    assert (found.shards, found.groups, found.samples) == (4, 13, 100)
    on_disk = sum(path.stat().st_size for path in shard_set.iterdir() if path.name != MANIFEST)
    assert sum(seen) == found.bytes == set_bytes(set_manifest(shard_set)) == on_disk
    assert verify_shards(shard_set).ok


def test_damage_of_every_kind_at_once_is_all_found(shard_set):
    starts = offsets(shard_set, 0)
    flip(shard_set / NAMES[0], starts[1] + 700)
    flip(shard_set / NAMES[0], starts[2] + 600)
    cut(shard_set / NAMES[1], offsets(shard_set, 1)[2] + 100)
    (shard_set / NAMES[2]).unlink()
    flip(shard_set / "shard-000003.idx", 70)
    quick = verify_shards(shard_set)
    assert places(quick) == [(NAMES[1], 2), (NAMES[2], None), ("shard-000003.idx", None)]
    full = verify_shards(shard_set, full=True)
    assert places(full) == [(NAMES[0], 1), (NAMES[0], 2), *places(quick)]
    assert [damage.offset for damage in full.damages[:2]] == starts[1:3]
    assert "s000000g00000001" in full.damages[0].what
    assert "2 of 4 groups are cut off" in full.damages[2].what
    assert full.bad_files == [NAMES[0], NAMES[1], NAMES[2], "shard-000003.idx"]


@pytest.mark.parametrize(
    ("at", "words"), [(5, "head member"), (520, "head member"), (-1500, "end member"), (-3, "end member")]
)
def test_head_and_end_are_checked_without_reading_everything(shard_set, at, words):
    flip(shard_set / NAMES[1], at)
    (damage,) = verify_shards(shard_set).damages
    assert damage.file == NAMES[1] and words in damage.what


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "is empty"), (-1024, "its end is cut off, its groups are whole"), (10, "4 of 4 groups are cut off")],
)
def test_a_cut_shard_says_what_is_lost(shard_set, size, words):
    cut(shard_set / NAMES[1], size)
    for full in (False, True):
        (damage,) = verify_shards(shard_set, full=full).damages
        assert damage.file == NAMES[1] and words in damage.what


def test_a_shard_that_grew(shard_set):
    path = shard_set / NAMES[0]
    path.write_bytes(path.read_bytes() + b"x")
    (damage,) = verify_shards(shard_set, full=True).damages
    assert damage.file == NAMES[0] and damage.offset == path.stat().st_size - 1


def test_not_a_tar(shard_set):
    path = shard_set / NAMES[1]
    path.write_bytes(b"x" * path.stat().st_size)
    found = verify_shards(shard_set, full=True)
    assert [group for _, group in places(found)] == [None, 0, 1, 2, 3, None]
    assert found.bad_files == [NAMES[1]]


@pytest.mark.parametrize("suffixes", [(".tar",), (".idx",), (".tar", ".idx")])
def test_swapped_files_are_found_without_reading_everything(tmp_path, suffixes):
    samples = [(ids[:10], mask[:10]) for ids, mask in make_samples(64) if len(ids) >= 10][:32]
    folder = make_set(tmp_path / "set", samples, shard_bytes=1)
    for suffix in suffixes:
        a, b, aside = folder / f"shard-000000{suffix}", folder / f"shard-000001{suffix}", folder / "aside"
        a.rename(aside), b.rename(a), aside.rename(b)
    found = verify_shards(folder)
    stems = {damage.file.partition(".")[0] for damage in found.damages}
    assert stems == {"shard-000000", "shard-000001"}


def test_shard_and_index_of_another_build_only_the_manifest_knows(tmp_path):
    samples = [(ids[:10], mask[:10]) for ids, mask in make_samples(64) if len(ids) >= 10][:32]
    folder = make_set(tmp_path / "set", samples, shard_bytes=1)
    other = make_set(tmp_path / "other", [(ids[::-1].copy(), mask) for ids, mask in samples], shard_bytes=1)
    (folder / NAMES[0]).write_bytes((other / NAMES[0]).read_bytes())
    (folder / "shard-000000.idx").write_bytes((other / "shard-000000.idx").read_bytes())
    assert verify_shards(folder).bad_files == ["shard-000000.idx"]
    assert verify_shards(folder, full=True).bad_files == ["shard-000000.idx", NAMES[0]]


def test_a_manifest_that_was_edited(shard_set):
    manifest = json.loads((shard_set / MANIFEST).read_text())
    manifest["about"]["tokens"] += 1
    manifest["config"]["x"] = 1
    (shard_set / MANIFEST).write_text(json.dumps(manifest))
    found = verify_shards(shard_set)
    assert places(found) == [(MANIFEST, None)] * 2
    assert "edited" in found.damages[0].what and "tokens" in found.damages[1].what


def test_files_that_the_manifest_does_not_know_are_told_and_no_damage(shard_set):
    (shard_set / "shard-000009.tar").write_bytes(b"")
    (shard_set / ".shard-000009.tar.1.part").write_bytes(b"")
    found = verify_shards(shard_set)
    assert found.ok and found.strays == [".shard-000009.tar.1.part", "shard-000009.tar"]


def test_nothing_to_check_against(tmp_path, shard_set):
    with pytest.raises(DataError, match="no finished shards"):
        verify_shards(tmp_path)
    manifest = json.loads((shard_set / MANIFEST).read_text())
    for change, words in (({"format": 9}, "format 9"), ({"kind": "base"}, "expected shards"), ({"about": {}}, "lacks")):
        (shard_set / MANIFEST).write_text(json.dumps(manifest | change))
        with pytest.raises(DataError, match=words):
            verify_shards(shard_set)
    (shard_set / MANIFEST).write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        verify_shards(shard_set)


class Unsized(LocalFolder):
    """A place that does not say how large its files are, as servers do."""

    def size(self, name):
        return None if (self.folder / name).is_file() else super().size(name)


def test_where_sizes_are_not_known_the_end_of_a_shard_is_looked_for(shard_set, monkeypatch):
    monkeypatch.setattr("slm.data.verify.open_storage", lambda folder: Unsized(Path(folder)))
    assert verify_shards(shard_set, full=True).ok
    cut(shard_set / NAMES[0], offsets(shard_set, 0)[2] + 100)
    (shard_set / NAMES[1]).write_bytes((shard_set / NAMES[1]).read_bytes() + b"x")
    (shard_set / NAMES[2]).unlink()
    found = verify_shards(shard_set)
    assert places(found) == [(NAMES[0], None), (NAMES[1], None), (NAMES[2], None)]
    assert all("does not end" in damage.what for damage in found.damages[:2])
    assert places(verify_shards(shard_set, full=True))[:3] == [(NAMES[0], 2), (NAMES[0], 3), (NAMES[0], None)]


def test_a_file_that_can_not_be_read_is_a_finding_and_the_others_are_checked(shard_set, monkeypatch):
    class Broken(LocalFolder):
        def part(self, name, start, size):
            if name == NAMES[1]:
                raise OSError(5, "Input/output error", name)
            return super().part(name, start, size)

    monkeypatch.setattr("slm.data.verify.open_storage", lambda folder: Broken(Path(folder)))
    flip(shard_set / NAMES[2], 5)
    found = verify_shards(shard_set)
    assert places(found) == [(NAMES[1], None), (NAMES[2], None)]
    assert "can't be read: Input/output error" in found.damages[0].what
