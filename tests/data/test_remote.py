"""Shard sets behind URLs: a real HTTP server and a real S3 server, and what goes wrong on the way."""

from __future__ import annotations

import socket

import numpy as np
import pytest
from serving import served
from shard_sets import make_samples, make_set

from slm import remote
from slm.config.base import input_fingerprints_of
from slm.data.format import ShardIndex, shard_name
from slm.data.loader import PackedLoader, SourceSpec
from slm.data.reader import ShardSet
from slm.errors import ConfigError, DataError, MachineError

SHARD = shard_name(1)


@pytest.fixture(autouse=True)
def _fast_and_tidy(tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)


def same_groups(ours: ShardSet, theirs: ShardSet) -> None:
    assert ours.groups == theirs.groups and ours.fingerprint == theirs.fingerprint
    for number in range(ours.groups):
        for mine, other in zip(ours.read_group(number), theirs.read_group(number), strict=True):
            np.testing.assert_array_equal(mine, other)


def rows_of(folder, steps=range(12), **changes):
    arguments = {"pack_length": 128, "rows_per_step": 6, "seed": 3, "window": 4} | changes
    loader = PackedLoader([SourceSpec("set", str(folder))], **arguments)
    try:
        return [(row.ids.tolist(), row.supervised.tolist(), row.lengths) for t in steps for row in loader.step(t)]
    finally:
        loader.close()


def change(folder, edit, name=SHARD):
    path = folder / name
    path.write_bytes(bytes(edit(bytearray(path.read_bytes()))))


def test_over_http_the_same_groups_and_the_same_rows(shard_set):
    with served(shard_set) as server:
        same_groups(ShardSet(server.url), ShardSet(shard_set))
        assert rows_of(server.url) == rows_of(shard_set)
        assert rows_of(server.url, workers=3, lanes=2) == rows_of(shard_set, workers=0, lanes=2)
        assert ShardSet(server.url).check() == []
        assert input_fingerprints_of({"shards": server.url}) == input_fingerprints_of({"shards": str(shard_set)})


def test_indexes_are_fetched_once_and_groups_by_range(shard_set, tmp_path):
    with served(shard_set) as server:
        ShardSet(server.url)
        ShardSet(server.url)
        indexes = [path.name for path in shard_set.glob("*.idx")]
        assert len(indexes) > 1 and all(server.asked[name] == 1 for name in indexes)
        kept = list((tmp_path / "cache" / "indexes").iterdir())
        assert len(kept) == len(indexes)
        kept[0].write_bytes(b"damaged")
        ShardSet(server.url)
        assert sorted(server.asked[name] for name in indexes) == [1] * (len(indexes) - 1) + [2]
        assert not any(server.asked[path.name] for path in shard_set.glob("*.tar"))
        one = ShardSet(server.url)
        one.read_group(0)
        # Does it answer ranges; head; end; the group.
        assert server.asked[shard_name(0)] == 4 and one.bytes_read < (shard_set / shard_name(0)).stat().st_size


def test_a_set_that_was_built_again_is_seen(tmp_path):
    first = make_set(tmp_path / "first", make_samples(40))
    second = make_set(tmp_path / "second", make_samples(50))
    with served(first) as server:
        assert ShardSet(server.url).samples == 40
        server.folder = second
        assert ShardSet(server.url).samples == 50


def test_a_window_is_fetched_with_several_requests_in_flight(shard_set):
    with served(shard_set) as server:
        rows_of(server.url, steps=[0], window=16)
        assert 1 < server.most_flying <= 9


def test_a_server_that_fails_now_and_then_is_asked_again(shard_set, caplog):
    with served(shard_set) as server:
        one = ShardSet(server.url)
        server.failures = 3
        assert len(one.read_group(0).ids)
        assert "503" in caplog.text and "trying again" in caplog.text


def test_a_server_that_keeps_failing_is_named_with_shard_group_and_offset(shard_set):
    with served(shard_set) as server:
        one = ShardSet(server.url)
        one.read_group(0)
        server.failures = 10**6
        with pytest.raises(MachineError, match=r"503.*5 tries") as caught:
            one.read_group(1)
        offset = ShardIndex.from_buffer((shard_set / "shard-000000.idx").read_bytes(), "x").offsets[1]
        assert caught.value.where == f"{server.url}/shard-000000.tar group 1 at byte {offset}"
        assert "network" in caught.value.mend


