"""Ranks killed (SIGKILL) in the middle of anything: the resumed run is the straight run, bit for bit."""

from __future__ import annotations

import random

import pytest
import torch
from engine.faults import random_kill
from safetensors.torch import load_file

from slm.artifact import verify

STEPS, EVERY = 60, 5


@pytest.fixture(scope="module")
def settings(shards):
    """Everything that has a state: dropout, replay, an anchor, held-out evaluation with keep-best."""
    return {
        "steps": STEPS,
        "every": EVERY,
        "seed": 1,
        "dropout": 0.1,
        "replay": [{"shards": shards["llm"], "ratio": 0.25}],
        "anchor": {"weight": 0.01},
        "eval": {"every": 7, "rows": 3},
    }


@pytest.fixture(scope="module")
def straight(train, settings, tmp_path_factory):
    outcome = train(tmp_path_factory.mktemp("straight") / "asr", **settings)
    assert outcome.code == 0, outcome.text
    return outcome


TIMES = ("tokens_per_s", "supervised_tokens_per_s", "data_wait_s", "data_wait", "step_s", "time")
TIMES += ("tflops", "mfu", "hfu", "peak_memory_gb", "rank_skew_s")


def figures(outcome):
    return [{key: value for key, value in record.items() if key not in TIMES} for record in outcome.metrics]


def differences(straight, resumed):
    """Figures by step, and weights, that are not the same bit for bit."""
    assert resumed.code == 0, resumed.text
    found: list[tuple] = []
    for step, (ours, wanted) in enumerate(zip(figures(resumed), figures(straight), strict=True), 1):
        found += [(step, key) for key in wanted | ours if ours.get(key) != wanted.get(key)]
    adapters = [load_file(run.out / "adapter" / "adapter_model.safetensors") for run in (straight, resumed)]
    assert adapters[0].keys() == adapters[1].keys()
    return found + [
        ("adapter", name) for name, value in adapters[0].items() if not torch.equal(value, adapters[1][name])
    ]


def kill(train, out, point, settings):
    """A run that ends at `point`, and what must hold of its checkpoints then."""
    killed = train(out, fault=point, **settings)
    assert killed.code != 0 and not (out / "MANIFEST.json").exists(), (point, killed.text)
    latest = out / "checkpoints" / "latest"
    if latest.exists():
        verify(out / "checkpoints" / latest.read_text().strip())


def test_a_run_killed_again_and_again_is_the_straight_run(train, tmp_path, settings, straight):
    points = [
        {"kind": "save", "step": 9, "ranks": [1]},
        {"kind": "backward", "step": 23, "ranks": [0, 1]},
        {"kind": "renamed", "step": 39, "ranks": [0]},
    ]
    for point in points:
        kill(train, tmp_path / "asr", point, settings)
    assert differences(straight, train(tmp_path / "asr", **settings)) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_kill_at_a_random_point_changes_nothing(train, tmp_path, settings, straight, seed):
    point = random_kill(random.Random(seed), STEPS, EVERY)
    kill(train, tmp_path / "asr", point, settings)
    assert differences(straight, train(tmp_path / "asr", **settings)) == []
