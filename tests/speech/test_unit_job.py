"""Unit jobs: any number of processes and tasks, killed or not, give the same bytes, and shards can be built of them."""

from __future__ import annotations

import csv
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from published_sets import samples_of
from recordings import flac, folder_source, save_corpus, save_speech, save_tar, units_job

from slm.artifact import hash_files, read_manifest, verify
from slm.errors import ConfigError, DataError, MachineError
from slm.parts import Plan
from slm.speech.unit_builder import batches
from slm.speech.unit_job import build_unit_set, devices_of, make_builder
from slm.tokens.vocabulary import UnitSet

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def speech(tmp_path_factory, codebook):
    return save_speech(tmp_path_factory.mktemp("artifact") / "speech", codebook)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, waves):
    return save_corpus(tmp_path_factory.mktemp("corpus"), waves)


def rows_of(folder: Path) -> list[dict]:
    files = sorted(Path(folder).glob("units-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def skipped_of(folder: Path) -> dict[str, str]:
    with open(Path(folder) / "skipped.csv", newline="") as file:
        return {row["id"]: row["reason"] for row in csv.DictReader(file)}


def test_a_unit_set_holds_every_recordings_units_and_says_what_they_are(tmp_path, speech, corpus, waves, codebook):
    job = units_job(tmp_path / "units", speech, folder_source(corpus))
    assert build_unit_set(job) is True
    found = {row["id"]: row for row in rows_of(job.out)}
    assert list(found) == [f"u{n:03d}" for n in [*range(0, 24, 2), *range(1, 24, 2)]], "in the order of paths"
    for number, wave in enumerate(waves):
        heard, _ = soundfile.read(corpus / f"s{number % 2}" / f"u{number:03d}.flac", dtype="float32")
        assert found[f"u{number:03d}"]["units"] == codebook.units([heard])[0].tolist(), "batched = one by one"
        assert found[f"u{number:03d}"]["seconds"] == round(len(wave) / 16_000, 3)
    manifest = verify(job.out)
    units = sum(len(row["units"]) for row in found.values())
    assert (manifest.kind, manifest.about["units"], manifest.about["recordings"]) == ("units", units, 24)
    assert (manifest.about["rate_hz"], manifest.about["repeats"]) == (25.0, "kept")
    assert manifest.about["hours"] == pytest.approx(sum(map(len, waves)) / 16_000 / 3600, abs=1e-4)
    assert UnitSet(**json.loads((Path(job.out) / "units.json").read_text())) == codebook.unit_set
    assert skipped_of(job.out) == {} and manifest.about["skipped"] == {}
    assert build_unit_set(job) is False, "up to date"


def test_processes_and_tasks_change_no_byte(tmp_path, speech, corpus):
    source = folder_source(corpus)
    one, two = units_job(tmp_path / "one", speech, source), units_job(tmp_path / "two", speech, source)
    build_unit_set(one)
    build_unit_set(two, task=(1, 2))
    assert not Path(two.out).exists()
    with pytest.raises(DataError, match="3 of 5 parts are not built: 0, 2, 4"):
        build_unit_set(two, join=True)
    build_unit_set(two, task=(0, 2))
    build_unit_set(two, join=True)
    three = units_job(tmp_path / "three", speech, source, workers=2, readers=1)
    build_unit_set(three)
    assert len(hash_files(one.out)) == 7 and hash_files(one.out) == hash_files(two.out) == hash_files(three.out)
    assert len({read_manifest(job.out).fingerprint for job in (one, two, three)}) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "three", "two"], "nothing else is left"


def test_killed_in_the_middle_and_run_again_equals_the_straight_run(tmp_path, speech, corpus, caplog):
    out = tmp_path / "units"
    pairs = [f"out={out}", f"speech={speech}", "source.kind=folder", f"source.path={corpus}", "part=1", "batch_s=4.0"]
    command = [sys.executable, "-m", "slm", "speech", "units", *pairs, "--workers", "1"]
    run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(list(tmp_path.glob(".units.parts-*/.records/part-*"))) < 4:
        time.sleep(0.002)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    begun = list(tmp_path.glob(".units.parts-*"))
    assert len(begun) == 1 and not out.exists()
    done = len(list(begun[0].glob(".records/part-*")))
    assert 4 <= done < 24
    # what a process that was killed while it wrote leaves behind
    (begun[0] / ".units-000020.jsonl.77.part").write_text('{"id": "u0')
    with caplog.at_level(logging.INFO):
        build_unit_set(units_job(out, speech, folder_source(corpus), part=1))
    assert f"keeping {done} of 24 parts from before" in caplog.text
    straight = units_job(tmp_path / "straight", speech, folder_source(corpus), part=1)
    build_unit_set(straight)
    assert hash_files(out) == hash_files(straight.out)
    assert read_manifest(out).fingerprint == read_manifest(straight.out).fingerprint
    assert not list(tmp_path.glob(".*")) and not list(out.glob(".*"))


def test_the_unit_set_goes_through_the_shard_builder(tmp_path, codebook, speech, corpus, waves, capsys):
    from support import make_text_tokenizer

    from slm.cli.app import main
    from slm.data.reader import ShardSet
    from slm.tokens.vocabulary import add_units, save_tokenizer

    tokenizer = make_text_tokenizer()
    save_tokenizer(tmp_path / "tokenizer", tokenizer, add_units(tokenizer, codebook.unit_set))
    texts = "".join(json.dumps({"id": f"u{n:03d}", "text": f"red dog {n}"}) + "\n" for n in range(len(waves)))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "all.jsonl").write_text(texts)
    job = units_job(tmp_path / "units", speech, folder_source(corpus))
    build_unit_set(job)
    declared = "{count: 16, rate_hz: 25, extractor: mel_kmeans, codebook: as_tokenizer, input: kept, output: removed}"
    source = f"{{kind: units, path: {job.out}, transcripts: {tmp_path}/texts, layout: jsonl}}"
    config = tmp_path / "asr.yaml"
    config.write_text(f"job: shards\nout: {tmp_path}/shards\nrecipe: asr\ntokenizer: {tmp_path}/tokenizer\n")
    pairs = [f"units={declared}", f"source={source}", "workers=1", "max_length=512"]
    build = [sys.executable, "data_shards/build.py", str(config), *pairs]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shards = ShardSet(tmp_path / "shards")
    assert shards.samples == 24 and shards.vocabulary.units == codebook.unit_set
    found = [shards.vocabulary.to_units(ids) for ids, _ in samples_of(shards.folder)]
    assert found == [row["units"] for row in rows_of(job.out)]
    # made again elsewhere it is the same input; other units are another
    again = units_job(tmp_path / "again", speech, folder_source(corpus))
    build_unit_set(again)
    assert main(["data", "build", str(config), *pairs, f"source.path={again.out}"]) == 0
    assert "shards: up to date" in capsys.readouterr().err
    assert main(["data", "build", str(config), *pairs, "units.rate_hz=50"]) == 3
    assert "rate_hz: the job says 50.0" in capsys.readouterr().err