def test_a_server_that_is_not_there():
    with socket.socket() as taken:  # nobody listens on it, and nobody else can
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/set"
        with pytest.raises(MachineError, match="can't be read") as caught:
            ShardSet(url)
    assert url in caught.value.where


def test_no_set_at_the_url(tmp_path):
    with served(tmp_path) as server, pytest.raises(DataError, match="no finished shards") as caught:
        ShardSet(server.url)
    assert caught.value.where == server.url


def test_a_server_that_ignores_ranges(shard_set):
    with served(shard_set, ranges=False) as server:
        with pytest.raises(DataError, match="ignores range requests") as caught:
            ShardSet(server.url).read_group(0)
        assert "206" in caught.value.mend


FLIP = 3000
DAMAGE = {
    "cut": (lambda data: data[:FLIP], "is cut"),
    "nothing": (lambda data: b"", "is empty"),
    "a bit": (lambda data: data[:FLIP] + bytes([data[FLIP] ^ 8]) + data[FLIP + 1 :], "is damaged"),
    "no end blocks": (lambda data: data[:-1024], "is cut"),
    "more behind the end": (lambda data: data + b"\0", "goes on"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_behind_a_url_is_named(shard_set, kind):
    edit, says = DAMAGE[kind]
    change(shard_set, edit)
    with served(shard_set) as server:
        shards = ShardSet(server.url)
        with pytest.raises(DataError, match=says) as caught:
            [shards.read_group(number) for number in range(shards.groups)]
        assert f"{server.url}/{SHARD}" in caught.value.where and "byte" in caught.value.where
        assert SHARD in {damage.file for damage in ShardSet(server.url).check()}


def test_a_missing_shard_and_a_changed_index_behind_a_url(shard_set):
    (shard_set / SHARD).unlink()
    with served(shard_set) as server:
        shards = ShardSet(server.url)
        with pytest.raises(DataError, match="missing"):
            [shards.read_group(number) for number in range(shards.groups)]
        change(shard_set, lambda data: data[:-4], "shard-000002.idx")
        (shard_set / "shard-000000.idx").unlink()
        with pytest.raises(DataError, match="2 files") as caught:
            ShardSet(server.url, cache=shard_set / "none")
        assert "shard-000002.idx" in caught.value.what and "shard-000000.idx" in caught.value.what


@pytest.mark.parametrize("url", ["pipe:curl http://x/set", "ftp://host/set", "simplecache::http://x/set", "gopher://x"])
def test_only_listed_schemes_are_opened(url):
    for location in (url, f"{url}/"):
        with pytest.raises(ConfigError, match="can't be read by") as caught:
            ShardSet(location)
        assert "https" in caught.value.mend


def test_a_file_url_is_a_local_set(shard_set):
    shards = ShardSet(f"file://{shard_set}")
    same_groups(shards, ShardSet(shard_set))
    assert not shards.is_remote


def test_names_go_before_a_query():
    assert remote.join("https://host/set/?token=1", "a.tar") == "https://host/set/a.tar?token=1"


def test_over_s3(shard_set, monkeypatch):
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "for-the-test",
            "AWS_SECRET_ACCESS_KEY": "for-the-test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="speech")
        for path in shard_set.iterdir():
            s3.upload_file(str(path), "speech", f"sets/{path.name}")
        url = "s3://speech/sets"
        same_groups(ShardSet(url), ShardSet(shard_set))
        assert rows_of(url) == rows_of(shard_set)
        assert ShardSet(url).check() == []
        s3.put_object(Bucket="speech", Key=f"sets/{SHARD}", Body=(shard_set / SHARD).read_bytes()[:FLIP])
        with pytest.raises(DataError, match="is cut"):
            [ShardSet(url).read_group(number) for number in range(ShardSet(url).groups)]
        s3.delete_object(Bucket="speech", Key=f"sets/{SHARD}")
        assert [damage.file for damage in ShardSet(url).check()] == [SHARD]
        with pytest.raises(DataError, match="no finished shards"):
            ShardSet("s3://speech/none")
    finally:
        server.stop()
