"""The page about the format is enough: a reader made from it alone, and its printed lines, give the samples back.

Nothing of `slm` is used to read here; names and numbers are those of `data_shards/README.md`.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import tarfile
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from shard_sets import VOCABULARY, make_samples, make_set

PAGE = Path(__file__).parents[2] / "data_shards" / "README.md"


def pad(size):
    return -(-size // 512) * 512


def read_index(data):
    """The index as the page's table gives it: a header of 64 bytes, then five arrays."""
    magic, version, number = struct.unpack_from("<8sII", data, 0)
    groups, samples, tokens = struct.unpack_from("<QQQ", data, 16)
    (tar_bytes,) = struct.unpack_from("<Q", data, 40)
    before_crc, after_crc, arrays_crc, header_crc = struct.unpack_from("<IIII", data, 48)
    assert magic == b"slm-idx\n" and version == 1
    assert zlib.crc32(data[:60]) == header_crc and zlib.crc32(data[64:]) == arrays_crc
    arrays, at = {}, 64
    for name, dtype, count in (
        ("offsets", "<u8", groups), ("sizes", "<u8", groups), ("crc32", "<u4", groups), ("counts", "<u4", groups),
        ("lengths", "<u4", samples),
    ):  # fmt: skip
        arrays[name] = np.frombuffer(data, dtype, count, at)
        at += arrays[name].nbytes
    assert at == len(data)
    facts = {"number": number, "tokens": tokens, "bytes": tar_bytes, "before": before_crc, "after": after_crc}
    return facts | arrays


