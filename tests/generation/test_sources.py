from __future__ import annotations

import json
import shutil

import datasets
import numpy as np
import pytest
from generation.conftest import tone

from slm.config.generation import GenerateJob
from slm.errors import ConfigError, DataError
from slm.generation.dataset import wav_bytes
from slm.generation.sources import open_source


def job(**settings) -> GenerateJob:
    return GenerateJob(out="o", model="m", **settings)


def test_a_folder_of_recordings(talking, tmp_path):
    source = open_source(job(audio=str(talking.questions)))
    asked = list(source.read(0))
    assert source.task == "sqa"
    assert [(one.question.id, one.question.number) for one in asked] == [("a.wav", 0), ("b.wav", 1), ("deep/c.wav", 2)]
    assert all(one.wave is not None and not one.fault for one in asked)
    assert [one.question.id for one in source.read(2)] == ["deep/c.wav"]
    shutil.copytree(talking.questions, tmp_path / "q")
    assert open_source(job(audio=str(tmp_path / "q"))).digest == source.digest
    (tmp_path / "q" / "a.wav").unlink()
    assert open_source(job(audio=str(tmp_path / "q"))).digest != source.digest


def test_what_is_no_audio_has_a_fault(talking, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "song.wav").write_text("not a song")
    (tmp_path / "nothing.flac").write_bytes(b"")
    shutil.copy(talking.questions / "a.wav", tmp_path / "other.flac")  # its content counts, not its name
    faults = {one.question.id: one.fault for one in open_source(job(audio=str(tmp_path))).read(0)}
    assert all("not a readable audio file" in faults[name] for name in ("notes.txt", "song.wav"))
    assert "audio is empty" in faults["nothing.flac"]
    assert faults["other.flac"] == ""


def saved(folder, **columns) -> str:
    features = datasets.Features({"audio": datasets.Audio()}) if "audio" in columns else None
    rows = datasets.Dataset.from_dict(columns) if features is None else None
    if rows is None:
        import pyarrow

        kinds = {name: datasets.Value("string") for name in columns if name != "audio"} | {"audio": datasets.Audio()}
        schema = datasets.Features(kinds).arrow_schema
        rows = datasets.Dataset(pyarrow.Table.from_pydict(columns, schema=schema))
    rows.save_to_disk(folder)
    return str(folder)


def test_a_data_set_with_an_audio_column(tmp_path):
    audio = [{"bytes": wav_bytes(tone(3)), "path": "a.wav"}, {"bytes": b"nonsense", "path": "b.wav"}, None]
    source = open_source(job(data=saved(tmp_path / "s", id=["x", "y", "z"], audio=audio)))
    asked = list(source.read(0))
    assert source.task == "sqa" and [one.question.id for one in asked] == ["x", "y", "z"]
    np.testing.assert_allclose(asked[0].wave, tone(3), atol=1e-3)
    assert "not a readable audio file" in asked[1].fault and "is empty" in asked[2].fault


def test_a_column_of_units_and_the_instructions_beside_it(tmp_path):
    data = saved(tmp_path / "s", unit=[[1, 1, 2], [3]], instruction=["Write.", "Note."])
    source = open_source(job(data=data, task="asr", column="unit"))
    asked = [one.question for one in source.read(0)]
    assert [(one.id, one.units, one.instruction) for one in asked] == [
        ("0", [1, 1, 2], "Write."),
        ("1", [3], "Note."),
    ]
    own = open_source(job(data=data, task="asr", column="unit", instruction="Type."))
    assert [one.question.instruction for one in own.read(1)] == ["Type."]


def test_text_files_and_json_lines(talking, tmp_path):
    (tmp_path / "q.txt").write_text("what is two\nsay paris\n")
    source = open_source(job(data=str(tmp_path / "q.txt")))
    assert source.task == "llm" and [one.question.text for one in source.read(0)] == ["what is two", "say paris"]
    rows = [{"id": name, "audio": f"{name}.wav"} for name in ("a", "b", "missing")]
    (talking.questions.parent / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(talking.questions, tmp_path / "beside")
    shutil.copy(talking.questions.parent / "q.jsonl", tmp_path / "beside")
    source = open_source(job(data=str(tmp_path / "beside" / "q.jsonl"), task="asr"))
    assert [bool(one.fault) for one in source.read(0)] == [False, False, True]


def test_what_is_no_source(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        open_source(job(audio=str(tmp_path / "nowhere")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no files"):
        open_source(job(audio=str(tmp_path / "empty")))
    with pytest.raises(DataError, match="can't be loaded"):
        open_source(job(data=str(tmp_path / "nowhere")))
    data = saved(tmp_path / "s", question=["a"])
    with pytest.raises(DataError, match="no column audio or text; there are: question"):
        open_source(job(data=data))
    with pytest.raises(DataError, match="no column speech"):
        open_source(job(data=data, column="speech"))
    with pytest.raises(ConfigError, match="task tts takes text"):
        open_source(job(data=saved(tmp_path / "u", text=[[1]]), task="tts"))
