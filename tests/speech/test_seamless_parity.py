"""The port against what the original package computed: see `seamless_parity/record.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from slm.config.speech import SpeechConvertJob
from slm.speech import load_extractor, load_vocoder
from slm.speech.convert import convert_speech

RECORDED = Path(__file__).parent / "seamless_parity" / "recorded.npz"


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(RECORDED) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def checkpoints(recorded, tmp_path_factory) -> Path:
    """The recorded weights as the package saves them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in ("xlsr", "vocoder"):
        tensors = {
            key.removeprefix(f"{name}/"): torch.from_numpy(value)
            for key, value in recorded.items()
            if key.startswith(f"{name}/")
        }
        torch.save({"model": tensors}, folder / f"{name}.pt")
    np.save(folder / "kmeans.npy", recorded["kmeans"])
    (folder / "voices.json").write_text('{"deu": [0], "eng": [3, 1], "fra": [2, 4]}')
    return folder


def convert(checkpoints: Path, out: Path, **changed) -> Path:
    values = {
        "out": str(out),
        "xlsr": str(checkpoints / "xlsr.pt"),
        "kmeans": str(checkpoints / "kmeans.npy"),
        "vocoder": str(checkpoints / "vocoder.pt"),
        "voices": str(checkpoints / "voices.json"),
        "layer": 3,
        "heads": 4,
    }
    convert_speech(SpeechConvertJob(**{**values, **changed}))
    return out


@pytest.fixture(scope="module")
def speech(checkpoints, tmp_path_factory) -> Path:
    return convert(checkpoints, tmp_path_factory.mktemp("converted") / "speech")


def heard(recorded) -> list[np.ndarray]:
    return [recorded[f"wave/{n}"].astype(np.float32) / 32768 for n in range(6)]


def test_features_are_the_package_s(recorded, speech):
    extractor, _ = load_extractor(speech, "cpu")
    for number, found in enumerate(extractor.features(heard(recorded))):
        np.testing.assert_allclose(found, recorded[f"features/{number}"], atol=1e-4, rtol=0)


def test_units_are_the_package_s(recorded, speech):
    extractor, _ = load_extractor(speech, "cpu")
    used = set()
    for number, found in enumerate(extractor.units(heard(recorded))):
        np.testing.assert_array_equal(found, recorded[f"units/{number}"])
        used |= set(found.tolist())
    assert len(used) > 40  # the comparison would mean little if most frames fell to one unit


@pytest.mark.parametrize("output", ["removed", "kept"])
def test_the_wave_is_the_package_s(recorded, checkpoints, tmp_path, output):
    folder = convert(checkpoints, tmp_path / "speech", output=output)
    for number in range(3):
        language, speaker = recorded[f"voice/{number}"]
        chosen = None if speaker == "-1" else int(speaker)
        vocoder = load_vocoder(folder, "cpu", language=str(language), speaker=chosen)
        found = vocoder.wave(recorded[f"said/{number}"].tolist())
        wanted = recorded[f"spoken/{output}/{number}"]
        assert wanted.std() > 0.01
        np.testing.assert_allclose(found, wanted, atol=1e-3, rtol=0)
