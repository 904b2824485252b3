"""The anchor on sharded weights, against autograd of the written loss."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from engine import anchor_job as job
from engine.conftest import ROOT, free_port
from safetensors.torch import load_file


def reference(mode):
    """Plain PyTorch, one process, the penalty written into the loss (coupled) or pulled after the step."""
    model, start = job.make(), dict(job.make().named_parameters())
    optimizer = job.optimizer_of(model)
    weights = {name: job.ANCHOR["weights"].get(group, job.ANCHOR["weight"]) for group, name in job.GROUPS.items()}
    norms, penalties = [], []
    for ids, labels in job.data():
        penalty = sum(
            weights[name] * (value - start[name].detach()).square().sum() for name, value in model.named_parameters()
        )
        loss = model(ids, labels) / job.ROWS + (penalty if mode == "coupled" else 0.0)
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), job.CLIP)))
        penalties.append(float(penalty.detach()))
        optimizer.step()
        if mode == "decoupled":
            with torch.no_grad():
                for name, value in model.named_parameters():
                    value.add_(start[name] - value, alpha=2 * job.RATE * weights[name])
    return norms, penalties, model.state_dict()


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def runs(request, zygote, tmp_path_factory):
    out = tmp_path_factory.mktemp("anchor") / "found.json"
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    script = [str(Path(job.__file__)), str(out)]
    text, _ = zygote.start(script, request.param, env, ROOT, None).communicate()
    assert out.is_file(), text
    return json.loads(out.read_text())


@pytest.mark.parametrize("case", job.CASES)
def test_steps_are_those_of_the_written_loss(runs, case):
    found = runs[case]
    norms, penalties, weights = reference(job.CASES[case][0])
    assert penalties[0] == 0 and penalties[-1] > 0.01
    assert max(norms) > job.CLIP, "clipping has to matter"
    assert found["norms"] == pytest.approx(norms, rel=1e-6)
    assert found["penalties"] == pytest.approx(penalties, rel=1e-5)
    for name, value in weights.items():
        torch.testing.assert_close(torch.tensor(found["weights"][name]), value, rtol=1e-5, atol=1e-6)


def test_a_stage_is_anchored_to_the_artifact_before_it_also_when_it_resumes(train, shards, tmp_path):
    """The last step has learning rate 0, so the penalty it logs is that of the exported weights."""
    first = train(tmp_path / "asr", ranks=1, steps=2)
    settings = {"stage": "tts", "previous": str(first.out), "steps": 5, "every": 2, "lr": 2e-2}
    settings["anchor"] = {"weight": 0.5, "weights": {"vocabulary": 0.1}}
    killed = train(tmp_path / "tts", fault={"kind": "step", "step": 3, "ranks": [1]}, **settings)
    assert killed.code != 0 and (tmp_path / "tts" / "checkpoints" / "step_000002").is_dir(), killed.text
    resumed = train(tmp_path / "tts", **settings)
    assert resumed.code == 0 and "resumed from" in resumed.text, resumed.text
    before, after = (load_file(run.out / "adapter" / "adapter_model.safetensors") for run in (first, resumed))
    wanted = sum(
        (0.5 if "lora_" in name else 0.1) * float((after[name].double() - before[name].double()).square().sum())
        for name in before
    )
    assert resumed.metrics[0]["anchor_penalty"] == 0 < wanted
    assert resumed.metrics[-1]["lr"] == 0
    assert resumed.metrics[-1]["anchor_penalty"] == pytest.approx(wanted, rel=1e-5)