def test_tars_and_data_sets_give_the_units_that_the_folder_gives(tmp_path, speech, corpus, waves, hf_cache):
    from datasets import Audio, Dataset

    build_unit_set(units_job(tmp_path / "folder", speech, folder_source(corpus)))
    wanted = {row["id"]: row["units"] for row in rows_of(tmp_path / "folder")}
    files = {path.stem: path for path in sorted(corpus.rglob("*.flac"))}
    members = [(f"{name}{suffix}", data) for name, path in sorted(files.items())
               for suffix, data in ((".flac", path.read_bytes()), (".txt", b"a text"))]  # fmt: skip
    save_tar(tmp_path / "a.tar", members[:22])
    save_tar(tmp_path / "b.tar", members[22:])
    job = units_job(tmp_path / "tars", speech, {"kind": "tars", "path": f"{tmp_path}/*.tar"})
    build_unit_set(job)
    assert {row["id"]: row["units"] for row in rows_of(job.out)} == wanted
    names = sorted(files)
    rows = {"id": names, "audio": [{"bytes": files[name].read_bytes(), "path": None} for name in names]}
    data = Dataset.from_dict(rows).cast_column("audio", Audio())
    data.save_to_disk(str(tmp_path / "saved"))
    data.to_parquet(str(tmp_path / "data.parquet"))
    for number, source in enumerate([
        {"path": f"{tmp_path}/saved", "id": "id"},
        {"path": f"{tmp_path}/data.parquet", "id": "id"},
        {"path": f"{tmp_path}/data.parquet", "id": "id", "streaming": True},
    ]):  # fmt: skip
        job = units_job(tmp_path / f"hf{number}", speech, {"kind": "hf", **source})
        build_unit_set(job)
        assert {row["id"]: row["units"] for row in rows_of(job.out)} == wanted
    Dataset.from_dict(
        {"sound": [{"array": wave.tolist(), "sampling_rate": 16_000} for wave in waves[:3]]}
    ).save_to_disk(str(tmp_path / "arrays"))
    job = units_job(tmp_path / "plain", speech, {"kind": "hf", "path": f"{tmp_path}/arrays", "column": "sound"})
    build_unit_set(job)
    assert [row["id"] for row in rows_of(job.out)] == ["row-000000000", "row-000000001", "row-000000002"]


