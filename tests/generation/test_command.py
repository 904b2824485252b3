"""`slm generate` from end to end: one question, a folder, a data set."""

from __future__ import annotations

import json

import datasets
import pytest

from slm.artifact import find_manifest
from slm.cli.app import main
from slm.speech.audio import read_audio


def run(*argv, capsys) -> tuple[int, str, str]:
    code = main(["generate", *map(str, argv)])
    return code, *capsys.readouterr()


def test_one_text_is_spoken(talking, tmp_path, capsys):
    wav = tmp_path / "answer.wav"
    argv = [talking.base, "--text", "paris", "--task", "tts", "--constrained", "--max-new-tokens", 40, "--wav", wav]
    code, out, _ = run(*argv, "--json", capsys=capsys)
    found = json.loads(out)
    assert code == 0 and found["units"] and found["wav"] == str(wav) and found["faults"] in ([], ["unfinished"])
    wave, _ = read_audio(wav)
    assert len(wave)
    code, out, _ = run(*argv, capsys=capsys)
    lines = dict(line.split(":", 1) for line in out.splitlines())
    assert lines["answers"].strip() == found["text"] and lines["speech"].strip() == str(wav)


def test_one_recording_is_heard(talking, tmp_path, capsys):
    question = talking.questions / "a.wav"
    argv = [talking.base, "--audio", question, "--json", "--max-new-tokens", 20, "--wav", tmp_path / "a.wav"]
    code, out, _ = run(*argv, "--task", "asr", "--constrained", capsys=capsys)
    found = json.loads(out)
    assert code == 0 and found["text"] and found["units"] == [] and found["wav"] is None
    assert run(*argv, "--speech", talking.run, capsys=capsys)[0] == 3


def test_a_folder_and_a_data_set(talking, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    out = tmp_path / "answers"
    code, printed, _ = run(
        talking.base, "--audio", talking.questions, "--out", out, "--max-new-tokens", 8, capsys=capsys
    )
    assert code == 0 and printed.splitlines()[-1] == str(out)
    assert find_manifest(out).about["answers"] == 3
    (tmp_path / "q.txt").write_text("say paris\nsay two\n")
    argv = [talking.base, "--data", tmp_path / "q.txt", "--out", tmp_path / "written", "--max-new-tokens", 4]
    assert run(*argv, "--limit", 1, capsys=capsys)[0] == 0
    assert find_manifest(tmp_path / "written").about["answers"] == 1


def test_a_scale_without_an_adapter(talking, capsys):
    code, _, err = run(talking.base, "--text", "a", "--lora-scale", 0.5, capsys=capsys)
    assert code == 6 and "needs an adapter" in err


@pytest.mark.parametrize("known", [True, False])
def test_a_model_with_code_of_its_own(talking, tmp_path, capsys, known):
    """Its code is never run: a class that transformers knows is used, or the model is refused."""
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(talking.base, folder)
    (folder / "MANIFEST.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    if not known:
        config["model_type"] = "own"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\n")
    code, _, err = run(folder, "--text", "a", "--max-new-tokens", 2, capsys=capsys)
    assert not (tmp_path / "was_run").exists()
    if known:
        assert code == 0
    else:
        assert code == 6 and "needs code of its own (own.OwnConfig, trust_remote_code)" in err
