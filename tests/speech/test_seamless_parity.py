"""The port against what the original package computed: see `seamless_parity/record.py`."""

from __future__ import annotations

import numpy as np
import pytest
from published_speech import convert, heard

from slm.speech import load_extractor, load_vocoder


def test_features_are_the_package_s(recorded, converted):
    extractor, _ = load_extractor(converted, "cpu")
    for number, found in enumerate(extractor.features(heard(recorded))):
        np.testing.assert_allclose(found, recorded[f"features/{number}"], atol=1e-4, rtol=0)


def test_units_are_the_package_s(recorded, converted):
    extractor, _ = load_extractor(converted, "cpu")
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
