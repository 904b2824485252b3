"""Parts, workers and tasks change no byte; kills and failures lose no finished part."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from published_sets import (
    JOBS,
    hashes,
    samples_of,
    write_jsonl,
)
from rich.console import Console

from slm.artifact import read_manifest, verify
from slm.data import job as job_module
from slm.data.job import build_shard_set
from slm.data.reader import ShardSet
from slm.errors import ConfigError, DataError, MachineError
from slm.parts import BuildProgress
from slm.stages import RECIPES
from slm.tokens.chat import render
from slm.tokens.vocabulary import load_tokenizer

ROOT = Path(__file__).parents[2]


def test_workers_and_tasks_change_no_byte(many):
    one, two, three = many("one"), many("two", "workers=2"), many("three")
    build_shard_set(one)
    build_shard_set(two)
    for i in (2, 0, 1):
        build_shard_set(three, task=(i, 3))
        assert not Path(three.out).exists()
    build_shard_set(three, join=True)
    first = hashes(one.out)
    assert len(first) == 2 * 8 and first == hashes(two.out) == hashes(three.out)
    manifests = [read_manifest(job.out) for job in (one, two, three)]
    assert len({manifest.fingerprint for manifest in manifests}) == 1
    assert [entry["file"] for entry in manifests[0].about["shards"]] == [f"shard-{i:06d}.tar" for i in range(8)]
    assert sorted(path.name for path in many.folder.iterdir()) == ["one", "rows", "three", "two"]


def test_parts_keep_the_order_of_rows_and_keys_are_unique(many):
    job = many("set", "group=1", "shard_mib=1")
    build_shard_set(job)
    loaded, _ = load_tokenizer(job.tokenizer)
    wanted = [render(loaded, RECIPES["asr"].turn(row)).ids for row in many.rows]
    assert [ids.tolist() for ids, _ in samples_of(job.out)] == wanted
    import webdataset

    files = sorted(str(path) for path in Path(job.out).glob("*.tar"))
    keys = [sample["__key__"] for sample in webdataset.WebDataset(files, shardshuffle=False)]
    assert len(keys) == len(set(keys)) == 100


def test_a_part_of_several_shards_takes_numbers_that_no_other_has(many, monkeypatch):
    from slm.data import workers

    class Small(workers.ShardWriter):
        def __init__(self, *args, shard_bytes, **kwargs):
            super().__init__(*args, shard_bytes=4000, **kwargs)

    monkeypatch.setattr(workers, "ShardWriter", Small)
    job = many("set")
    build_shard_set(job)
    names = [entry["file"] for entry in read_manifest(job.out).about["shards"]]
    numbers = [int(name[6:12]) for name in names]
    assert len(numbers) > 8 and len(set(numbers)) == len(numbers)
    loaded, _ = load_tokenizer(job.tokenizer)
    wanted = [render(loaded, RECIPES["asr"].turn(row)).ids for row in many.rows]
    assert [ids.tolist() for ids, _ in samples_of(job.out)] == wanted
    assert verify(job.out).about["samples"] == 100


def test_a_join_says_which_parts_are_missing(many):
    job = many("set")
    with pytest.raises(DataError, match="no part of this set is built"):
        build_shard_set(job, join=True)
    build_shard_set(job, task=(1, 4))
    with pytest.raises(DataError, match="6 of 8 parts are not built: 0, 2, 3, 4, 6, 7"):
        build_shard_set(job, join=True)
    with pytest.raises(ConfigError, match="exclude each other"):
        build_shard_set(job, task=(1, 4), join=True)
    with pytest.raises(ConfigError, match="i/n needs"):
        build_shard_set(job, task=(4, 4))


def test_a_build_that_failed_keeps_its_finished_parts(many, caplog):
    path = many.folder / "rows" / "b.jsonl"
    good = path.read_text()
    lines = good.splitlines()
    broken = json.loads(lines[30])
    broken["discrete_unit"] = "none"
    path.write_text("\n".join([*lines[:30], json.dumps(broken), *lines[31:]]) + "\n")
    job = many("set")
    with pytest.raises(DataError, match="'discrete_unit' holds a str, expected a list of units") as caught:
        build_shard_set(job)
    assert caught.value.where == f"jsonl source {path} line 31"
    assert not Path(job.out).exists()
    # the same data again: what was finished before the bad row is kept
    with pytest.raises(DataError), caplog.at_level(logging.INFO):
        build_shard_set(job)
    assert "keeping 5 of 8 parts from before (65 examples" in caplog.text
    path.write_text(good)  # other data: nothing is kept, and the old parts are removed
    build_shard_set(job)
    build_shard_set(many("again"))
    assert hashes(job.out) == hashes(many.folder / "again")
    assert not list(many.folder.glob(".set*"))


def test_a_worker_that_fails_ends_the_build_with_its_error(many):
    path = many.folder / "rows" / "a.jsonl"
    path.write_text(path.read_text().replace('"transcription": "', '"transcription": 5, "was": "', 1))
    job = many("set", "workers=2")
    with pytest.raises(DataError, match="'transcription' holds a number, expected text") as caught:
        build_shard_set(job)
    assert caught.value.where.endswith("a.jsonl line 1")
    assert not Path(job.out).exists()


def test_a_build_that_was_killed_goes_on(many, tmp_path):
    job = many("set", "part=2")
    command = [sys.executable, "data_shards/build.py", str(JOBS / "librispeech_asr.yaml"), f"out={job.out}"]
    command += [f"tokenizer={job.tokenizer}", f"units={many.units}"]
    command += [f"source={{kind: jsonl, path: '{tmp_path}/rows/*.jsonl'}}", "group=4", "part=2", "--workers", "1"]
    build = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(tmp_path.glob(".set.parts-*/.records/part-*"))) < 5:
        time.sleep(0.002)
    build.send_signal(signal.SIGKILL)
    build.communicate()
    assert not Path(job.out).exists() and list(tmp_path.glob(".set.parts-*"))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "parts from before" in done.stderr or "up to date" in done.stderr
    build_shard_set(many("fresh", "part=2"))
    assert hashes(job.out) == hashes(tmp_path / "fresh")
    assert not list(tmp_path.glob(".set*"))


def test_a_finished_part_that_lost_a_file_is_built_again(many, caplog):
    job = many("set")
    build_shard_set(job, task=(0, 2))
    folder = next(many.folder.glob(".set.parts-*"))
    cut = folder / "shard-000002.tar"
    cut.write_bytes(cut.read_bytes()[:1000])
    (folder / ".shard-000003.tar.host-1.part").write_bytes(b"half")
    with caplog.at_level(logging.WARNING):
        build_shard_set(job)
    assert "part 2 is built again: shard-000002.tar is missing or cut" in caplog.text
    assert ShardSet(job.out).check() == []
    assert not list(Path(job.out).glob(".*"))


def test_an_older_set_is_replaced_whole_and_other_data_makes_it_stale(many, caplog):
    job = many("set")
    build_shard_set(job)
    before = read_manifest(job.out)
    write_jsonl(many.folder / "rows" / "c.jsonl", many.rows[:3])
    with caplog.at_level(logging.INFO):
        assert build_shard_set(job) is True
    assert "input changed: source" in caplog.text
    after = read_manifest(job.out)
    assert (before.about["samples"], after.about["samples"]) == (100, 103)
    assert before.fingerprint != after.fingerprint
    shutil.move(many.folder / "rows", many.folder / "elsewhere")
    moved = many("set", f"source.path={many.folder}/elsewhere/*.jsonl")
    assert build_shard_set(moved) is False, "where the data lies is no part of the set"


def test_the_entry_and_the_command_are_one(many, tmp_path, capsys, monkeypatch):
    from slm.cli.app import main

    monkeypatch.chdir(ROOT)
    job = many("set")
    pairs = [f"out={job.out}", f"tokenizer={job.tokenizer}", "part=50", "--workers", "1"]
    pairs += [f"units={many.units}", f"source={{kind: jsonl, path: '{tmp_path}/rows/*.jsonl'}}"]
    argv = ["data_shards/jobs/librispeech_asr.yaml", *pairs]
    assert main(["data", "build", *argv, "--task", "0/2"]) == 0
    done = subprocess.run([sys.executable, "data_shards/build.py", *argv, "--join"], capture_output=True, text=True)
    assert done.returncode == 3 and "1 of 2 parts are not built: 1" in done.stderr
    assert main(["data", "build", *argv, "--task", "1/2"]) == 0
    assert main(["data", "build", *argv, "--join"]) == 0
    assert ShardSet(job.out).samples == 100
    assert main(["data", "build", *argv, "--task", "two"]) == 2
    assert "expected I/N such as 3/16" in capsys.readouterr().err
    assert main(["data", "build", "data_shards/jobs/pico.yaml", "--join", f"out={tmp_path}/p"]) == 2
    assert "job tiny is built in one piece" in capsys.readouterr().err


def test_an_empty_source_is_an_error(many):
    for name in "ab":
        (many.folder / "rows" / f"{name}.jsonl").write_text("")
    with pytest.raises(DataError, match="the source holds no row"):
        build_shard_set(many("set"))


def test_a_full_disk_keeps_the_older_set_and_what_was_finished(many, monkeypatch, caplog):
    before = many("set", "source.rows=20")
    build_shard_set(before)
    fsync, calls = os.fsync, iter(range(10**6))

    def full(file):
        if next(calls) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match="no space left"):
        build_shard_set(many("set"))
    monkeypatch.setattr(os, "fsync", fsync)
    assert ShardSet(before.out).samples == 20
    with caplog.at_level(logging.INFO):
        build_shard_set(many("set"))
    assert "parts from before" in caplog.text and ShardSet(before.out).samples == 100


def test_workers_end_with_their_parent(many, tmp_path):
    path = tmp_path / "rows" / "z.jsonl"
    path.write_text((tmp_path / "rows" / "b.jsonl").read_text() * 100)
    job = many("set")
    command = [sys.executable, "data_shards/build.py", str(JOBS / "librispeech_asr.yaml"), f"out={job.out}"]
    command += [f"tokenizer={job.tokenizer}", f"units={many.units}", "part=13", "--workers", "2"]
    command += [f"source={{kind: jsonl, path: '{tmp_path}/rows/*.jsonl'}}"]
    build = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(tmp_path.glob(".set.parts-*/.records/part-*")):
        assert build.poll() is None
        time.sleep(0.01)
    children = psutil.Process(build.pid).children(recursive=True)
    assert len(children) >= 2
    build.kill()
    build.wait()
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert alive == [] and len(gone) == len(children)


def test_a_bar_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    progress = BuildProgress("set", 10, console=console)
    progress.update(4, 2_000_000)
    progress.stop()
    assert "set" in console.file.getvalue() and "4/10" in console.file.getvalue()
    assert "Mtok/s" in console.file.getvalue()


def test_progress_is_said_in_lines(many, caplog, monkeypatch):
    monkeypatch.setattr(job_module, "BuildProgress", lambda *args: BuildProgress(*args, every_s=0.0))
    with caplog.at_level(logging.INFO):
        build_shard_set(many("set"))
    assert "example 13/100" in caplog.text and "Mtok/s  left " in caplog.text
    assert "8 parts, 100 examples in" in caplog.text


def test_a_killed_worker_is_a_clear_error(many, monkeypatch):
    monkeypatch.setattr("slm.parts.pool._build", _die)
    job = many("set", "workers=2")
    with pytest.raises(MachineError, match="killed from outside"):
        build_shard_set(job)


def _die(part):
    os.kill(os.getpid(), signal.SIGKILL)
