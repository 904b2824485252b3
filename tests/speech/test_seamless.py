"""The original package as a job: with the package itself (`make test-seamless`), and with a stand-in for it here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from published_speech import conversion, convert, heard

from slm.errors import CheckpointError, DataError, MachineError
from slm.speech import load_extractor, load_speech, load_vocoder
from slm.speech.convert import convert_speech
from slm.speech.seamless_env import DONE_FILE, PINS, interpreter, make_environment

# Modules by the names that the job imports; units are lengths, waves are units.
STAND_IN = {
    "fairseq2/assets/card.py": "class AssetCard:\n    def __init__(self, values):\n        self.values = values\n",
    "seamless_communication/models/unit_extractor.py": """
import os
import torch

class UnitExtractor:
    def __init__(self, card, kmeans, device):
        print("noise on standard output")
        assert card.values["checkpoint"].startswith("file:///") and kmeans.startswith("file:///")
        self.device = device

    def predict(self, samples, layer, sample_rate):
        if float(samples[0]) == 9.0:
            raise ValueError("a wave it dislikes")
        if float(samples[0]) == 8.0:
            os._exit(3)
        return torch.full((len(samples) // 320,), layer)
""",
    "seamless_communication/models/vocoder.py": """
import torch

class Package(torch.nn.Module):
    def forward(self, units, language, speaker, dur_prediction):
        assert (language, speaker) == ("eng", 3)
        return units.float()[None, None] / 100 + (0.5 if dur_prediction else 0.0)

def load_vocoder_model(card, device, dtype):
    return Package()
""",
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """A finished environment whose packages are stand-ins."""
    folder = tmp_path_factory.mktemp("environment")
    for name, text in STAND_IN.items():
        path = folder / "packages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder}/packages exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (folder / DONE_FILE).write_text("{}")
    return folder


@pytest.fixture(scope="module")
def speech(checkpoints, environment, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("seamless") / "speech"
    return convert(checkpoints, folder, extractor="seamless", environment=str(environment))


def test_units_come_from_the_job_in_order_of_the_waves(speech):
    extractor, units = load_extractor(speech, "cpu")
    assert (units.count, units.rate_hz, extractor.identity) == (50, 50.0, units.codebook)
    found = extractor.units([np.ones(n, np.float32) for n in (3200, 399, 640)])
    assert [each.tolist() for each in found] == [[2] * 10, [], [2, 2]]  # the package counts layers from 0
    assert all(each.dtype == np.int32 for each in found)
    assert [len(each) for each in extractor.units([np.ones(960, np.float32)])] == [3]  # the same process again


def test_a_wave_that_the_package_refuses_is_a_data_error_and_the_job_goes_on(speech):
    extractor, _ = load_extractor(speech, "cpu")
    with pytest.raises(DataError, match="ValueError: a wave it dislikes"):
        extractor.units([np.full(640, 9.0, np.float32)])
    assert len(extractor.units([np.ones(640, np.float32)])[0]) == 2


def test_a_job_that_dies_is_told(speech):
    extractor, _ = load_extractor(speech, "cpu")
    with pytest.raises(MachineError, match="process of seamless_communication ended"):
        extractor.units([np.full(640, 8.0, np.float32)])


def test_the_vocoder_predicts_durations_only_where_repeats_are_removed(speech, checkpoints, environment, tmp_path):
    removed = load_vocoder(speech, "cpu")
    np.testing.assert_allclose(removed.wave([10, 20]), [0.6, 0.7], atol=1e-6)
    np.testing.assert_allclose(removed.wave([10, 20], [2, 1]), [0.1, 0.1, 0.2], atol=1e-6)
    assert removed.wave([]).shape == (0,)
    folder = convert(checkpoints, tmp_path / "kept", extractor="seamless", environment=str(environment), output="kept")
    np.testing.assert_allclose(load_vocoder(folder, "cpu").wave([10, 20]), [0.1, 0.2], atol=1e-6)
    with pytest.raises(DataError, match="0 to 49"):
        removed.wave([50])
    with pytest.raises(DataError, match="language 'xyz'"):
        load_vocoder(speech, "cpu", language="xyz")


def test_checkpoints_that_are_gone_or_changed_are_refused(checkpoints, environment, tmp_path):
    own = tmp_path / "kmeans.npy"
    own.write_bytes((checkpoints / "kmeans.npy").read_bytes())
    changed = {"extractor": "seamless", "environment": str(environment), "kmeans": str(own)}
    folder = convert(checkpoints, tmp_path / "s", **changed)
    np.save(own, np.zeros((3, 32), np.float32))
    with pytest.raises(DataError, match="gone or has changed"):
        load_extractor(folder, "cpu")


def test_a_codebook_of_another_width_is_refused_before_the_package_starts(checkpoints, environment, tmp_path):
    np.save(tmp_path / "kmeans.npy", np.zeros((50, 31), np.float32))
    changed = {"extractor": "seamless", "environment": str(environment), "kmeans": str(tmp_path / "kmeans.npy")}
    with pytest.raises(DataError, match="width 31, the network 32"):
        convert(checkpoints, tmp_path / "s", **changed)


def test_without_an_environment_there_is_no_job(checkpoints, tmp_path):
    with pytest.raises(MachineError, match="no finished environment") as caught:
        convert(checkpoints, tmp_path / "s", extractor="seamless", environment=str(tmp_path))
    assert "slm speech env seamless" in str(caught.value)


def test_the_job_script_runs_on_the_package_s_own_python():
    """The environment's Python is 3.9 at the oldest."""
    import ast

    from slm.speech.seamless import JOB

    tree = ast.parse(JOB.read_text(), feature_version=(3, 9))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(name.split(".")[0] == "slm" for name in names)


def test_a_source_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(DataError, match="no checkout of seamless_communication"):
        make_environment(tmp_path / "env", source=str(tmp_path))
    assert not (tmp_path / "env").exists()


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(MachineError, match="holds something else"):
        make_environment(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_python_that_fails_leaves_no_finished_environment(tmp_path):
    with pytest.raises(MachineError, match="making the environment failed"):
        make_environment(tmp_path / "env", python=str(tmp_path / "python3.11"))
    with pytest.raises(MachineError, match="no finished environment"):
        interpreter(tmp_path / "env")


def test_pins_are_exact():
    lines = [line for line in PINS.read_text().splitlines() if line and not line.startswith("#")]
    assert lines and all(line.count("==") == 1 for line in lines)


@pytest.fixture(scope="module")
def package() -> Path:
    """The environment with the real package that `make test-seamless` has made."""
    folder = os.environ.get("SLM_SEAMLESS", "")
    try:
        interpreter(folder or "none")
    except MachineError as error:
        pytest.skip(f"the original package can't be run here: {error.what} (SLM_SEAMLESS={folder!r})")
    return Path(folder)


@pytest.mark.seamless
def test_the_package_itself_gives_the_recorded_units_and_waves(package, recorded, checkpoints, tmp_path):
    folder = convert(checkpoints, tmp_path / "speech", extractor="seamless", environment=str(package))
    extractor, vocoder, _ = load_speech(folder)
    for number, found in enumerate(extractor.units(heard(recorded))):
        np.testing.assert_array_equal(found, recorded[f"units/{number}"])
    assert vocoder.speaker == 3
    np.testing.assert_allclose(vocoder.wave(recorded["said/0"].tolist()), recorded["spoken/removed/0"], atol=1e-5)


@pytest.mark.seamless
def test_recording_again_gives_the_fixture(package, recorded, tmp_path):
    script = Path(__file__).parent / "seamless_parity" / "record.py"
    subprocess.run([interpreter(package), str(script), str(tmp_path / "again.npz")], check=True, capture_output=True)
    with np.load(tmp_path / "again.npz") as again:
        assert set(again.files) == set(recorded)
        for name, value in recorded.items():
            if value.dtype.kind == "f":
                np.testing.assert_allclose(again[name], value, atol=1e-4, err_msg=name)
            else:
                np.testing.assert_array_equal(again[name], value, err_msg=name)


@pytest.mark.seamless
def test_port_and_package_agree_on_fresh_waves(package, checkpoints, converted, tmp_path):
    chance = np.random.default_rng(11)
    waves = [(0.1 * chance.standard_normal(n)).astype(np.float32) for n in (16_000, 7_999, 20_001, 719)]
    folder = convert(checkpoints, tmp_path / "speech", extractor="seamless", environment=str(package))
    theirs, ours = load_extractor(folder, "cpu")[0].units(waves), load_extractor(converted, "cpu")[0].units(waves)
    for one, other in zip(theirs, ours, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_damaged_checkpoint_is_refused_here_already(checkpoints, environment, tmp_path):
    (tmp_path / "xlsr.pt").write_bytes(b"nothing")
    job = conversion(
        checkpoints, tmp_path / "s", extractor="seamless", environment=str(environment), xlsr=str(tmp_path / "xlsr.pt")
    )
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        convert_speech(job)


def test_a_description_that_is_none_is_refused(speech, tmp_path):
    about = json.loads((speech / "speech.json").read_text())
    del about["package"]
    (tmp_path / "speech.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match="not a description of the package"):
        load_extractor(tmp_path, "cpu")
