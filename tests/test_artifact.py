from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from support import full_disk

from slm.artifact import building, fingerprint_of, is_current, read_manifest, verify, write_atomic, write_manifest
from slm.errors import CheckpointError, DataError, MachineError


def make(folder, text="x", config=None):
    with building(folder) as scratch:
        (scratch / "a.txt").write_text(text)
        return write_manifest(scratch, "thing", config=config or {"k": 1}, inputs={"in": "f"})


def test_fingerprint_depends_on_bytes_config_and_inputs_only(tmp_path):
    first, again = make(tmp_path / "a"), make(tmp_path / "b")
    assert first.fingerprint == again.fingerprint
    assert make(tmp_path / "c", text="y").fingerprint != first.fingerprint
    assert make(tmp_path / "d", config={"k": 2}).fingerprint != first.fingerprint
    assert first.fingerprint == fingerprint_of("thing", 1, {"k": 1}, {"in": "f"}, first.files)


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path):
    with pytest.raises(DataError, match="no finished thing"):
        read_manifest(tmp_path, "thing")
    make(tmp_path / "a")
    with pytest.raises(DataError, match="expected shards, found thing"):
        read_manifest(tmp_path / "a", "shards")


def test_a_failed_build_leaves_the_old_artifact_and_no_scratch(tmp_path):
    make(tmp_path / "a")
    with pytest.raises(RuntimeError), building(tmp_path / "a") as scratch:
        (scratch / "a.txt").write_text("half")
        raise RuntimeError("killed")
    assert verify(tmp_path / "a").kind == "thing"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_stale_says_why(tmp_path):
    make(tmp_path / "a")
    assert is_current(tmp_path / "a", "thing", {"k": 1}, {"in": "f"}) == (True, "")
    assert is_current(tmp_path / "a", "thing", {"k": 2}, {"in": "f"}) == (False, "configuration changed: k")
    assert is_current(tmp_path / "a", "thing", {"k": 1}, {"in": "g"}) == (False, "input changed: in")
    assert is_current(tmp_path / "b", "thing", {"k": 1}, {}) == (False, "not made yet")


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_verify_names_the_damaged_file(tmp_path, damage):
    make(tmp_path / "a", text="abcdef")
    file = tmp_path / "a" / "a.txt"
    if damage == "remove":
        file.unlink()
    else:
        file.write_text("abcdeX" if damage == "flip" else "abc")
    with pytest.raises(CheckpointError) as failure:
        verify(tmp_path / "a")
    assert failure.value.where == str(file)


def test_a_full_disk_is_an_error_with_advice_and_keeps_the_old_file(tmp_path):
    target = tmp_path / "a.json"
    write_atomic(target, "old")
    with full_disk(), pytest.raises(MachineError, match="no space left"):
        write_atomic(target, "x" * 4096)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_not_a_manifest(tmp_path):
    (tmp_path / "MANIFEST.json").write_text(json.dumps({"format": "other program"}))
    with pytest.raises(DataError, match="not a manifest"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "remove"])
def test_an_artifact_that_lost_a_file_is_not_current(tmp_path, damage):
    make(tmp_path / "a", text="abcdef")
    file = tmp_path / "a" / "a.txt"
    file.unlink() if damage == "remove" else file.write_text("abc")
    why = {"cut": "file changed size: a.txt", "remove": "file missing: a.txt"}[damage]
    assert is_current(tmp_path / "a", "thing", {"k": 1}, {"in": "f"}) == (False, why)


def test_an_artifact_that_lists_no_files_is_current(tmp_path):
    write_manifest(tmp_path, "run", config={}, files={})
    assert is_current(tmp_path, "run", {}, {}) == (True, "")


def test_scratch_folders_of_dead_processes_go(tmp_path):
    left = tmp_path / ".a.building-999999999"
    left.mkdir()
    alive = tmp_path / f".a.building-{os.getppid()}"
    alive.mkdir()
    make(tmp_path / "a")
    assert not left.exists() and alive.exists()


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_killed_while_replacing_the_name_never_holds_half_an_artifact(tmp_path, monkeypatch, moves):
    make(tmp_path / "a", text="old")
    done = []

    def killed(*_, **__):
        raise KeyboardInterrupt

    def replace(source, target):
        if "a" in (Path(source).name, Path(target).name):
            if len(done) == moves:
                killed()
            done.append(target)
        os.rename(source, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("slm.artifact.os.replace", replace)
        patched.setattr("slm.artifact.shutil.rmtree", killed)
        make(tmp_path / "a", text="new")
    text = {0: "old", 1: None, 2: "new"}[moves]
    assert (tmp_path / "a").exists() is (text is not None)
    if text is not None:
        verify(tmp_path / "a")
        assert (tmp_path / "a" / "a.txt").read_text() == text
    make(tmp_path / "a", text="again")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_artifact_that_can_not_be_replaced_stays(tmp_path, monkeypatch):
    make(tmp_path / "a", text="old")

    def replace(source, target):
        if ".building-" in str(source):
            raise OSError(errno.EACCES, "no", str(target))
        os.rename(source, target)

    with monkeypatch.context() as patched, pytest.raises(MachineError, match="no permission"):
        patched.setattr("slm.artifact.os.replace", replace)
        make(tmp_path / "a", text="new")
    assert verify(tmp_path / "a").kind == "thing" and (tmp_path / "a" / "a.txt").read_text() == "old"
