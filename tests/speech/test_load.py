from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from slm.errors import DataError
from slm.speech import EXTRACTORS, VOCODERS, load_speech


def test_an_artifact_opens_by_its_names(codebook, waves, tmp_path):
    codebook.save(tmp_path)
    extractor, vocoder, units = load_speech(tmp_path)
    assert (units.count, units.rate_hz, units.codebook) == (16, 25.0, codebook.identity)
    assert (units.input, units.output, units.extractor) == ("kept", "removed", "mel_kmeans")
    np.testing.assert_array_equal(extractor.units(waves[:1])[0], codebook.units(waves[:1])[0])
    assert np.abs(vocoder.wave([1, 2, 3])).max() > 0.01


def change(folder, **values):
    path = folder / "speech.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_unknown_names_and_foreign_codebooks_are_refused(codebook, tmp_path):
    codebook.save(tmp_path)
    change(tmp_path, extractor="whisper")
    with pytest.raises(DataError, match="unknown extractor 'whisper'; known: mel_kmeans"):
        load_speech(tmp_path)
    codebook.save(tmp_path)
    change(tmp_path, units={**vars(codebook.unit_set), "codebook": "0" * 64})
    with pytest.raises(DataError, match=r"speech\.json says 000000000000"):
        load_speech(tmp_path)
    change(tmp_path, units={"count": 3})
    with pytest.raises(DataError, match="not a description"):
        load_speech(tmp_path)
    with pytest.raises(DataError, match="not found"):
        load_speech(tmp_path / "none")


def test_registries_hold_paths_and_nothing_heavy_is_imported():
    program = "import sys, slm.speech; print([m for m in ('librosa', 'sklearn', 'torch', 'scipy') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
    assert all(":" in target for target in [*EXTRACTORS.values(), *VOCODERS.values()])
