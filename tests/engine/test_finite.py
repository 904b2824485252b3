"""Losses and gradients that are no finite numbers: skipped together, counted, and in the end an error."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file

from slm.engine.finite import count_step, require_progress
from slm.engine.state import TrainState
from slm.errors import DivergedError


def adapter(outcome):
    return load_file(outcome.out / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("kind", "zero", "offload", "precision"),
    [
        ("inf loss", "cpu.json", False, "bf16"),
        ("nan gradient", "zero2.json", False, "fp32"),
        ("inf loss", "zero2.json", True, "fp32"),
    ],
)
def test_one_rank_spoils_two_steps_and_all_ranks_skip_them(train, tmp_path, kind, zero, offload, precision):
    if offload:
        zero = with_offload(tmp_path, zero)
    fault = {"kind": kind, "steps": [2, 4], "ranks": [1]}
    settings = {"zero": zero, "steps": 6, "anchor": {"weight": 0.01}, "precision": precision}
    outcome = train(tmp_path / "asr", fault=fault, **settings)
    assert outcome.code == 0, outcome.text
    assert [record["skipped"] for record in outcome.metrics] == [0, 0, 1, 1, 2, 2]
    assert outcome.text.count("skipped: its loss or gradient is not finite") == 2
    assert all(torch.isfinite(value).all() for value in adapter(outcome).values())
    spoilt, after = outcome.metrics[2], outcome.metrics[3]
    assert spoilt["grad_norm"] == "inf" and (kind == "nan gradient" or spoilt["loss"] == "inf")
    assert math.isfinite(after["loss"]) and 0 < after["grad_norm"] < 100
    penalties = [record["anchor_penalty"] for record in outcome.metrics]
    assert penalties[3] == penalties[2] > penalties[1], "a skipped step moves no weight"


def with_offload(folder, name):
    import json

    from engine.conftest import ROOT

    values = json.loads((ROOT / "ds_configs" / "zero" / name).read_text())
    values["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    (folder / name).write_text(json.dumps(values))
    return str(folder / name)


def test_several_in_a_row_end_the_run_and_name_the_last_good_checkpoint(train, tmp_path):
    fault = {"kind": "nan loss", "steps": [3, 4, 5, 6], "ranks": [0]}
    optim = {"lr": 5e-3, "stop_after_skipped": 3}
    outcome = train(tmp_path / "asr", fault=fault, steps=9, every=2, optim=optim)
    assert outcome.status["exit_code"] == 5, outcome.text
    assert outcome.code == 5 and "Traceback" not in outcome.text
    good = outcome.out / "checkpoints" / "step_000002"
    assert "3 steps in a row, up to step 6" in outcome.text and f"last good checkpoint is {good}" in outcome.text
    assert good.is_dir() and len(outcome.metrics) == 6


def test_a_good_step_starts_the_count_again():
    state = TrainState()
    for step, applied in enumerate([False, False, True, False], start=1):
        state.step = step
        count_step(state, applied, tell=False)
        require_progress(state, 3, lambda _: None, "here")
    assert (state.skipped, state.skipped_in_a_row) == (3, 1)
    state.skipped_in_a_row = 3
    with pytest.raises(DivergedError, match="3 steps in a row") as failure:
        require_progress(state, 3, lambda _: None, "here")
    assert "no checkpoint from before them" in failure.value.mend
