"""Recordings and units with transcripts: LibriSpeech's tree, pairs, JSON Lines; alignments for speaking."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from slm.config.loader import from_mapping
from slm.config.shards import ShardsJob
from slm.config.speech import MelKMeansConfig
from slm.data import workers
from slm.data.sources import open_source
from slm.data.sources.audio import AudioRows
from slm.data.sources.transcripts import read_utterances
from slm.errors import DataError
from slm.speech.mel_kmeans import MelKMeans
from slm.stages.wordings import ASR_WORDINGS, TTS_WORDINGS
from slm.tokens.vocabulary import UnitSet, remove_repeats, strip_units, text_to_units

TEXTS = {"84-121-0000": "THE CAT SAYS", "84-121-0001": "PARIS", "84-122-0000": "RED DOG", "95-9-0000": "TWO AND THREE"}


def sound(seed: int, seconds: float = 1.2) -> np.ndarray:
    """Tones that change every tenth of a second."""
    chance = np.random.default_rng(seed)
    pitch = np.repeat(chance.integers(200, 3000, 64), 1600)[: int(16_000 * seconds)]
    return (0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / 16_000)).astype(np.float32)


@pytest.fixture(scope="module")
def codebook() -> MelKMeans:
    return MelKMeans.fit([sound(seed) for seed in range(12)], MelKMeansConfig(count=16, fit_tries=1))


@pytest.fixture
def corpus(tmp_path, codebook):
    """LibriSpeech's tree of four utterances, a speech artifact, and MFA's TextGrids."""
    from slm.artifact import write_manifest

    (tmp_path / "speech").mkdir()
    codebook.save(tmp_path / "speech")
    write_manifest(tmp_path / "speech", "speech", config={})
    for number, (name, text) in enumerate(TEXTS.items()):
        speaker, chapter, _ = name.split("-")
        folder = tmp_path / "LibriSpeech" / "dev-clean" / speaker / chapter
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{name}.flac", sound(number), 16_000)
        with open(folder / f"{speaker}-{chapter}.trans.txt", "a") as file:
            file.write(f"{name} {text}\n")
        grid = tmp_path / "aligned" / speaker / chapter / f"{name}.TextGrid"
        grid.parent.mkdir(parents=True, exist_ok=True)
        grid.write_text(textgrid(text.lower().split(), 1.2))
    return tmp_path


def textgrid(words: list[str], seconds: float) -> str:
    each = seconds / len(words)
    rows = "".join(
        f"        intervals [{i + 1}]:\n            xmin = {i * each}\n            xmax = {(i + 1) * each}\n"
        f'            text = "{word}"\n'
        for i, word in enumerate(words)
    )
    return (
        f'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = {seconds}\n'
        "tiers? <exists>\nsize = 1\n"
        f'item []:\n    item [1]:\n        class = "IntervalTier"\n        name = "words"\n        xmin = 0\n'
        f"        xmax = {seconds}\n        intervals: size = {len(words)}\n{rows}"
    )


def make_job(recipe: str, source: dict, spoken_by, **units) -> ShardsJob:
    declared = vars(spoken_by.unit_set) | units
    values = {"job": "shards", "out": "o", "tokenizer": "t", "recipe": recipe, "units": declared, "source": source}
    return from_mapping(ShardsJob, values, "test")


def audio_source(corpus, **changes) -> dict:
    return {"kind": "audio", "path": str(corpus / "LibriSpeech"), "speech": str(corpus / "speech"), **changes}


def read(job, codebook, start=0, stop=None):
    source = open_source(job, codebook.unit_set)
    (piece,) = source.pieces()
    return piece.rows, list(source.read(0, start, stop, start))


def test_librispeechs_own_tree_as_asr(corpus, codebook):
    job = make_job("asr", audio_source(corpus, batch=3), codebook)
    rows, found = read(job, codebook)
    assert rows == 4 and [row["transcription"] for row in found] == list(TEXTS.values())
    assert [row["instruction"] for row in found] == list(ASR_WORDINGS[:4])
    wave, _ = soundfile.read(corpus / "LibriSpeech/dev-clean/84/122/84-122-0000.flac", dtype="float32")
    assert found[2]["discrete_unit"] == codebook.units([wave])[0].tolist()
    assert read(job, codebook, 1, 3)[1] == found[1:3]
    lower = make_job("asr", audio_source(corpus, case="lower", subsets=["dev-clean"]), codebook)
    assert read(lower, codebook)[1][0]["transcription"] == "the cat says"


def test_tts_weaves_words_and_units_by_the_alignment(corpus, codebook):
    job = make_job("tts", audio_source(corpus, alignments=str(corpus / "aligned"), case="lower"), codebook)
    _, found = read(job, codebook)
    for number, (row, text) in enumerate(zip(found, TEXTS.values(), strict=True)):
        assert row["transcription"] == strip_units(row["interleaf"]) == text.lower()
        assert row["instruction"] == TTS_WORDINGS[number]
        raw = codebook.units([sound_of(corpus, number)])[0].tolist()
        assert text_to_units(row["interleaf"]) == remove_repeats(raw), "repeats are removed in answers"


def sound_of(corpus, number: int) -> np.ndarray:
    name = list(TEXTS)[number]
    speaker, chapter, _ = name.split("-")
    return soundfile.read(corpus / f"LibriSpeech/dev-clean/{speaker}/{chapter}/{name}.flac", dtype="float32")[0]


def test_the_schedule_of_interleaving_is_the_jobs(corpus, codebook):
    source = audio_source(corpus, alignments=str(corpus / "aligned"), interleave={"schedule": "words", "count": 3})
    _, found = read(make_job("tts", source, codebook), codebook)
    assert found[0]["interleaf"].startswith("the cat says<|")


def test_what_is_missing_is_named(corpus, codebook):
    aligned = audio_source(corpus, alignments=str(corpus / "aligned"))
    (corpus / "aligned/84/121/84-121-0001.TextGrid").unlink()
    with pytest.raises(DataError, match="no alignment of utterance '84-121-0001'"):
        read(make_job("tts", aligned, codebook), codebook)
    (corpus / "LibriSpeech/dev-clean/84/122/84-122-0000.flac").unlink()
    with pytest.raises(DataError, match="no recording of utterance '84-122-0000'") as caught:
        read(make_job("asr", audio_source(corpus), codebook), codebook)
    assert "84/122/84-122-0000" in caught.value.where
    with pytest.raises(DataError, match="no such folder"):
        read(make_job("asr", audio_source(corpus, subsets=["test-other"]), codebook), codebook)
    with pytest.raises(DataError, match="no transcripts"):
        read(make_job("asr", audio_source(corpus, layout="jsonl"), codebook), codebook)


def test_an_extractor_of_other_units_is_refused(corpus, codebook):
    for change in ({"count": 17}, {"rate_hz": 50.0}, {"codebook": "0" * 64}, {"output": "kept"}):
        job = make_job("asr", audio_source(corpus), codebook, **change)
        with pytest.raises(DataError, match=f"speech units differ.*{next(iter(change))}") as caught:
            open_source(job, UnitSet(**job.units.model_dump())).pieces()
        assert str(corpus / "speech") in caught.value.where


def test_pairs_of_audio_and_text(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.txt").write_text("hello\nworld\n")
    (tmp_path / "two.txt").write_text("Good bye")
    found = read_utterances(str(tmp_path), "pairs", None, "lower")
    assert [(u.id, u.text) for u in found] == [("two", "good bye"), ("a/one", "hello world")]


def test_malformed_transcripts_are_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": "a", "text": "b"}\n{"id": 3}\n')
    with pytest.raises(DataError, match="expected an object with id and text") as caught:
        read_utterances(str(tmp_path), "jsonl", None)
    assert caught.value.where == f"{path} line 2"
    path.write_text('{"id": "a", "text": "b"}\n{"id": "a", "text": "c"}\n')
    with pytest.raises(DataError, match="utterance 'a' comes twice"):
        read_utterances(str(tmp_path), "jsonl", None)
    path.write_bytes(b'{"id": "\xff"}')
    with pytest.raises(DataError, match="not UTF-8"):
        read_utterances(str(tmp_path), "jsonl", None)


@pytest.mark.parametrize("form", ["lines", "arrays"])
def test_units_that_were_extracted_elsewhere(corpus, codebook, form):
    folder = corpus / "units"
    folder.mkdir()
    units = {name: codebook.units([sound_of(corpus, i)])[0] for i, name in enumerate(TEXTS)}
    if form == "lines":
        lines = [json.dumps({"id": name, "units": found.tolist()}) for name, found in units.items()]
        (folder / "units.jsonl").write_text("\n".join(lines))
    else:
        for name, found in units.items():
            np.save(folder / f"{name}.npy", found)
    (folder / "units.json").write_text(json.dumps(vars(codebook.unit_set)))
    common = {"path": str(folder), "transcripts": str(corpus / "LibriSpeech"), "alignments": str(corpus / "aligned")}
    for recipe in ("asr", "tts"):
        from_units = make_job(recipe, {"kind": "units", "case": "lower", **common}, codebook)
        from_audio = make_job(
            recipe, audio_source(corpus, alignments=str(corpus / "aligned"), case="lower"), codebook
        )  # fmt: skip
        assert read(from_units, codebook) == read(from_audio, codebook)
        assert read(from_units, codebook, 1, 3)[1] == read(from_audio, codebook, 1, 3)[1]


def test_bad_units_are_named(corpus, codebook):
    folder = corpus / "units"
    folder.mkdir()
    source = {"kind": "units", "path": str(folder), "transcripts": str(corpus / "LibriSpeech")}
    with pytest.raises(DataError, match="no units"):
        read(make_job("asr", source, codebook), codebook)
    path = folder / "units.jsonl"
    for line, message in [
        ('{"id": "84-121-0000", "units": [1, 99]}', "units 1..99 are outside the 16"),
        ('{"id": "84-121-0000", "units": [1.5]}', "expected a list of whole numbers"),
        ('{"id": "84-121-0000", "units": [[1], [2, 3]]}', "expected a list of whole numbers"),
        ('{"id": "84-121-0000"}', "expected an object with id and units"),
        ('{"id": "nobody", "units": [1]}', "no transcript of utterance 'nobody'"),
    ]:
        path.write_text(line)
        with pytest.raises(DataError, match=message):
            read(make_job("asr", source, codebook), codebook)
    (folder / "units.json").write_text(json.dumps(vars(codebook.unit_set) | {"rate_hz": 50}))
    with pytest.raises(DataError, match="rate_hz: the job says 25"):
        read(make_job("asr", source, codebook), codebook)


def test_an_extractor_with_a_network_gets_a_process_for_each_gpu(corpus, codebook, monkeypatch):
    job = make_job("asr", audio_source(corpus), codebook)
    cores = len(os.sched_getaffinity(0))
    assert workers.default_workers(job) == cores, "mel features need no GPU"
    monkeypatch.setattr(workers, "devices_of", lambda speech, device: ["cuda:0", "cuda:1", "cuda:2"])
    assert workers.default_workers(job) == 3
    taken = []
    monkeypatch.setattr(workers, "take_own_gpu", taken.append)
    monkeypatch.setattr(workers, "PartBuilder", lambda *_: None)
    workers.make_builder(job, None, corpus, 2)
    assert not taken, "the only process keeps what it sees"
    monkeypatch.setattr("multiprocessing.parent_process", lambda: object())
    workers.make_builder(job, None, corpus, 2)
    assert taken == [2]


def test_units_that_are_not_the_jobs_are_refused_by_the_listing_and_by_each_process(corpus, codebook):
    rows = AudioRows(make_job("asr", audio_source(corpus), codebook), codebook.unit_set)
    rows.units = replace(codebook.unit_set, rate_hz=codebook.unit_set.rate_hz * 2)
    with pytest.raises(DataError, match="speech artifact"):
        rows.pieces()
    with pytest.raises(DataError, match="speech artifact"):
        _ = rows.extractor
