"""Weights and optimizer states on a local disk, through DeepSpeed's asynchronous file operator, which is compiled."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from engine.conftest import ROOT
from safetensors.torch import load_file
from support import make_base

pytestmark = pytest.mark.slow
STEPS = {"stage": "llm", "mode": "full", "steps": 4, "every": 2, "seed": 1}


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """`train` arguments for the shipped JSON on a disk of its own; its buffers are those of a small model."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    missing = [name for name in (os.environ.get("CXX", "c++"), "ninja") if shutil.which(name) is None]
    if missing or not AsyncIOBuilder().is_compatible(verbose=False):
        pytest.skip(f"DeepSpeed's async_io operator can't be built: {', '.join(missing) or 'libaio-dev'} is missing")
    values = json.loads((ROOT / "ds_configs" / "zero" / "zero3_nvme.json").read_text())
    values["zero_optimization"]["offload_param"]["buffer_size"] = 2_000_000  # the shipped 600 M numbers take 12 GB
    folder = tmp_path_factory.mktemp("nvme")
    (folder / "zero3_nvme.json").write_text(json.dumps(values))
    operators = os.environ.get("SLM_TEST_OPERATORS") or folder / "operators"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(operators))
        AsyncIOBuilder().load(verbose=False)  # minutes of compiling, here and not within a run's time limit
        patch.setenv("SLM_NVME", str(folder / "disk"))
        yield {"zero": str(folder / "zero3_nvme.json"), "operators": operators}


@pytest.fixture(scope="module")
def base(tmp_path_factory, pico_tokenizer):
    """Wide enough for matrices and groups of more than a megabyte: DeepSpeed keeps smaller ones in memory."""
    return make_base(tmp_path_factory.mktemp("wide"), pico_tokenizer, width=512)


def weights(outcome):
    assert outcome.code == 0, outcome.text
    return load_file(outcome.out / "model" / "model.safetensors")


def test_a_killed_and_resumed_run_on_nvme_is_the_straight_run(train, disk, base, tmp_path):
    straight = train(tmp_path / "straight", base=base, **disk, **STEPS)
    found = weights(straight)
    assert list(Path(os.environ["SLM_NVME"]).rglob("*.swp")), "nothing was ever on the disk"
    plain = weights(train(tmp_path / "plain", base=base, **STEPS))
    # Adam turns gradients near zero, summed in another order, into whole steps: single numbers differ, matrices do not
    apart = {name: float((found[name] - value).norm() / value.norm()) for name, value in plain.items()}
    assert max(apart.values()) < 2e-5, apart
    out = tmp_path / "llm"
    killed = train(out, base=base, fault={"kind": "backward", "step": 3, "ranks": [0, 1]}, **disk, **STEPS)
    assert killed.code != 0 and (out / "checkpoints" / "step_000002").is_dir(), killed.text
    resumed = train(out, base=base, **disk, **STEPS)
    assert "resumed from" in resumed.text and "step 2" in resumed.text, resumed.text
    assert [r["loss"] for r in resumed.metrics] == [r["loss"] for r in straight.metrics]
    for name, value in weights(resumed).items():
        assert torch.equal(value, found[name]), name


def test_a_checkpoint_on_nvme_continues_nowhere_else(train, disk, base, tmp_path):
    out = tmp_path / "llm"
    fault = {"kind": "forward", "step": 2, "ranks": [0, 1]}
    killed = train(out, base=base, fault=fault, **disk, **STEPS)
    assert killed.code != 0 and (out / "checkpoints" / "step_000002").is_dir(), killed.text
    alone = train(out, base=base, ranks=1, **disk, **STEPS)
    assert alone.code == 6 and "continue it with 2 ranks" in alone.text, alone.text
    in_memory = train(out, base=base, **STEPS)
    assert in_memory.code == 6 and "was saved with optimizer states on NVMe" in in_memory.text, in_memory.text
    file = next((out / "checkpoints" / "step_000002").glob("optimizer_rank1_group*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    damaged = train(out, base=base, **disk, **STEPS)
    assert damaged.code == 6 and "no checkpoint verifies" in damaged.text, damaged.text
