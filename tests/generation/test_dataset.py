"""Questions in, a data set out: whole, continued when it was killed, published with a token of the environment."""

from __future__ import annotations

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice

import datasets
import numpy as np
import pytest
import soundfile

from slm.artifact import find_manifest, read_json, verify
from slm.config.generation import GenerateJob
from slm.errors import ConfigError, DataError, MachineError
from slm.generation.card import hub_token, push
from slm.generation.dataset import PROGRESS, answer_all
from slm.generation.sources import open_source


def job_of(out, talking, **settings) -> GenerateJob:
    usual = {"audio": str(talking.questions), "max_new_tokens": 40, "constrained": True, "temperature": 1.0}
    return GenerateJob(out=str(out), model=str(talking.base), **(usual | settings))


def make(job, speaker) -> bool:
    return answer_all(job, open_source(job), "0" * 64, lambda: speaker)


def rows_of(out) -> datasets.Dataset:
    loaded = datasets.load_dataset(str(out), split="train")
    assert loaded.features["audio"] == datasets.Audio(sampling_rate=16_000)
    return loaded.cast_column("audio", datasets.Audio(decode=False))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_a_folder_becomes_a_data_set_with_an_audio_column(talking, speaker, tmp_path, cache):
    (talking.questions / "notes.txt").write_text("no audio")
    try:
        job = job_of(tmp_path / "answers", talking, chunk=2)
        assert make(job, speaker) is True
        assert make(job, speaker) is False
    finally:
        (talking.questions / "notes.txt").unlink()
    rows = rows_of(job.out)
    assert rows["id"][:] == ["a.wav", "b.wav", "deep/c.wav"]
    for row in rows:
        spoken = row["audio"]
        assert bool(spoken) == bool(row["units"])
        if spoken:
            wave, rate = soundfile.read(io.BytesIO(spoken["bytes"]), dtype="float32")
            assert rate == 16_000
            np.testing.assert_allclose(wave, speaker.vocoder.wave(row["units"]), atol=1e-4)
    skipped = [json.loads(line) for line in (tmp_path / "answers" / "skipped.jsonl").read_text().splitlines()]
    assert [(row["id"], row["number"]) for row in skipped] == [("notes.txt", 2)]
    manifest = find_manifest(job.out)
    verify(job.out, manifest)
    assert (manifest.kind, manifest.about["answers"], manifest.about["skipped"]) == ("generated", 3, 1)
    card = (tmp_path / "answers" / "README.md").read_text()
    assert "data_files: data/*.parquet" in card and str(tmp_path) not in card
    assert not list(tmp_path.glob(".answers*"))


def test_a_killed_job_continues_and_gives_the_same(talking, speaker, tmp_path):
    whole, killed = (job_of(tmp_path / name, talking, chunk=1) for name in ("whole", "killed"))
    make(whole, speaker)

    class Dying:
        def __init__(self, source):
            self.task, self.digest, self._source = source.task, source.digest, source

        def read(self, start):
            yield from islice(self._source.read(start), 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer_all(killed, Dying(open_source(killed)), "0" * 64, lambda: speaker)
    assert not (tmp_path / "killed").exists()
    partial = tmp_path / ".killed.partial"
    assert read_json(partial / PROGRESS)["asked"] == 2
    seen = []

    class Counting(Dying):
        def read(self, start):
            seen.append(start)
            return self._source.read(start)

    answer_all(killed, Counting(open_source(killed)), "0" * 64, lambda: speaker)
    assert seen == [2]
    assert find_manifest(killed.out).fingerprint == find_manifest(whole.out).fingerprint


def test_a_partial_job_of_other_settings_is_begun_anew(talking, speaker, tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / PROGRESS).write_text(json.dumps({"job": "another", "parts": 7, "asked": 7}))
    make(job_of(tmp_path / "out", talking, limit=1), speaker)
    assert find_manifest(tmp_path / "out").about["answers"] == 1


def test_no_question_that_can_be_asked_is_an_error(talking, speaker, tmp_path):
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "a.wav").write_text("not a song")
    with pytest.raises(DataError, match="no question could be asked: not a readable audio file"):
        make(job_of(tmp_path / "out", talking, audio=str(tmp_path / "q")), speaker)
    assert not (tmp_path / "out").exists()


def test_one_wave_that_can_not_be_heard_does_not_cost_the_others(talking, speaker, tmp_path, monkeypatch):
    real = speaker.extractor.units

    def units(waves, rate=16_000):
        if any(abs(wave[0]) > 0.9 for wave in waves):
            raise DataError("too loud")
        return real(waves, rate)

    loud = tmp_path / "q" / "loud.wav"
    loud.parent.mkdir()
    soundfile.write(loud, np.full(8000, 0.99, np.float32), 16_000)
    soundfile.write(loud.with_name("quiet.wav"), np.full(8000, 0.1, np.float32), 16_000)
    monkeypatch.setattr(type(speaker.extractor), "units", lambda self, waves, rate=16_000: units(waves, rate))
    make(job_of(tmp_path / "out", talking, audio=str(loud.parent), temperature=0.0), speaker)
    assert json.loads((tmp_path / "out" / "skipped.jsonl").read_text())["why"] == "too loud"


class FakeHub(BaseHTTPRequestHandler):
    """The four calls of the Hub that publishing makes; keeps what it is told in `server.seen`."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.seen.append((self.path, self.headers["Authorization"], body))
        if self.headers["Authorization"] != "Bearer hf_right":
            return self._answer(401, {"error": "Invalid credentials"})
        if self.path == "/api/repos/create":
            return self._answer(200, {"url": f"{self.server.url}/datasets/me/answers"})
        if self.path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            found = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return self._answer(200, {"files": found})
        commit = f"{self.server.url}/datasets/me/answers/commit/{'0' * 40}"
        return self._answer(200, {"commitUrl": commit, "commitOid": "0" * 40, "success": True})

    def do_GET(self):
        self.server.seen.append((self.path, self.headers["Authorization"], b""))
        self._answer(200, {"sha": "0" * 40, "siblings": [], "id": "me/answers"})

    def _answer(self, code, value):
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    server.seen, server.url = [], f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def test_answers_are_published_to_a_private_data_set(hub, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("# Answers\n")
    (tmp_path / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    address = push(tmp_path, "me/answers", "hf_right", public=False)
    assert address == f"{hub.url}/datasets/me/answers"
    created = next(json.loads(body) for path, _, body in hub.seen if path == "/api/repos/create")
    assert (created["type"], created["visibility"]) == ("dataset", "private")
    lines = next(body for path, _, body in hub.seen if path.startswith("/api/datasets/me/answers/commit"))
    files = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"])
        for line in map(json.loads, lines.splitlines())
        if line["key"] == "file"
    }
    assert files == {"README.md": b"# Answers\n", "data/train-00000-of-00001.parquet": b"PAR1"}
    assert {token for _, token, _ in hub.seen} == {"Bearer hf_right"}


def test_a_wrong_token_is_one_clear_line(hub, tmp_path):
    (tmp_path / "README.md").write_text("# Answers\n")
    with pytest.raises(MachineError, match="the Hub did not take the data set") as failure:
        push(tmp_path, "me/answers", "hf_wrong", public=False)
    assert "hf_wrong" not in str(failure.value) and "run the same command again" in failure.value.mend


def test_the_token_is_that_of_the_environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert hub_token() == "hf_right"
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="needs HF_TOKEN in the environment"):
        hub_token()
