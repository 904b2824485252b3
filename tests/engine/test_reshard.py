"""Resume at another number of ranks, and what the held-out losses are there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from slm.artifact import verify

STEPS, EVERY = 12, 3
# Two optimizer groups with settings of their own, so that one can't get the other's.
OPTIM = {"lr": 5e-3, "vocabulary_lr": 2e-3, "weight_decay": 0.1}


@pytest.fixture(scope="module")
def settings(shards):
    return {
        "steps": STEPS,
        "every": EVERY,
        "optim": OPTIM,
        "replay": [{"shards": shards["llm"], "ratio": 0.25}],
        "anchor": {"weight": 0.02},
        "eval": {"every": 3, "rows": 3},
    }


@pytest.fixture(scope="module")
def straight(train, settings, tmp_path_factory):
    found = {}

    def run(zero, precision="fp32"):
        key = zero, precision
        if key not in found:
            out = tmp_path_factory.mktemp("straight") / "asr"
            found[key] = train(out, ranks=1, zero=zero, precision=precision, **settings)
            assert found[key].code == 0, found[key].text
        return found[key]

    return run


def in_turns(train, out, worlds, **settings):
    """Train as `worlds[0]` ranks until just after a checkpoint, then go on as `worlds[1]` ranks, and so on."""
    for i, ranks in enumerate(worlds[:-1], start=1):
        step = i * EVERY
        fault = {"kind": "forward", "step": step, "ranks": list(range(ranks))}
        killed = train(out, ranks=ranks, fault=fault, **settings)
        assert killed.code != 0 and (out / "checkpoints" / f"step_{step:06d}").is_dir(), killed.text
    return train(out, ranks=worlds[-1], **settings)


def require_close(one, other):
    for key in ("loss", "grad_norm", "anchor_penalty", "eval_loss", "eval_loss/asr", "eval_loss/llm", "lr"):
        values = [[record[key] for record in run.metrics if key in record] for run in (one, other)]
        assert len(values[0]) == len(values[1]) >= 4, key
        # the penalty's first values are squares of differences of almost equal numbers
        np.testing.assert_allclose(values[1], values[0], rtol=1e-3 if key == "anchor_penalty" else 2e-5, err_msg=key)
    assert [record["step"] for record in other.metrics] == list(range(1, STEPS + 1))
    tensors = [load_file(run.out / "adapter" / "adapter_model.safetensors") for run in (one, other)]
    flat = [torch.cat([part[name].flatten().double() for name in sorted(part)]) for part in tensors]
    assert float((flat[0] - flat[1]).norm() / flat[0].norm()) < 2e-5


def test_one_two_one_ranks(train, tmp_path, settings, straight):
    resumed = in_turns(train, tmp_path / "asr", [1, 2, 1], zero="cpu.json", **settings)
    assert resumed.code == 0, resumed.text
    assert "was saved by 2 ranks, this job has 1: resharding" in resumed.text
    require_close(straight("cpu.json"), resumed)
    folder = tmp_path / "asr" / "checkpoints"
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == [], "scratch is left"
    verify(folder / (folder / "latest").read_text().strip())
    # LoRA: what is frozen is not in the files (the base alone is larger than all of them but for the table)
    names = torch.load(next(folder.rglob("zero_pp_rank_0_mp_rank_00_model_states.pt")), weights_only=True)["module"]
    assert names and not any("mlp" in name for name in names)


def test_split_tables_are_anchored_evaluated_and_resharded_like_whole_ones(train, settings, straight, tmp_path):
    model = {"vocabulary_parallel": True}
    split = in_turns(train, tmp_path / "asr", [1, 2, 1], zero="cpu.json", model=model, **settings)
    assert split.code == 0, split.text
    require_close(straight("cpu.json"), split)


def test_resharding_in_the_form_of_gpus(train, settings, straight, tmp_path):
    """bf16, and small weights that ZeRO-3 keeps whole: what fp32 weights a rank has is put together as exactly."""
    one = straight("zero3.json", "bf16")
    resumed = in_turns(train, tmp_path / "asr", [1, 2, 1], zero="zero3.json", precision="bf16", **settings)
    assert resumed.code == 0, resumed.text
    pairs = [(a["loss"], b["loss"]) for a, b in zip(one.metrics, resumed.metrics, strict=True)]
    assert len(pairs) == STEPS
    np.testing.assert_allclose(
        *zip(*pairs, strict=True), rtol=5e-3
    )  # bf16 products of other rows are rounded otherwise
    assert pairs[EVERY - 1][0] == pairs[EVERY - 1][1], "the same rank, before anything was resharded"


@pytest.mark.slow
@pytest.mark.parametrize("zero", ["cpu.json", "zero2.json"])
def test_one_two_four_one_ranks(train, tmp_path, settings, straight, zero):
    resumed = in_turns(train, tmp_path / "asr", [1, 2, 4, 1], zero=zero, **settings)
    assert resumed.code == 0, resumed.text
    require_close(straight(zero), resumed)
