"""What a user gets wrong: one clear line, the typed exit code, nothing lost."""

from __future__ import annotations

import shutil
import time

import pytest

from slm.artifact import verify, write_json


def lines(outcome):
    return [line for line in outcome.text.splitlines() if line.startswith(("error:", "  where:", "  mend:"))]


def test_two_ranks_give_one_message(train, tmp_path):
    outcome = train(tmp_path / "asr", launcher="deepspeed", data=str(tmp_path / "gone"))
    assert outcome.code == 3, outcome.text
    assert len([line for line in lines(outcome) if line.startswith("error:")]) == 1


def test_a_missing_shard_set(train, tmp_path):
    outcome = train(tmp_path / "asr", ranks=1, launcher="python", data=str(tmp_path / "gone"))
    assert outcome.code == 3 and "Traceback" not in outcome.text
    assert lines(outcome)[0].startswith("error: no finished") and str(tmp_path / "gone") in outcome.text
    assert outcome.status["state"] == "failed" and outcome.status["exit_code"] == 3


def test_a_stage_without_its_predecessor(train, tmp_path):
    outcome = train(tmp_path / "tts", stage="tts", ranks=1, previous=str(tmp_path / "asr"))
    assert outcome.code == 3 and str(tmp_path / "asr") in outcome.text and "Traceback" not in outcome.text


def test_shards_of_another_vocabulary(train, shards, tmp_path):
    import json

    folder = tmp_path / "other"
    shutil.copytree(shards["asr"], folder)
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    manifest["about"]["vocabulary"]["units"]["codebook"] = "f" * 64
    write_json(folder / "MANIFEST.json", manifest)
    outcome = train(tmp_path / "asr", ranks=1, data=str(folder))
    assert outcome.code == 3 and "codebook" in outcome.text and "Traceback" not in outcome.text


@pytest.mark.parametrize(("ranks", "launcher"), [(1, "warm"), (2, "deepspeed")])
def test_a_corrupted_shard_is_named(train, shards, tmp_path, ranks, launcher):
    folder = tmp_path / "damaged"
    shutil.copytree(shards["asr"], folder)
    tar = next(folder.glob("*.tar"))
    data = bytearray(tar.read_bytes())
    for i in range(1536, len(data) - 2048, 700):
        data[i] ^= 0xFF
    tar.write_bytes(bytes(data))
    outcome = train(tmp_path / "asr", ranks=ranks, launcher=launcher, data=str(folder))
    assert outcome.code == 3 and tar.name in outcome.text and "Traceback" not in outcome.text, outcome.text
    assert (outcome.status["state"], outcome.status["exit_code"]) == ("failed", 3)


def stopped_early(train, out, **settings):
    """A run that was asked to stop after a few steps: its checkpoint is there, its export is not."""
    process = train(out, wait=False, steps=60, every=1000, **settings)
    deadline = time.time() + 120
    while not (out / "metrics.jsonl").exists() and time.time() < deadline:
        time.sleep(0.02)
    (out / "STOP").write_text("")
    process.communicate(timeout=60)
    return next((out / "checkpoints").glob("step_*"))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk_keeps_the_older_checkpoint_and_the_next_run_continues(train, tmp_path, ranks):
    out = tmp_path / "asr"
    older = stopped_early(train, out, ranks=ranks)
    settings = {"ranks": ranks, "steps": 60, "every": 1000}
    size = max(path.stat().st_size for path in older.rglob("*") if path.is_file())
    limited = train(out, file_limit=size // 2, **settings)
    assert limited.status["exit_code"] == 4, limited.text
    assert "no space left" in limited.text and "resumed from" in limited.text, limited.text
    verify(older)
    assert [path.name for path in (out / "checkpoints").iterdir() if path.name.startswith(".step")] == []
    again = train(out, **settings)
    assert again.code == 0 and f"resumed from {older}" in again.text, again.text
    verify(out)


def test_rows_that_the_ranks_cannot_share(train, tmp_path):
    outcome = train(tmp_path / "asr", ranks=1, micro_rows=4, batch={"rows": 6, "micro_rows": 4})
    assert outcome.code == 2 and "batch.rows" in outcome.text


def test_an_adapter_of_another_rank(train, tmp_path):
    first = train(tmp_path / "asr", ranks=1, steps=1)
    assert first.code == 0, first.text
    config = tmp_path / "asr" / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 4', '"r": 8'))
    outcome = train(tmp_path / "tts", stage="tts", ranks=1, previous=str(first.out))
    assert outcome.code == 6 and "rank 8" in outcome.text and "Traceback" not in outcome.text


def test_an_adapter_of_another_base(train, pico_tokenizer, tmp_path):
    from support import make_base

    first = train(tmp_path / "asr", ranks=1, steps=1)
    assert first.code == 0, first.text
    other = make_base(tmp_path / "other", pico_tokenizer, seed=5)
    outcome = train(tmp_path / "tts", stage="tts", ranks=1, previous=str(first.out), model={"base": str(other)})
    assert outcome.code == 6 and "trained on another base" in outcome.text and "Traceback" not in outcome.text


@pytest.fixture(scope="module")
def interrupted(train, tmp_path_factory):
    """A run that was killed after its first checkpoint."""
    fault = {"kind": "forward", "step": 3, "ranks": [0]}
    killed = train(tmp_path_factory.mktemp("interrupted") / "asr", ranks=1, fault=fault)
    assert killed.code != 0 and (killed.out / "checkpoints" / "step_000002").is_dir(), killed.text
    return killed.out


@pytest.mark.parametrize(
    ("changes", "printed"),
    [
        ({"lr": 1e-3}, "stage.optim.lr: 0.005 then, 0.001 now"),
        ({"model": {"vocabulary": "frozen"}}, "stage.model.vocabulary: full then, frozen now"),
        ({"data": "other"}, "inputs.shards: "),
    ],
)
def test_an_interrupted_run_is_not_resumed_with_other_settings(train, shards, interrupted, tmp_path, changes, printed):
    out = tmp_path / "asr"
    shutil.copytree(interrupted, out)
    outcome = train(out, ranks=1, **({"data": shards["llm"]} if "data" in changes else changes))
    assert outcome.code == 6 and printed in outcome.text and "Traceback" not in outcome.text, outcome.text
    verify(out / "checkpoints" / "step_000002")


def test_a_checkpoint_under_another_zero_stage(train, interrupted, tmp_path):
    out = tmp_path / "asr"
    shutil.copytree(interrupted, out)
    outcome = train(out, ranks=1, zero="zero2.json")
    assert outcome.code == 6 and "saved under ZeRO-3, this run uses ZeRO-2" in outcome.text, outcome.text


def test_without_arguments_it_lists_what_it_could_take(train):
    import subprocess
    import sys
    from pathlib import Path

    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "launcher/train.py"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 2 and "ds_configs/stages/asr.yaml" in done.stderr