def test_bad_recordings_are_skipped_counted_and_listed(tmp_path, speech, waves, caplog):
    folder = tmp_path / "wav"
    folder.mkdir()
    good = waves[0]
    soundfile.write(folder / "good.wav", good, 16_000)
    soundfile.write(folder / "eight_channels.wav", np.stack([good] * 8, axis=1), 16_000)
    soundfile.write(folder / "fast.wav", np.repeat(good, 12), 192_000)
    soundfile.write(folder / "telephone.wav", good[::2], 8_000)
    (folder / "really_flac.mp3").write_bytes(flac(good))
    (folder / "text.wav").write_text("no audio at all")
    (folder / "nothing.wav").write_bytes(b"")
    soundfile.write(folder / "no_samples.wav", np.zeros(0, np.float32), 16_000)
    soundfile.write(folder / "silent.wav", np.zeros(16_000, np.float32), 16_000)
    soundfile.write(folder / "nan.wav", np.full(16_000, np.nan, np.float32), 16_000, subtype="FLOAT")
    soundfile.write(folder / "click.wav", good[:800], 16_000)
    (folder / "cut.wav").write_bytes((folder / "good.wav").read_bytes()[:9000])
    (folder / "gone.wav").symlink_to(folder / "nowhere.wav")
    with open(folder / "ten_hours.wav", "wb") as file:  # a hole on the disk, after a header that is true
        soundfile.write(file, np.zeros(16, np.int16), 16_000, format="WAV", subtype="PCM_16")
        size = 10 * 3600 * 16_000 * 2
        file.seek(4)
        file.write((36 + size).to_bytes(4, "little"))
        file.seek(40)
        file.write(size.to_bytes(4, "little"))
        file.truncate(44 + size)
    job = units_job(tmp_path / "units", speech, folder_source(folder), hearing={"skipped_at_most": 0.7})
    with caplog.at_level(logging.WARNING):
        build_unit_set(job)
    found = {row["id"]: row["units"] for row in rows_of(job.out)}
    assert sorted(found) == ["eight_channels", "fast", "good", "really_flac", "telephone"]
    assert found["eight_channels"] == found["good"] == found["really_flac"]
    assert len(found["fast"]) == len(found["telephone"]) == len(found["good"])
    reasons = skipped_of(job.out)
    assert reasons == {
        "click": "audio is too short: 0.050 s, shortest_s is 0.1",
        "cut": f"audio file is cut: it has 9,000 of {(folder / 'good.wav').stat().st_size:,} bytes",
        "gone": "audio file can't be read: No such file or directory",
        "nan": "audio holds NaN or infinite samples",
        "no_samples": "audio is empty",
        "nothing": "audio is empty",
        "silent": "audio is silent: its peak is 0 of full scale",
        "ten_hours": "audio is too long: 36,000 s, longest_s is 3600",
        "text": "not a readable audio file: Format not recognised",
    }
    assert read_manifest(job.out).about["skipped"]["audio is empty"] == 2
    assert "skipped 9 of 14 recordings (2 audio is empty, 1 audio is too short" in caplog.text
    with pytest.raises(DataError, match=r"of 14 recordings can't be used.*audio is too short") as caught:
        build_unit_set(units_job(tmp_path / "strict", speech, folder_source(folder)))
    assert "hearing.skipped_at_most" in caught.value.mend and not (tmp_path / "strict").exists()


def test_a_set_of_nothing_but_bad_recordings_is_an_error(tmp_path, speech):
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000, np.float32), 16_000)
    source = folder_source(tmp_path)
    with pytest.raises(DataError, match="1 of 1 recordings can't be used: 1 audio is silent"):
        build_unit_set(units_job(tmp_path / "units", speech, source, hearing={"skipped_at_most": 1.0}))
    kept = units_job(tmp_path / "units", speech, source, hearing={"silent": "keep"})
    assert build_unit_set(kept) and len(rows_of(kept.out)[0]["units"]) == 25


