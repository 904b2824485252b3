"""Compressed sets: back to the very same set, readable by stock tools, damage named."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from published_sets import (
    hashes,
)

from slm.artifact import read_manifest, verify
from slm.data.cold import unpack
from slm.data.job import build_shard_set
from slm.data.reader import ShardSet
from slm.errors import DataError

ROOT = Path(__file__).parents[2]


def test_a_compressed_set_unpacks_to_the_set_itself(many):
    warm, cold = many("warm"), many("cold", "compress=zstd")
    build_shard_set(warm)
    build_shard_set(cold, task=(0, 2))
    build_shard_set(cold)
    names = sorted(path.name for path in Path(cold.out).iterdir())
    assert names[1:3] == ["shard-000000.idx", "shard-000000.tar.zst"] and not any(n.endswith(".tar") for n in names)
    assert build_shard_set(cold) is False
    verify(cold.out)
    with pytest.raises(DataError, match="expected shards, found cold-shards"):
        ShardSet(cold.out)
    manifest = unpack(cold.out, many.folder / "back")
    assert hashes(many.folder / "back") == hashes(warm.out)
    assert manifest.fingerprint == read_manifest(warm.out).fingerprint
    assert build_shard_set(many("back")) is False, "unpacked, the set is what the job would build"


def test_stock_zstd_and_tar_unpack_a_shard(many):
    job = many("cold", "compress=zstd")
    build_shard_set(job)
    if shutil.which("zstd") is None:
        pytest.skip("the program zstd is not installed")
    shard = Path(job.out) / "shard-000000.tar.zst"
    raw = subprocess.run(["zstd", "-dc", str(shard)], capture_output=True, check=True).stdout
    assert len(raw) == read_manifest(job.out).about["shards"][0]["bytes"]
    import webdataset

    found = list(webdataset.WebDataset(f"pipe:zstd -dc {shard}", shardshuffle=False).decode())
    assert sum(len(group["len.npy"]) for group in found) == 13


def test_damage_to_a_compressed_set_is_named(many):
    job = many("cold", "compress=zstd")
    build_shard_set(job)
    shard = Path(job.out) / "shard-000003.tar.zst"
    good = shard.read_bytes()
    for bad in (
        good[:-40],
        good[:200] + bytes([good[200] ^ 1]) + good[201:],
        (Path(job.out) / "shard-000001.tar.zst").read_bytes(),
    ):
        shard.write_bytes(bad)
        with pytest.raises(DataError) as caught:
            unpack(job.out, many.folder / "back")
        assert caught.value.where == str(shard)
    shard.unlink()
    with pytest.raises(DataError, match="missing"):
        unpack(job.out, many.folder / "back")
    shard.write_bytes(good)
    index = Path(job.out) / "shard-000003.idx"
    index.write_bytes(index.read_bytes()[:-4])
    with pytest.raises(DataError, match="index"):
        unpack(job.out, many.folder / "back")
    assert not (many.folder / "back").exists()
