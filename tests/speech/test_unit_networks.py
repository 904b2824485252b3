"""Unit jobs and codebook fits with a network: a pico XLS-R instead of mel features."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from recordings import folder_source, save_corpus, units_job

from slm.artifact import hash_files, read_manifest
from slm.config.codebook import CodebookEvaluation, CodebookJob
from slm.config.loader import from_mapping
from slm.errors import CheckpointError, DataError
from slm.speech import load_extractor
from slm.speech.codebook_evaluate import evaluate_codebook
from slm.speech.codebook_fit import Fit, fit_codebook
from slm.speech.unit_job import build_unit_set


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    """Two layers of width 32 with XLS-R's layout."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, conv_dim=[16] * 7,
        conv_bias=True, feat_extract_norm="layer", do_stable_layer_norm=True, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4, initializer_range=0.2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("network")
    Wav2Vec2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, waves):
    return save_corpus(tmp_path_factory.mktemp("corpus") / "wav", waves[:12])


def fit_job(out: Path, network: Path, corpus: Path, **changes) -> CodebookJob:
    values = {
        "out": str(out),
        "count": 12,
        "features": {"kind": "xlsr_kmeans", "model": str(network), "layer": 2},
        "source": folder_source(corpus),
        "batch": 8,
        "epochs": 3,
        "save_every": 1,
        "device": "cpu",
    }
    return from_mapping(CodebookJob, values | changes, "test")


@pytest.fixture(scope="module")
def speech(tmp_path_factory, network, corpus):
    out = tmp_path_factory.mktemp("fitted") / "speech"
    fit_codebook(fit_job(out, network, corpus))
    return out


def test_a_codebook_of_a_networks_features_is_fitted_and_judged(speech, corpus):
    extractor, units = load_extractor(speech, "cpu")
    assert (units.count, units.rate_hz, units.extractor) == (12, 50.0, "xlsr_kmeans")
    assert units.codebook == extractor.identity and read_manifest(speech).inputs.keys() == {"model", "source"}
    config = {"speech": str(speech), "source": folder_source(corpus), "device": "cpu"}
    figures = evaluate_codebook(from_mapping(CodebookEvaluation, config, "test"))
    heard = [soundfile.read(path, dtype="float32")[0] for path in sorted(corpus.rglob("*.flac"))]
    every, frames = np.concatenate(extractor.units(heard)), np.concatenate(extractor.features(heard))
    assert figures["frames"] == len(every) and figures["used_units"] == len(set(every.tolist())) > 6
    apart = np.square(frames.astype(np.float64) - extractor.centroids[every]).sum(axis=1)
    assert figures["inertia"] == pytest.approx(apart.mean(), rel=1e-6) and figures["inertia_share"] < 0.9


def test_a_fit_on_a_network_continues_to_the_bit(tmp_path, speech, network, corpus, monkeypatch, caplog):
    saved = Fit._save

    def save_and_die(self, centroids):
        saved(self, centroids)
        if centroids.step == 3:
            raise KeyboardInterrupt

    job = fit_job(tmp_path / "speech", network, corpus)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Fit, "_save", save_and_die)
        fit_codebook(job)
    with caplog.at_level(logging.INFO):
        fit_codebook(job)
    assert "continuing after step 3 of 6" in caplog.text
    assert hash_files(job.out) == hash_files(speech)


def test_a_networks_unit_set_is_that_of_one_recording_at_a_time(tmp_path, speech, corpus):
    one = units_job(tmp_path / "one", speech, folder_source(corpus), device="cpu", batch_s=6.0)
    two = units_job(tmp_path / "two", speech, folder_source(corpus), device="cpu", batch_s=6.0, workers=2)
    build_unit_set(one)
    build_unit_set(two)
    assert hash_files(one.out) == hash_files(two.out)
    extractor = load_extractor(speech, "cpu")[0]
    for file in Path(one.out).glob("units-*.jsonl"):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            wave, _ = soundfile.read(next(corpus.rglob(f"{row['id']}.flac")), dtype="float32")
            np.testing.assert_array_equal(extractor.units([wave])[0], row["units"])


def test_a_layer_that_is_not_there_and_a_codebook_of_another_width_are_refused(tmp_path, speech, network, corpus):
    with pytest.raises(CheckpointError, match="layer 9 is wanted, the network has 3"):
        features = {"kind": "xlsr_kmeans", "model": str(network), "layer": 9}
        fit_codebook(fit_job(tmp_path / "speech", network, corpus, features=features))
    points = np.load(speech / "centroids.npy")
    np.save(speech / "centroids.npy", points[:, :20])
    try:
        with pytest.raises(DataError, match="20"):
            build_unit_set(units_job(tmp_path / "units", speech, folder_source(corpus), device="cpu"))
        np.save(speech / "centroids.npy", points + 1)
        with pytest.raises(DataError, match="the codebook is"):
            build_unit_set(units_job(tmp_path / "units", speech, folder_source(corpus), device="cpu"))
    finally:
        np.save(speech / "centroids.npy", points)
    assert not (tmp_path / "units").exists()
