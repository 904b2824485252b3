from __future__ import annotations

import numpy as np
import pytest
from published_speech import RECORDED, write_checkpoints

from slm.cli.app import main
from slm.speech import load_speech


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    with np.load(RECORDED) as recorded:
        return write_checkpoints(dict(recorded), tmp_path_factory.mktemp("checkpoints"))


def test_convert_makes_a_speech_artifact(checkpoints, tmp_path):
    out = tmp_path / "speech"
    files = [f"{name}={checkpoints / file}" for name, file in [("xlsr", "xlsr.pt"), ("kmeans", "kmeans.npy")]]
    files += [f"vocoder={checkpoints / 'vocoder.pt'}", f"voices={checkpoints / 'voices.json'}"]
    assert main(["speech", "convert", f"out={out}", *files, "layer=3", "heads=4"]) == 0
    extractor, vocoder, units = load_speech(out)
    assert (extractor.name, vocoder.name, units.count) == ("xlsr_kmeans", "code_hifigan", 50)


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["convert"], 2, "usage: slm speech convert"),
        (["convert", "out=o"], 2, "nothing to convert"),
        (["convert", "out=o", "xlsr=none.pt"], 3, "xlsr: no such file"),
        (["env"], 2, "usage: slm speech env seamless FOLDER"),
        (["env", "fairseq", "f"], 2, "no environment is known for 'fairseq'"),
        (["env", "seamless", "f", "--source", "nowhere"], 3, "no checkout of seamless_communication"),
    ],
)
def test_mistakes_are_told_in_one_line_with_their_exit_code(tmp_path, monkeypatch, capsys, argv, code, said):
    monkeypatch.chdir(tmp_path)
    assert main(["speech", *argv]) == code
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told
    assert not list(tmp_path.iterdir())