def read_by_index(folder):
    """Every sample, found by arithmetic alone; every byte under its crc."""
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    assert (manifest["kind"], manifest["format"]) == ("shards", 1)
    for entry in manifest["about"]["shards"]:
        tar = (folder / entry["file"]).read_bytes()
        raw = (folder / entry["index"]).read_bytes()
        assert manifest["files"][entry["file"]]["sha256"] == hashlib.sha256(tar).hexdigest() == entry["sha256"]
        assert manifest["files"][entry["index"]]["sha256"] == hashlib.sha256(raw).hexdigest()
        index = read_index(raw)
        assert index["bytes"] == len(tar) and index["tokens"] == entry["tokens"]
        end = index["offsets"][-1] + index["sizes"][-1]
        assert zlib.crc32(tar[: index["offsets"][0]]) == index["before"] and zlib.crc32(tar[end:]) == index["after"]
        taken = 0
        for offset, size, crc, n in zip(*(index[k] for k in ("offsets", "sizes", "crc32", "counts")), strict=True):
            offset, n = int(offset), int(n)
            assert zlib.crc32(tar[offset : offset + int(size)]) == crc
            lengths = index["lengths"][taken : taken + n].astype(int)
            taken += n
            t = int(lengths.sum())
            a, b, c = 512 + pad(128 + 4 * t), 512 + pad(128 + 4 * n), 512 + pad(128 + -(-t // 8))
            assert a + b + c == size
            ids = np.frombuffer(tar, "<i4", t, offset + 640)
            assert np.frombuffer(tar, "<u4", n, offset + a + 640).tolist() == lengths.tolist()
            packed = tar[offset + a + b + 640 : offset + a + b + 640 + -(-t // 8)]
            mask = [packed[i // 8] >> i % 8 & 1 for i in range(t)]  # bit i of byte j, lowest first, is token 8j + i
            at = 0
            for length in lengths:
                yield ids[at : at + length], mask[at : at + length]
                at += length


def read_by_tar(folder):
    """Every sample through the tar headers, without the index; the two hidden members say what has to be there."""
    for path in sorted(folder.glob("shard-*.tar")):
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
            content = [tar.extractfile(member).read() for member in members]
        assert all((m.mtime, m.uid, m.gid, m.type) == (0, 0, 0, tarfile.REGTYPE) for m in members)
        assert path.read_bytes()[-1024:] == bytes(1024)
        head, end = json.loads(content[0]), json.loads(content[-1])
        assert (members[0].name, members[-1].name) == ("__meta__/shard.json", "__meta__/end.json")
        number = int(path.stem.removeprefix("shard-"))
        assert (head["version"], head["shard"]) == (1, number)
        assert set(head) >= {"format", "version", "shard", "group_size", "vocabulary"}
        assert set(end) >= {"groups", "samples", "tokens", "supervised_tokens", "crc32"}
        body = list(zip(members, content, strict=True))[1:-1]
        assert len(body) == 3 * end["groups"] == 3 * len(end["crc32"])
        samples = tokens = supervised = 0
        for group in range(end["groups"]):
            parts = body[3 * group : 3 * group + 3]
            key = f"s{number:06d}g{group:08d}"
            assert [m.name for m, _ in parts] == [f"{key}.ids.npy", f"{key}.len.npy", f"{key}.mask.npy"]
            ids, lengths, packed = (np.load(io.BytesIO(data), allow_pickle=False) for _, data in parts)
            assert (ids.dtype, lengths.dtype, packed.dtype) == (np.int32, np.uint32, np.uint8)
            assert all(
                len(data) == 128 + array.nbytes for (_, data), array in zip(parts, (ids, lengths, packed), strict=True)
            )
            assert len(lengths) == head["group_size"] or group == end["groups"] - 1
            mask = np.unpackbits(packed, bitorder="little")[: len(ids)]
            samples, tokens, supervised = samples + len(lengths), tokens + len(ids), supervised + int(mask.sum())
            cuts = np.cumsum(lengths)[:-1]
            yield from zip(np.split(ids, cuts), np.split(mask, cuts), strict=True)
        assert (samples, tokens, supervised) == (end["samples"], end["tokens"], end["supervised_tokens"])


def assert_same(found, samples):
    found = list(found)
    assert len(found) == len(samples)
    for (ids, mask), (wanted, wanted_mask) in zip(found, samples, strict=True):
        np.testing.assert_array_equal(ids, wanted)
        np.testing.assert_array_equal(np.asarray(mask, dtype=bool), wanted_mask)


@pytest.mark.parametrize("group_size", [1, 8, 256])
@pytest.mark.parametrize("read", [read_by_index, read_by_tar])
def test_a_reader_made_from_the_page_reads_every_sample(tmp_path, read, group_size):
    samples = make_samples(300)
    folder = make_set(tmp_path / "set", samples, group_size=group_size, shard_bytes=40_000)
    assert len(list(folder.glob("*.tar"))) > 1 or group_size == 256
    assert_same(read(folder), samples)


def test_the_manifest_holds_what_the_page_says(tmp_path):
    samples = make_samples(50)
    folder = make_set(tmp_path / "set", samples)
    about = json.loads((folder / "MANIFEST.json").read_text())["about"]
    lengths = np.array([len(ids) for ids, _ in samples])
    assert about["samples"] == 50 and about["tokens"] == lengths.sum() and about["longest"] == lengths.max()
    assert about["supervised_tokens"] == sum(mask.sum() for _, mask in samples)
    edges, counts = about["length_histogram"]["edges"], about["length_histogram"]["counts"]
    inside = [((lengths > low) & (lengths <= high)).sum() for low, high in pairwise(edges)]
    assert inside == counts and sum(counts) == 50
    assert about["vocabulary"]["size"] == VOCABULARY.size


def test_the_printed_lines_run_as_they_are(tmp_path):
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S)[1]
    assert len(code.strip().splitlines()) <= 6
    samples = make_samples(60)
    folder = make_set(tmp_path / "set", samples)
    assert [path.name for path in folder.glob("*.tar")] == ["shard-000000.tar"]
    body = code.replace("FOLDER", str(folder)).replace("...  #", "found.append((ids, is_label))  #")
    found = []
    exec(compile(body, str(PAGE), "exec"), {"found": found})
    assert_same(found, samples)
    assert all(ids.dtype == np.int32 and is_label.dtype == bool for ids, is_label in found)