def test_damaged_tars_give_what_comes_before_the_damage(tmp_path, speech, waves):
    whole = save_tar(tmp_path / "whole.tar", [(f"a/{n}.v1.flac", flac(wave)) for n, wave in enumerate(waves[:4])])
    data = whole.read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: len(data) // 2])
    second = data.index(b"a/2.v1.flac")
    (tmp_path / "header.tar").write_bytes(data[:second] + b"\xff" * 64 + data[second + 64 :])
    (tmp_path / "other.tar").write_bytes(b"no tar" * 500)
    for name, good, reason in [
        ("cut", 2, "tar is damaged: unexpected end of data"),
        ("header", 2, "tar is damaged: a header is unreadable at byte"),
        ("other", 0, "tar is damaged:"),
    ]:
        source = {"kind": "tars", "path": [str(whole), f"{tmp_path}/{name}.tar"], "suffixes": [".v1.flac"]}
        job = units_job(tmp_path / f"units-{name}", speech, source, hearing={"skipped_at_most": 0.5})
        build_unit_set(job)
        assert len(rows_of(job.out)) == 4 + good
        assert skipped_of(job.out)[f"{name}.tar"].startswith(reason)
    assert skipped_of(tmp_path / "units-cut")["a/2"].startswith("audio file is cut: the tar has")


def test_two_recordings_of_one_id_are_an_error_that_says_what_to_do(tmp_path, speech, waves):
    for folder in ("x", "y"):
        (tmp_path / "wav" / folder).mkdir(parents=True)
        soundfile.write(tmp_path / "wav" / folder / "one.wav", waves[0], 16_000)
    with pytest.raises(DataError, match="two recordings have the id 'one'") as caught:
        build_unit_set(units_job(tmp_path / "u", speech, folder_source(tmp_path / "wav")))
    assert "source.ids=path" in caught.value.mend
    job = units_job(tmp_path / "u", speech, folder_source(tmp_path / "wav", ids="path"))
    build_unit_set(job)
    assert [row["id"] for row in rows_of(job.out)] == ["x/one", "y/one"]


def test_units_outside_the_codebook_end_the_job(tmp_path, speech, corpus, monkeypatch, codebook):
    monkeypatch.setattr(type(codebook), "units", lambda self, waves: [np.array([3, 16]) for _ in waves])
    with pytest.raises(MachineError, match=r"units 3\.\.16, its codebook has 16"):
        build_unit_set(units_job(tmp_path / "u", speech, folder_source(corpus)))
    monkeypatch.setattr(type(codebook), "units", lambda self, waves: [np.zeros(0, np.int32) for _ in waves])
    with pytest.raises(DataError, match="audio is too short"):
        build_unit_set(units_job(tmp_path / "u", speech, folder_source(corpus)))


def test_a_refused_wave_does_not_take_its_batch_along(tmp_path, speech, corpus, monkeypatch, codebook):
    units = type(codebook).units

    def refuse(self, waves):
        if any(len(wave) == longest for wave in waves):
            raise DataError("audio can't be heard", where="wave 0")
        return units(self, waves)

    longest = max(len(soundfile.read(path)[0]) for path in corpus.rglob("*.flac"))
    monkeypatch.setattr(type(codebook), "units", refuse)
    job = units_job(tmp_path / "u", speech, folder_source(corpus), hearing={"skipped_at_most": 0.2})
    build_unit_set(job)
    refused = skipped_of(job.out)
    assert set(refused.values()) == {"audio can't be heard"} and len(rows_of(job.out)) == 24 - len(refused)
    monkeypatch.undo()
    for row in rows_of(job.out):
        wave, _ = soundfile.read(next(corpus.rglob(f"{row['id']}.flac")), dtype="float32")
        assert row["units"] == codebook.units([wave])[0].tolist()


