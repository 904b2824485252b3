"""Codebook fits: as good as k-means in one piece, continued to the bit, and a speech artifact like any other."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
from recordings import folder_source, save_corpus, units_job

from slm.artifact import hash_files, read_manifest, verify
from slm.config.codebook import CodebookEvaluation, CodebookJob, MelFeatures
from slm.config.loader import from_mapping
from slm.errors import ConfigError, DataError
from slm.speech import load_speech
from slm.speech.codebook import assign
from slm.speech.codebook_evaluate import evaluate_codebook
from slm.speech.codebook_features import FittedMel
from slm.speech.codebook_fit import Fit, Order, fit_codebook
from slm.speech.unit_job import build_unit_set
from slm.speech.unit_sources import open_recordings


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, waves):
    return save_corpus(tmp_path_factory.mktemp("corpus") / "wav", waves)


def fit_job(out: Path, corpus: Path, **changes) -> CodebookJob:
    values = {
        "out": str(out),
        "count": 16,
        "features": {"kind": "mel_kmeans", "fit_frames": 300, "griffin_lim_steps": 8},
        "source": folder_source(corpus),
        "batch": 8,
        "epochs": 4,
        "save_every": 2,
    }
    return from_mapping(CodebookJob, values | changes, "test")


def evaluation(speech: Path, corpus: Path) -> dict:
    return evaluate_codebook(
        from_mapping(CodebookEvaluation, {"speech": str(speech), "source": folder_source(corpus), "batch": 7}, "test")
    )


def test_a_fit_is_about_as_good_as_k_means_in_one_piece(tmp_path, corpus, waves):
    from sklearn.cluster import KMeans

    job = fit_job(tmp_path / "speech", corpus)
    assert fit_codebook(job) is True and fit_codebook(job) is False
    extractor, vocoder, units = load_speech(job.out)
    assert (units.count, units.rate_hz, units.codebook) == (16, 25.0, extractor.identity)
    heard = [soundfile.read(path, dtype="float32")[0] for path in sorted(corpus.rglob("*.flac"))]
    frames = np.concatenate(extractor.features(heard))
    ours = assign(frames, extractor.centroids)[1].mean()
    whole = KMeans(16, n_init=3, random_state=0).fit(frames).inertia_ / len(frames)
    assert ours < 1.25 * whole
    for wave, found in zip(heard, extractor.units(heard), strict=True):
        np.testing.assert_array_equal(assign(extractor.features([wave])[0], extractor.centroids)[0], found)
    assert np.abs(vocoder.wave(extractor.units(heard[:1])[0])).max() > 0.01, "how units sound was learned too"
    assert (extractor.durations >= 1).all() and extractor.durations.max() > 1.5
    about = verify(job.out).about
    assert about["steps"] == 12 and about["codebook"] == extractor.identity and about["skipped"] == 0
    assert about["last_inertia"] < about["first_inertia"]
    figures = evaluation(tmp_path / "speech", corpus)
    assert figures["inertia"] == pytest.approx(ours) and figures["recordings"] == 24
    every = np.concatenate(extractor.units(heard))
    assert figures["used_units"] == len(set(every.tolist())) and figures["frames"] == len(every)
    seconds = sum(map(len, heard)) / 16_000
    assert figures["units_a_second"] == pytest.approx(len(every) / seconds, rel=1e-3)
    assert figures["units_a_second_removed"] < figures["units_a_second"]


def test_killed_anywhere_it_continues_to_the_same_bytes(tmp_path, corpus, monkeypatch, caplog):
    straight = fit_job(tmp_path / "straight", corpus)
    fit_codebook(straight)
    for kill_after in (1, 4):
        saved, saves = Fit._save, iter(range(100))

        def save_and_die(self, centroids, saved=saved, saves=saves, kill_after=kill_after):
            saved(self, centroids)
            if next(saves) == kill_after:
                raise KeyboardInterrupt

        job = fit_job(tmp_path / f"killed-{kill_after}", corpus)
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Fit, "_save", save_and_die)
            fit_codebook(job)
        assert not Path(job.out).exists() and len(list(tmp_path.glob(".killed*.fit-*"))) == 1
        with caplog.at_level(logging.INFO):
            fit_codebook(job)
        assert f"continuing after step {2 * kill_after} of 12" in caplog.text
        assert hash_files(job.out) == hash_files(straight.out)
        assert read_manifest(job.out).fingerprint == read_manifest(straight.out).fingerprint
        assert not list(tmp_path.glob(".*")), "nothing is kept under any name"


def test_what_another_fit_left_is_not_taken_for_this_ones(tmp_path, corpus, monkeypatch):
    def die(self, *rest):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Fit, "_step", die)
        fit_codebook(fit_job(tmp_path / "speech", corpus, seed=1))
    assert len(list(tmp_path.glob(".speech.fit-*"))) == 1
    fit_codebook(fit_job(tmp_path / "speech", corpus))
    fit_codebook(fit_job(tmp_path / "other", corpus))
    assert hash_files(tmp_path / "speech") == hash_files(tmp_path / "other")
    other = fit_job(tmp_path / "other", corpus, seed=1)
    assert fit_codebook(other) is True
    assert load_speech(other.out)[2].codebook != load_speech(tmp_path / "speech")[2].codebook


def test_a_fitted_artifact_extracts_unit_sets_that_carry_its_identity(tmp_path, corpus):
    fit_codebook(fit_job(tmp_path / "speech", corpus, init="random"))
    job = units_job(tmp_path / "units", tmp_path / "speech", folder_source(corpus))
    build_unit_set(job)
    manifest = read_manifest(job.out)
    assert manifest.inputs["speech"] == read_manifest(tmp_path / "speech").fingerprint
    assert manifest.about["unit_set"]["codebook"] == load_speech(tmp_path / "speech")[2].codebook
    fit_codebook(fit_job(tmp_path / "speech", corpus, seed=3))
    assert build_unit_set(job) is True, "another codebook makes the unit set stale"


def test_every_epoch_sees_every_recording_once_in_another_order(tmp_path, corpus):
    job = fit_job(tmp_path / "speech", corpus, batch=16)
    order = Order(open_recordings(job.source), job)
    assert (order.recordings, order.steps) == (24, 8)
    epochs = []
    for epoch in range(4):
        steps = range(epoch * order.steps_an_epoch, (epoch + 1) * order.steps_an_epoch)
        parts = [part for step in steps for part in order.of_step(step)]
        epochs.append([row for part in parts for span in part.spans for row in range(span.start, span.stop)])
    assert all(sorted(rows) == list(range(24)) for rows in epochs) and len(set(map(tuple, epochs))) > 1
    some = Order(open_recordings(job.source), fit_job(tmp_path / "speech", corpus, steps=3))
    assert some.steps == 3


def test_bad_recordings_are_skipped_and_listed(tmp_path, waves):
    folder = save_corpus(tmp_path / "wav", waves)
    (folder / "s0" / "text.wav").write_text("no audio")
    job = fit_job(tmp_path / "speech", folder, hearing={"skipped_at_most": 0.1})
    fit_codebook(job)
    assert (tmp_path / "speech" / "skipped.csv").read_text() == (
        "id,reason\ntext,not a readable audio file: Format not recognised\n"
    )
    assert read_manifest(job.out).about["skipped"] == 1
    with pytest.raises(DataError, match="1 of 25 recordings can't be used"):
        fit_codebook(fit_job(tmp_path / "strict", folder))
    with pytest.raises(DataError, match="1 of 25 recordings can't be used"):
        evaluation(tmp_path / "speech", folder)


def test_what_can_not_be_fitted_is_told(tmp_path, corpus):
    with pytest.raises(DataError, match="different frames can't make 2000 units"):
        fit_codebook(fit_job(tmp_path / "speech", corpus, count=2000, init="random"))
    for changes, message in [
        ({"count": 1}, "count"),
        ({"features": {"kind": "mel_kmeans", "discriminants": 4}}, "discriminants need word times"),
        ({"features": {"kind": "mel_kmeans", "count": 4}}, "the number of units is the job's count"),
        ({"features": {"kind": "wavelets"}}, "kind"),
        ({"source": {"kind": "hf", "path": "x", "streaming": True}}, "streaming: false"),
    ]:
        with pytest.raises(ConfigError, match=message):
            fit_job(tmp_path / "speech", corpus, **changes)
    features = FittedMel.open(MelFeatures())
    features.prepare([np.zeros(16_000, np.float32)])
    with pytest.raises(DataError, match=r"centroids have shape \(4, 3\), features are 39 wide"):
        features.save(tmp_path, np.zeros((4, 3), np.float32))


def test_the_commands(tmp_path, corpus, capsys):
    from slm.cli.app import main

    pairs = [f"out={tmp_path}/speech", "count=16", "features.kind=mel_kmeans", "features.fit_frames=300", "batch=8"]
    source = ["source.kind=folder", f"source.path={corpus}"]
    assert main(["speech", "codebook", "fit", *pairs, *source]) == 0
    assert main(["speech", "codebook", "evaluate", f"speech={tmp_path}/speech", *source, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["count"] == 16 and 0 < figures["entropy_bits"] <= 4
    assert main(["speech", "codebook", "evaluate", f"speech={tmp_path}/speech", *source]) == 0
    assert "used_units" in capsys.readouterr().out
    config = tmp_path / "job.yaml"
    config.write_text(f"job: units\nspeech: {tmp_path}/speech\nsource: {{kind: folder, path: {corpus}}}\n")
    assert main(["validate", str(config)]) == 0
    assert main(["speech", "units", str(config), f"out={tmp_path}/units", "--task", "0/1", "--join"]) == 2
    assert main(["speech", "units", str(config), f"out={tmp_path}/units", "--workers", "1"]) == 0
    assert (tmp_path / "units" / "MANIFEST.json").is_file()
    for argv in (["units"], ["codebook", "fit"], ["codebook", "evaluate"]):
        assert main(["speech", *argv]) == 2
        assert "usage: slm speech" in capsys.readouterr().err
