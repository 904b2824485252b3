"""Writing and reading back, by our reader and by stock webdataset."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from shard_sets import VOCABULARY, make_samples, make_set

from slm.data import format as fmt
from slm.data.reader import ShardSet
from slm.data.writer import ShardWriter
from slm.errors import ConfigError, DataError


def read_all(folder):
    found = []
    shards = ShardSet(folder)
    for g in range(shards.groups):
        group = shards.read_group(g)
        ends = np.cumsum(group.lengths, dtype=np.int64)
        assert group.ids.dtype == np.int32 and group.mask.dtype == bool
        found += [(group.ids[e - n : e], group.mask[e - n : e]) for e, n in zip(ends, group.lengths, strict=True)]
    return found


def same(found, wanted):
    assert len(found) == len(wanted)
    for (ids, mask), (wanted_ids, wanted_mask) in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ids, wanted_ids)
        np.testing.assert_array_equal(mask, wanted_mask)


@pytest.mark.parametrize("group_size", [1, 7, 256])
def test_what_was_written_is_read(tmp_path, samples, group_size):
    folder = make_set(tmp_path / "set", samples, group_size=group_size, shard_bytes=6000)
    same(read_all(folder), samples)
    shards = ShardSet(folder)
    assert shards.samples == len(shards.lengths) == 100
    assert shards.tokens == sum(len(ids) for ids, _ in samples) == shards.lengths.sum()
    assert shards.supervised_tokens == sum(mask.sum() for _, mask in samples)
    assert shards.longest == max(len(ids) for ids, _ in samples)
    assert shards.vocabulary == VOCABULARY
    assert shards.check() == []


def test_stock_webdataset_reads_the_same_samples(shard_set, samples):
    import webdataset

    found = []
    files = sorted(str(path) for path in shard_set.glob("*.tar"))
    assert len(files) > 1
    for group in webdataset.WebDataset(files, shardshuffle=False).decode():
        mask = np.unpackbits(group["mask.npy"], bitorder="little").astype(bool)
        cuts = np.cumsum(group["len.npy"])
        found += list(zip(np.split(group["ids.npy"], cuts)[:-1], np.split(mask, cuts)[:-1], strict=True))
    same(found, samples)


def test_shards_are_plain_ustar_with_hidden_head_and_end(shard_set):
    first = shard_set / fmt.shard_name(0)
    raw = first.read_bytes()
    assert raw[257:265] == b"ustar\x0000" and raw.endswith(bytes(1024))
    with tarfile.open(first, "r:") as tar:
        members = tar.getmembers()
    names = [member.name for member in members]
    assert names[0] == "__meta__/shard.json" and names[-1] == "__meta__/end.json"
    assert names[1:4] == [f"s000000g00000000{suffix}" for suffix in (".ids.npy", ".len.npy", ".mask.npy")]
    assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}


def test_array_data_lies_where_the_layout_says_and_numpy_agrees(shard_set):
    shards = ShardSet(shard_set)
    with tarfile.open(shard_set / fmt.shard_name(0), "r:") as tar:
        members = tar.getmembers()[1:4]
        layout = fmt.group_layout(8, int(shards.group_lengths(0).sum()))
        start = members[0].offset
        assert [member.offset_data + fmt.NPY_HEADER - start for member in members] == list(layout[:3])
        arrays = [np.load(io.BytesIO(tar.extractfile(member).read())) for member in members]
    assert [array.dtype for array in arrays] == [np.dtype("<i4"), np.dtype("<u4"), np.uint8]
    assert fmt.INDEX_HEADER.size == 64


def test_the_same_samples_give_the_same_bytes(tmp_path, samples):
    hashes = []
    for name in ("a", "b"):
        folder = make_set(tmp_path / name, samples, shard_bytes=6000)
        files = sorted(path for path in folder.iterdir() if path.suffix in (".tar", ".idx"))
        hashes.append([(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files])
    assert hashes[0] == hashes[1] and len(hashes[0]) > 2


def test_shards_end_at_the_first_group_past_their_size(tmp_path):
    folder = make_set(tmp_path / "set", make_samples(200), shard_bytes=6000)
    sizes = [path.stat().st_size for path in sorted(folder.glob("*.tar"))]
    largest_group = max(fmt.group_layout(8, 8 * 60).size, 0)
    assert all(6000 <= size <= 6000 + largest_group + 4096 for size in sizes[:-1])


def test_on_disk_a_token_costs_little_more_than_its_id(tmp_path):
    rng = np.random.default_rng(0)
    samples = [(rng.integers(0, 1000, 464), np.ones(464, bool)) for _ in range(512)]
    folder = make_set(tmp_path / "set", samples, group_size=256)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size / (512 * 464) < 4.2


def test_an_exception_leaves_complete_shards_only(tmp_path, samples):
    with (
        pytest.raises(RuntimeError),
        ShardWriter(tmp_path, vocabulary=VOCABULARY, group_size=8, shard_bytes=6000) as writer,
    ):
        for ids, mask in samples[:60]:
            writer.add(ids, mask)
        raise RuntimeError
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(name for entry in writer.entries for name in (entry.file, entry.index))


def test_a_sample_that_can_not_be_stored_is_refused(tmp_path):
    writer = ShardWriter(tmp_path, vocabulary=VOCABULARY)
    for ids, mask in (([], []), ([1, 2], [True]), ([-1], [True]), ([1000], [True])):
        with pytest.raises(DataError):
            writer.add(ids, mask)
    with pytest.raises(ConfigError):
        ShardWriter(tmp_path, vocabulary=VOCABULARY, group_size=0)


def test_a_group_past_what_a_tar_header_can_say_is_refused():
    class Huge(bytes):
        def __len__(self):
            return fmt.MAX_MEMBER + 1

    with pytest.raises(DataError, match="tar member"):
        fmt.member_bytes("x", Huge())


def test_the_lines_in_the_readme_read_a_set(tmp_path, samples):
    page = (Path(__file__).parents[2] / "data_shards" / "README.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) == 5
    folder = make_set(tmp_path / "set", samples)
    found: list = []
    code = code.replace("FOLDER", str(folder)).replace("...", "found.append((ids, is_label))")
    exec(code, {"found": found})
    same(found, samples)
