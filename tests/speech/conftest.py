"""Waves that resemble speech enough for units: random sequences of a few steady sounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from published_speech import RECORDED, convert, write_checkpoints

from slm.config.speech import MelKMeansConfig
from slm.speech.mel_kmeans import MelKMeans

RATE = 16_000
SOUNDS = ((300, 2200), (650, 1100), (450, 1500), (280, 900), (500, 3000), (800, 1800))


def babble(seed: int, sounds: int = 8) -> np.ndarray:
    """A voice of 120 Hz that goes through random vowels, 0.15 s each, with gaps."""
    chance = np.random.default_rng(seed)
    pieces = []
    for _ in range(sounds):
        time = np.arange(int(0.15 * RATE)) / RATE
        formants = SOUNDS[chance.integers(len(SOUNDS))]
        harmonics = np.arange(1, 40) * 120.0
        gains = sum(np.exp(-(((harmonics - formant) / 150.0) ** 2)) for formant in formants) + 0.01
        piece = (gains[:, None] * np.sin(2 * np.pi * harmonics[:, None] * time)).sum(axis=0)
        pieces.append(0.2 * piece * np.hanning(len(time)) ** 0.2)
        if chance.random() < 0.2:
            pieces.append(np.zeros(int(0.08 * RATE)))
    return np.concatenate(pieces).astype(np.float32)


@pytest.fixture(scope="session")
def waves() -> list[np.ndarray]:
    return [babble(seed) for seed in range(24)]


@pytest.fixture(scope="session")
def small() -> MelKMeansConfig:
    return MelKMeansConfig(count=16, fit_tries=1, griffin_lim_steps=16)


@pytest.fixture(scope="session")
def codebook(waves, small) -> MelKMeans:
    return MelKMeans.fit(waves, small)


@pytest.fixture(scope="session")
def recorded() -> dict[str, np.ndarray]:
    """What the original package was given, and what it gave."""
    with np.load(RECORDED) as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def checkpoints(recorded, tmp_path_factory) -> Path:
    return write_checkpoints(recorded, tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def converted(checkpoints, tmp_path_factory) -> Path:
    """A speech artifact of XLS-R and code HiFi-GAN."""
    return convert(checkpoints, tmp_path_factory.mktemp("converted") / "speech")
