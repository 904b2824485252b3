from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from slm.artifact import canonical_json, read_manifest, verify
from slm.config.loader import load_config
from slm.config.tiny import TinyDataJob
from slm.data.reader import ShardSet
from slm.errors import ConfigError, DataError
from slm.speech import load_speech
from slm.speech.audio import read_audio
from slm.stages import RECIPES
from slm.tiny import build
from slm.tiny.build import build_tiny
from slm.tiny.corpus import read_rows
from slm.tokens.interleave import unweave
from slm.tokens.vocabulary import load_tokenizer, remove_repeats

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("corpus", "speech", "units", "tokenizer", "shards/llm", "shards/asr", "shards/tts", "shards/sqa", "eval")
SETS = ("text_qa", "instructions", "asr", "asr_random", "tts", "sqa", "sqa_new_voices")


def items(data: Path, name: str) -> list[dict]:
    return read_rows(data / "eval" / f"{name}.jsonl")


def test_every_part_and_the_whole_are_artifacts_that_verify(tiny_data):
    for part in (*PARTS, ""):
        verify(tiny_data / part)
    whole = read_manifest(tiny_data, "tiny-data")
    listed = {name for name in whole.files if not name.endswith("MANIFEST.json")}
    found = {str(path.relative_to(tiny_data)) for path in tiny_data.rglob("*") if path.is_file()}
    assert listed == {name for name in found if not name.endswith("MANIFEST.json")}


def test_shards_hold_every_example_in_one_vocabulary(tiny_data):
    sizes = {name: ShardSet(tiny_data / "shards" / name).samples for name in ("llm", "asr", "tts", "sqa")}
    assert sizes == {"llm": 2 * 8 + 12, "asr": 24, "tts": 24, "sqa": 8}
    vocabulary = load_tokenizer(tiny_data / "tokenizer")[1]
    for name in ("asr", "tts", "sqa"):
        assert ShardSet(tiny_data / "shards" / name).vocabulary == vocabulary
    text = ShardSet(tiny_data / "shards" / "llm").vocabulary
    assert text.units is None
    assert text.text_sha256 == vocabulary.text_sha256


def test_units_are_those_of_the_codebook_and_the_recordings(tiny_data):
    extractor, _, units = load_speech(tiny_data / "speech")
    vocabulary = load_tokenizer(tiny_data / "tokenizer")[1]
    assert vocabulary.units == units
    for row in read_rows(tiny_data / "units" / "units.jsonl")[:10]:
        wave, _ = read_audio(tiny_data / "corpus" / "wav" / f"{row['id']}.wav")
        assert extractor.units([wave])[0].tolist() == row["units"]


@pytest.mark.parametrize("name", SETS)
def test_items_are_whole_and_point_at_their_audio(tiny_data, name):
    found = items(tiny_data, name)
    assert found
    for item in found:
        assert set(item) == {"id", "task", "stage", "example", "target", "audio", "reference_audio", "tags"}
        recipe = RECIPES[item["stage"]]
        assert set(item["example"]) == set(recipe.columns)
        assert recipe.turn(item["example"]).answer
        for path in (item["audio"], item["reference_audio"]):
            assert path is None or (tiny_data / path).is_file()
    assert len({item["id"] for item in found}) == len(found)


def test_targets_say_what_is_right(tiny_data):
    assert items(tiny_data, "text_qa")[0]["target"] == {"answer": items(tiny_data, "text_qa")[0]["example"]["output"]}
    assert {"answer", "rule", "args"} == set(items(tiny_data, "instructions")[0]["target"])
    for item in items(tiny_data, "asr"):
        assert item["target"]["text"] == item["example"]["transcription"]
        assert item["audio"]
    for item in items(tiny_data, "tts"):
        text, units = unweave(item["example"]["interleaf"])
        assert (text, units) == (item["target"]["text"], item["target"]["units"])
        assert units == remove_repeats(units)
    for item in items(tiny_data, "sqa"):
        assert unweave(item["example"]["output_interleaf"]) == (
            item["target"]["answer"],
            item["target"]["units"],
        )
        assert item["example"]["input_pseudo"] == item["target"]["text"]