def test_no_memory_and_no_device_are_the_machines_errors(tmp_path, speech, corpus, monkeypatch, codebook):
    import torch

    def full(self, waves):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(codebook), "units", full)
    with pytest.raises(MachineError, match="no memory on cpu for"):
        build_unit_set(units_job(tmp_path / "u", speech, folder_source(corpus)))
    assert devices_of(str(speech), "auto") == ["cpu"], "this extractor has no network"

    class OnDevice:
        @classmethod
        def load(cls, folder, device="auto"):
            raise AssertionError

    monkeypatch.setattr("slm.speech.mel_kmeans.MelKMeans", OnDevice)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices_of(str(speech), "auto") == devices_of(str(speech), "cuda") == ["cuda:0", "cuda:1"]
    assert devices_of(str(speech), "cuda:1") == ["cuda:1"] and devices_of(str(speech), "cpu") == ["cpu"]
    with pytest.raises(MachineError, match="there are 2 GPUs here"):
        devices_of(str(speech), "cuda:2")
    job, plan = units_job(tmp_path / "u", speech, folder_source(corpus)), Plan((), 0)
    taken = [make_builder(job, plan, tmp_path, ["cuda:0", "cuda:1"], worker).device for worker in range(3)]
    assert taken == ["cuda:0", "cuda:1", "cuda:0"], "processes take the devices in turn"


def test_a_full_disk_keeps_what_was_finished(tmp_path, speech, corpus, caplog):
    from support import full_disk

    job = units_job(tmp_path / "u", speech, folder_source(corpus), part=1)
    build_unit_set(units_job(tmp_path / "warm", speech, folder_source(corpus)))
    with full_disk(300), pytest.raises(MachineError, match="no space left"):
        build_unit_set(job)
    assert not Path(job.out).exists() and os.listdir(tmp_path)
    build_unit_set(job)
    assert len(rows_of(job.out)) == 24


def test_settings_that_do_not_fit_are_refused(tmp_path, speech, corpus):
    for changes, message in [
        ({"device": "gpu"}, "device"),
        ({"dtype": "int8"}, "dtype"),
        ({"hearing": {"shortest_s": 2.0, "longest_s": 1.0}}, "shortest_s 2 is not below longest_s 1"),
        ({"source": {"kind": "folder"}}, "path"),
        ({"source": {"kind": "tape", "path": "x"}}, "kind"),
    ]:
        with pytest.raises(ConfigError, match=message):
            units_job(tmp_path / "u", speech, **({"source": folder_source(corpus)} | changes))
    with pytest.raises(DataError, match="no recordings"):
        build_unit_set(units_job(tmp_path / "u", speech, folder_source(corpus, suffixes=[".wma"])))
    with pytest.raises(DataError, match="no such folder"):
        build_unit_set(units_job(tmp_path / "u", speech, folder_source(corpus / "none")))
    with pytest.raises(DataError, match="no finished artifact"):
        build_unit_set(units_job(tmp_path / "u", corpus, folder_source(corpus)))


def test_another_extractor_than_the_one_asked_for_is_refused(tmp_path, speech, corpus, capsys):
    from slm.cli.app import main

    argv = ["speech", "units", f"out={tmp_path}/u", f"speech={speech}", "source.kind=folder", f"source.path={corpus}"]
    assert main([*argv, "--workers", "1", "--extractor", "seamless"]) == 2
    told = capsys.readouterr().err
    assert "seamless is asked for, the speech artifact's is mel_kmeans" in told and "slm speech convert" in told
    assert main([*argv, "--workers", "1", "--extractor", "seamles"]) == 2
    assert "unknown extractor 'seamles'; known: mel_kmeans, seamless, xlsr_kmeans" in capsys.readouterr().err
    assert not (tmp_path / "u").exists()
    assert main([*argv, "--workers", "1", "--extractor", "mel_kmeans"]) == 0
    made = (tmp_path / "u/MANIFEST.json").stat().st_mtime_ns
    assert main([*argv, "--workers", "1"]) == 0
    assert (tmp_path / "u/MANIFEST.json").stat().st_mtime_ns == made, "naming the extractor makes no other unit set"
    assert main([*argv, "--extractor", "seamless"]) == 2, "a set that is up to date is no excuse"


def test_batches_hold_like_lengths_and_no_more_than_they_may():
    chance = np.random.default_rng(0)
    lengths = {place: int(length) for place, length in enumerate(chance.integers(1, 160_000, 200))}
    lengths[7] = 16_000 * 60
    found = list(batches(lengths, 40.0))
    assert sorted(place for batch in found for place in batch) == sorted(lengths)
    assert found[0] == [7], "longer than a batch may be: alone"
    sizes = [max(lengths[p] for p in batch) * len(batch) for batch in found[1:]]
    assert max(sizes) <= 40 * 16_000 and np.mean(sizes[:-1]) > 0.7 * 40 * 16_000
    padded, real = sum(sizes), sum(lengths[p] for batch in found[1:] for p in batch)
    assert padded < 1.15 * real
