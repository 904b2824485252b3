"""The real engine on 2 CPU ranks, started as a user starts it."""

from __future__ import annotations

import json
import shutil
import signal
import time

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from slm.artifact import read_manifest, verify
from slm.model.load import load_base, load_model
from slm.model.reference import resolve

FIRST = {"seed": 1}


@pytest.fixture(scope="module")
def asr(train, tmp_path_factory):
    """A first stage under the deepspeed launcher, two ranks, ZeRO-3."""
    outcome = train(tmp_path_factory.mktemp("runs") / "asr", launcher="deepspeed", **FIRST)
    assert outcome.code == 0, outcome.text
    return outcome


def adapter(out):
    return load_file(out / "adapter" / "adapter_model.safetensors")


def difference(a, b):
    one, two = (torch.cat([tensors[name].flatten().double() for name in sorted(tensors)]) for tensors in (a, b))
    return float((one - two).norm() / one.norm())


def test_a_stage_leaves_a_verified_step(asr, pico_base):
    manifest = verify(asr.out)
    assert manifest.kind == "stage" and set(manifest.inputs) == {"base", "shards"}
    assert set(manifest.files) == {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    assert (asr.status["state"], asr.status["exit_code"], asr.status["step"]) == ("done", 0, 6)
    assert [record["step"] for record in asr.metrics] == [1, 2, 3, 4, 5, 6]
    assert asr.metrics[-1]["loss"] < asr.metrics[0]["loss"]
    assert sorted(path.name for path in (asr.out / "checkpoints").glob("step_*")) == ["step_000004", "step_000006"]
    for name in ("config.yaml", "command.txt", "deepspeed.yaml", "logs/rank0.log", "logs/rank1.log"):
        assert (asr.out / name).is_file(), name


def test_every_trained_tensor_moved(asr, pico_base):
    base = load_base(pico_base).state_dict()
    for name, tensor in adapter(asr.out).items():
        if name.endswith("lora_B.weight"):
            assert tensor.abs().max() > 0, name
        elif "lora_" not in name:
            assert not torch.equal(tensor, base[name.removeprefix("base_model.model.")]), name


def test_the_first_step_is_the_gradient_of_the_mean_cross_entropy_over_labels(asr, shards, pico_base):
    from slm.data.loader import PackedLoader, SourceSpec

    specs = [SourceSpec("asr", shards["asr"], 1.0)]
    loader = PackedLoader(specs, pack_length=128, rows_per_step=4, seed=1, rank=0, world_size=1)
    lm = load_base(pico_base).eval()
    # A new adapter's B is zero, so A has no gradient yet; B's gradient is that of its layer, projected by A.
    total, count = 0.0, 0
    for row in loader.step(0):
        start = 0
        for length in row.lengths:
            ids = torch.from_numpy(row.ids[start : start + length].astype(np.int64))
            labels = torch.from_numpy(row.supervised[start + 1 : start + length].astype(bool))
            log_p = lm(ids[None]).logits[0, :-1].log_softmax(-1)
            total = total - log_p[torch.arange(length - 1), ids[1:]][labels].sum()
            count += int(labels.sum())
            start += length
    loss = total / count
    assert asr.metrics[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert asr.metrics[0]["supervised_tokens"] == count
    loss.backward()
    tables = torch.cat([lm.get_input_embeddings().weight.grad, lm.get_output_embeddings().weight.grad])
    assert float(tables.norm()) <= asr.metrics[0]["grad_norm"] <= 1.5 * float(tables.norm())


def test_run_again_does_nothing_and_says_so(asr, train):
    before = (asr.out / "MANIFEST.json").stat().st_mtime_ns
    again = train(asr.out, ranks=1, **FIRST)
    assert again.code == 0 and "up to date" in again.text
    assert (asr.out / "MANIFEST.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(("ranks", "micro_rows", "launcher"), [(1, 1, "warm"), (1, 4, "python"), (2, 2, "torchrun")])
def test_ranks_and_accumulation_do_not_change_the_result(asr, train, tmp_path, ranks, micro_rows, launcher):
    other = train(tmp_path / "asr", ranks=ranks, micro_rows=micro_rows, launcher=launcher, **FIRST)
    assert other.code == 0, other.text
    losses = [[record["loss"] for record in outcome.metrics] for outcome in (asr, other)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    norms = [outcome.metrics[0]["grad_norm"] for outcome in (asr, other)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-6)
    assert difference(adapter(asr.out), adapter(other.out)) < 1e-5


def test_the_next_stage_continues_the_adapter_and_replays(asr, train, shards, tmp_path):
    replay = [{"shards": shards["llm"], "ratio": 0.25}, {"shards": shards["asr"], "ratio": 0.25}]
    tts = train(
        tmp_path / "tts",
        stage="tts",
        previous=str(asr.out),
        replay=replay,
        zero="zero3.json",
        activation_checkpointing="all",
    )
    assert tts.code == 0, tts.text
    assert set(read_manifest(tts.out).inputs) == {"base", "shards", "previous", "replay[0]", "replay[1]"}
    assert 0 < difference(adapter(asr.out), adapter(tts.out)) < 0.5
    moved = [not torch.equal(value, adapter(asr.out)[name]) for name, value in adapter(tts.out).items()]
    assert all(moved), "a tensor of the continued adapter never changed"
    assert {"loss/tts", "loss/llm", "loss/asr"} <= set().union(*(record.keys() for record in tts.metrics))
    shares = tts.metrics[-1]
    assert shares["share/tts"] > shares["share/llm"] > 0
    assert resolve(tts.out).adapter == tts.out / "adapter"
    assert load_model(tts.out).vocabulary.units.count == 16


def test_killed_and_resumed_equals_the_straight_run_bit_for_bit(train, tmp_path):
    settings = {"steps": 60, "every": 5, **FIRST}
    straight = train(tmp_path / "straight", **settings)
    out = tmp_path / "asr"
    process = train(out, wait=False, **settings)
    checkpoint = out / "checkpoints" / "step_000005" / "MANIFEST.json"
    deadline = time.time() + 120
    while not checkpoint.exists() and time.time() < deadline:
        time.sleep(0.01)
    launcher = psutil.Process(process.pid)
    for victim in [launcher, *launcher.children(recursive=True)]:  # the launcher first: it ends when its ranks do
        victim.kill()
    process.wait()
    assert not (out / "MANIFEST.json").exists(), "the run ended before it could be killed"
    resumed = train(out, **settings)
    assert resumed.code == 0 and "resumed from" in resumed.text, resumed.text
    assert [record["step"] for record in resumed.metrics] == list(range(1, 61))
    assert [r["loss"] for r in resumed.metrics] == [r["loss"] for r in straight.metrics]
    for name, value in adapter(straight.out).items():
        assert torch.equal(value, adapter(out)[name]), name


def test_a_stop_file_saves_and_asks_to_come_back(train, tmp_path):
    out = tmp_path / "asr"
    process = train(out, wait=False, steps=400, every=1000, **FIRST)
    deadline = time.time() + 120
    while not (out / "metrics.jsonl").exists() and time.time() < deadline:
        time.sleep(0.05)
    (out / "STOP").write_text("")
    text, _ = process.communicate(timeout=60)
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("preempted", 85), text
    saved = next((out / "checkpoints").glob("step_*"))
    verify(saved)
    assert not (out / "STOP").exists() and not (out / "MANIFEST.json").exists()


def test_ctrl_c_saves_and_the_next_run_continues_bit_for_bit(train, tmp_path):
    straight = train(tmp_path / "straight", ranks=1, steps=40, every=1000, **FIRST)
    assert straight.code == 0, straight.text
    out = tmp_path / "asr"
    process = train(out, wait=False, ranks=1, steps=40, every=1000, **FIRST)
    deadline = time.time() + 120
    while not (out / "metrics.jsonl").exists() and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130, text
    assert "interrupted" in text and "Traceback" not in text
    verify(next((out / "checkpoints").glob("step_*")))
    again = train(out, ranks=1, steps=40, every=1000, **FIRST)
    assert again.code == 0 and "resumed from" in again.text, again.text
    for name, value in adapter(straight.out).items():
        assert torch.equal(value, adapter(out)[name]), name


def test_a_damaged_checkpoint_is_passed_over_and_named(asr, train, tmp_path):
    out = tmp_path / "asr"
    shutil.copytree(asr.out, out)
    (out / "MANIFEST.json").unlink()
    newest = out / "checkpoints" / "step_000006"
    file = next(newest.rglob("*optim_states.pt"))
    file.write_bytes(file.read_bytes()[:-10])
    resumed = train(out, **FIRST)
    assert resumed.code == 0, resumed.text
    assert "checkpoint passed over" in resumed.text and "step_000006" in resumed.text
    assert "resumed from" in resumed.text and "step 4" in resumed.text
    assert (out / "checkpoints" / "damaged-step_000006").is_dir()
    for name, value in adapter(asr.out).items():
        assert torch.equal(value, adapter(out)[name]), name


def test_full_training_leaves_a_model_in_the_bases_files(train, tmp_path, pico_base):
    """In fp32, whatever the base was stored in: rounding would lose a stage's small changes."""
    base = tmp_path / "base"
    shutil.copytree(pico_base, base, ignore=shutil.ignore_patterns("MANIFEST.json", "*.safetensors"))
    load_base(pico_base, dtype=torch.bfloat16).save_pretrained(base, max_shard_size="30KB")
    outcome = train(tmp_path / "llm", stage="llm", mode="full", ranks=1, base=str(base))
    assert outcome.code == 0, outcome.text
    files = {path.name for path in base.glob("*.safetensors")}
    assert len(files) > 2 and {path.name for path in (outcome.out / "model").glob("*.safetensors")} == files
    before, after = load_base(base).state_dict(), load_model(outcome.out).model.state_dict()
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before if "norm" not in name)
    assert json.loads((outcome.out / "model" / "config.json").read_text())["dtype"] == "float32"
    assert any(not torch.equal(value, value.bfloat16().float()) for value in after.values())


def test_a_base_whose_files_name_weights_otherwise_is_refused_before_training(train, tmp_path, pico_base):
    """Transformers loads it; the trained model is written as its files are."""
    base = tmp_path / "base"
    shutil.copytree(pico_base, base, ignore=shutil.ignore_patterns("MANIFEST.json", "*.safetensors"))
    tensors = load_file(pico_base / "model.safetensors")
    save_file({name.removeprefix("model."): value for name, value in tensors.items()}, base / "model.safetensors")
    outcome = train(tmp_path / "llm", stage="llm", mode="full", ranks=1, base=str(base))
    assert outcome.code == 6 and "is in no file of the base under this name" in outcome.text, outcome.text
    assert "Traceback" not in outcome.text and not (outcome.out / "metrics.jsonl").exists()