def test_questions_keep_repeats_and_answers_do_not(tiny_data):
    heard = [item["example"]["discrete_unit"] for item in items(tiny_data, "asr")]
    assert any(units != remove_repeats(units) for units in heard)


def test_answers_are_spoken_audibly_from_their_units(tiny_data):
    _, vocoder, _ = load_speech(tiny_data / "speech")
    for item in items(tiny_data, "sqa")[:3]:
        wave = vocoder.wave(item["target"]["units"])
        assert 0.01 < np.sqrt((wave**2).mean()) < 0.5
        assert np.abs(wave).max() < 1


def test_equal_jobs_give_equal_artifacts(make_job, tiny_data, tmp_path):
    build_tiny(make_job(tmp_path / "again", workers=1))
    assert read_manifest(tmp_path / "again").fingerprint == read_manifest(tiny_data).fingerprint


def test_a_finished_build_is_up_to_date_and_another_seed_is_not(make_job, tiny_data, monkeypatch):
    def never(self):
        raise AssertionError("built again")

    monkeypatch.setattr(build.TinyDataBuild, "run", never)
    assert build_tiny(make_job(tiny_data)) is False
    with pytest.raises(AssertionError, match="built again"):
        build_tiny(make_job(tiny_data, seed=4))


def test_a_killed_build_continues_where_it_was(make_job, tmp_path, monkeypatch):
    made: Counter[str] = Counter()
    monkeypatch.setattr(build.TinyDataBuild, "_took", lambda self, name, *rest: made.update([name]))

    def dies(self, folder):
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(build.TinyDataBuild, "_tokenizer", dies)
        with pytest.raises(KeyboardInterrupt):
            build_tiny(make_job(tmp_path / "data"))
    assert sorted(made) == ["corpus", "speech", "units"]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["corpus", "speech", "units"]
    assert build_tiny(make_job(tmp_path / "data")) is True
    assert set(made.values()) == {1}
    assert build_tiny(make_job(tmp_path / "data", speech={"count": 20})) is True
    assert made["corpus"] == 1
    assert made["speech"] == made["tokenizer"] == made["shards/asr"] == 2


def test_a_voice_that_does_not_exist_leaves_nothing_half_made(make_job, tmp_path):
    with pytest.raises(DataError, match="no voice 'martian'"):
        build_tiny(make_job(tmp_path / "data", corpus={"held_out_voices": ["martian"]}))
    assert list((tmp_path / "data").iterdir()) == []


def test_discriminants_are_learned_from_the_words(make_job, tmp_path):
    build_tiny(make_job(tmp_path / "data", speech={"discriminants": 8}))
    with np.load(tmp_path / "data" / "speech" / "codebook.npz") as arrays:
        assert arrays["projection"].shape == (39, 8)


def run(*arguments: str) -> subprocess.CompletedProcess:
    program = [sys.executable, "data_shards/build.py", *arguments]
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_without_a_job_says_how_it_is_used():
    done = run()
    assert done.returncode == ConfigError.exit_code
    assert "usage: data build JOB" in done.stderr
    assert "jobs/tiny.yaml" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.yaml",), "file not found"),
        (("data_shards/jobs/tiny.yaml", "job=huge"), "expected one of codebook, shards, tiny, units, got 'huge'"),
        (
            ("data_shards/jobs/pico.yaml", "corpus.voyces=[en]"),
            "command line: corpus.voyces: unknown key; did you mean",
        ),
        (("data_shards/jobs/pico.yaml", "speech.rate_hz=30"), "does not divide 16000"),
    ],
)
def test_the_command_refuses_bad_jobs_in_one_line(arguments, message):
    done = run(*arguments)
    assert done.returncode == ConfigError.exit_code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["tiny", "pico"])
def test_shipped_jobs_load(name):
    job = load_config(TinyDataJob, ROOT / "data_shards" / "jobs" / f"{name}.yaml")
    assert json.loads(canonical_json(job.identity())) == job.identity()
    assert job.inputs() == {}
    assert not {"out", "workers", "job"} & set(job.identity())
