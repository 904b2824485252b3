from __future__ import annotations

import itertools
import json

import librosa
import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.cluster import KMeans

from slm.config.speech import MelKMeansConfig
from slm.errors import DataError
from slm.speech.mel_kmeans import MelKMeans, discriminants, features, log_mels, nearest


def test_one_unit_per_period(codebook, waves):
    for samples in (1, 639, 640, 641, 16_000):
        (units,) = codebook.units([waves[0][:samples]])
        assert units.dtype == np.int32
        assert len(units) == -(-samples // 640)
        assert 0 <= units.min() <= units.max() < 16


def test_units_do_not_depend_on_the_batch(codebook, waves):
    together = codebook.units(waves)
    for wave, units in zip(waves, together, strict=True):
        np.testing.assert_array_equal(codebook.units([wave])[0], units)


def test_log_mels_agree_with_a_frame_by_frame_spectrum(waves):
    config = MelKMeansConfig()
    wave = waves[0]
    (found,) = log_mels([wave], config)
    bank = librosa.filters.mel(sr=16_000, n_fft=1024, n_mels=40, fmin=60, fmax=7600, norm=None)
    padded = np.pad(wave, (192, 2048))
    for frame in (0, 5, len(found) - 1):
        piece = padded[frame * 640 : frame * 640 + 1024] * np.hanning(1025)[:-1]
        power = np.abs(np.fft.rfft(piece) * 4 / 1024) ** 2
        np.testing.assert_allclose(found[frame], np.log(bank @ power + 1e-7), rtol=1e-3, atol=1e-3)


def test_features_are_normalised_and_stacked(waves):
    config = MelKMeansConfig(cepstra=0, stack=2, normalise="mean")
    (log,) = log_mels(waves[:1], config)
    stacked = features(log, config)
    assert stacked.shape == (len(log), 200)
    centre = stacked[:, 80:120]
    np.testing.assert_allclose(centre.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(stacked[3, :40], centre[1], atol=1e-6)
    np.testing.assert_allclose(stacked[0, :40], centre[0], atol=1e-6)
    np.testing.assert_allclose(stacked[3, 160:], centre[5], atol=1e-6)


def test_loudness_does_not_change_units(codebook, waves):
    loud, soft = codebook.units([waves[0], 0.5 * waves[0]])
    assert (loud == soft).mean() > 0.9


def test_nearest_agrees_with_scikit_learn():
    chance = np.random.default_rng(0)
    points, centres = chance.normal(size=(200, 6)).astype(np.float32), chance.normal(size=(9, 6)).astype(np.float32)
    other = KMeans(9, init=centres, n_init=1, max_iter=1).fit(points)
    other.cluster_centers_ = centres
    np.testing.assert_array_equal(nearest(points, centres), other.predict(points))


def test_fitting_is_deterministic_and_follows_the_seed(codebook, waves, small):
    assert MelKMeans.fit(waves, small).identity == codebook.identity
    other = MelKMeans.fit(waves, small.model_copy(update={"seed": 1}))
    assert other.identity != codebook.identity


def test_saved_and_loaded_it_is_the_same(codebook, waves, tmp_path):
    codebook.save(tmp_path)
    loaded = MelKMeans.load(tmp_path)
    assert loaded.identity == codebook.identity
    assert loaded.config == codebook.config
    for a, b in zip(loaded.units(waves), codebook.units(waves), strict=True):
        np.testing.assert_array_equal(a, b)
    first = (tmp_path / "codebook.npz").read_bytes()
    codebook.save(tmp_path)
    assert (tmp_path / "codebook.npz").read_bytes() == first


def test_sound_and_durations_can_come_from_one_voice(waves, small):
    quiet = [0.5 * wave for wave in waves]
    both = MelKMeans.fit([*waves, *quiet], small, voice=quiet)
    plain = MelKMeans.fit([*waves, *quiet], small)
    np.testing.assert_array_equal(both.centroids, plain.centroids)
    softer = (both.mel - plain.mel).max(axis=1)  # half of the frames at a quarter of the power
    assert np.median((both.mel - plain.mel).min(axis=1)) == pytest.approx(np.log(0.5), abs=0.3)
    assert (softer < 0.1).all()
    assert (both.durations >= 1).all()


def test_mean_durations_are_those_of_the_runs(codebook, waves):
    runs: dict[int, list[int]] = {}
    for units in codebook.units(waves):
        edges = np.flatnonzero(np.diff(units, prepend=-1, append=-1))
        for start, end in itertools.pairwise(edges):
            runs.setdefault(int(units[start]), []).append(end - start)
    for unit, lengths in runs.items():
        assert codebook.durations[unit] == pytest.approx(np.mean(lengths), rel=1e-5)


def test_unusable_waves_are_named(codebook, waves):
    with pytest.raises(DataError, match="NaN") as caught:
        codebook.units([waves[0], np.array([np.nan], np.float32)])
    assert caught.value.where == "wave 1 of 2"
    with pytest.raises(DataError, match="empty"):
        codebook.units([np.zeros(0, np.float32)])
    with pytest.raises(DataError, match="8000 Hz"):
        codebook.units(waves, rate=8_000)
    assert codebook.units([]) == []


def test_too_little_speech_is_refused(small, waves):
    with pytest.raises(DataError, match="can't make 16 units"):
        MelKMeans.fit([waves[0][:3_200]], small)
    with pytest.raises(DataError, match="0 different frames"):
        MelKMeans.fit([], small)


@pytest.mark.parametrize(
    "change", [{"rate_hz": 30.0}, {"rate_hz": 10.0}, {"cepstra": 41}, {"count": 1}, {"normalise": "max"}]
)
def test_settings_that_do_not_fit_are_refused(change):
    with pytest.raises(ValidationError):
        MelKMeansConfig(**change)


def test_damaged_codebooks_are_data_errors(codebook, tmp_path):
    codebook.save(tmp_path)
    about = json.loads((tmp_path / "speech.json").read_text())
    about["config"]["count"] = 17
    (tmp_path / "speech.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match="shapes"):
        MelKMeans.load(tmp_path)
    codebook.save(tmp_path)
    (tmp_path / "codebook.npz").write_bytes((tmp_path / "codebook.npz").read_bytes()[:100])
    with pytest.raises(DataError, match="can't be read"):
        MelKMeans.load(tmp_path)
    (tmp_path / "codebook.npz").unlink()
    with pytest.raises(DataError, match="not found"):
        MelKMeans.load(tmp_path)


def test_discriminants_tell_labels_apart_where_the_spread_does_not():
    chance = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2, 9], [100, 100, 100, 1])
    sample = chance.normal(size=(301, 5)) * [10, 10, 1, 1, 1]
    sample[:, 3] += 5 * (labels == 1)
    sample[:, 4] += 5 * (labels == 2)
    found = discriminants(sample, labels, 2)
    assert found.shape == (5, 2)
    strength = np.abs(found).sum(axis=1)
    assert strength[3:].min() > 5 * strength[:3].max()
    with pytest.raises(DataError, match="3 different labels can't give 3"):
        discriminants(sample, labels, 3)


def test_discriminant_units_need_labels_that_fit(waves, small, tmp_path):
    config = small.model_copy(update={"discriminants": 4})
    labels = [np.arange(len(units)) // 4 % 8 for units in MelKMeans.fit(waves, small).units(waves)]
    fitted = MelKMeans.fit(waves, config, labels=labels)
    assert fitted.projection.shape == (39, 4)
    fitted.save(tmp_path)
    np.testing.assert_array_equal(MelKMeans.load(tmp_path).units(waves[:1])[0], fitted.units(waves[:1])[0])
    for wrong in (None, labels[1:], [row[:-1] for row in labels]):
        with pytest.raises(DataError, match="one label for each unit period"):
            MelKMeans.fit(waves, config, labels=wrong)
