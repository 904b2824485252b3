"""The loss and its gradient are those of the formula, however documents are packed and shared out."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from engine.conftest import ROOT, free_port, settings_of

from slm.config.stage import LoraConfig
from slm.model.load import load_base
from slm.model.lora import attach, trainable

WEIGHTS = [1.0, 2.5]


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """64 documents of 2 to 40 tokens, half of the tokens labels; one has no label at all."""
    draw = np.random.default_rng(0)
    saved = {}
    for i in range(64):
        length = int(draw.integers(2, 40))
        saved[f"ids{i}"] = draw.integers(4, 300, length).astype(np.int32)
        saved[f"mask{i}"] = draw.random(length) < (0.5 if i else 0.0)
    file = tmp_path_factory.mktemp("documents") / "documents.npz"
    np.savez(file, **saved)
    return file


def by_transformers(documents, pico_base, dtype):
    """Loss sums of both sources and gradients, a document at a time, by transformers and autograd."""
    torch.manual_seed(0)
    config = LoraConfig(rank=4, alpha=8.0, dropout=0.0, targets=["q_proj", "v_proj"])
    lm = attach(load_base(pico_base), config, vocabulary=True).to(dtype)
    saved = np.load(documents)
    sums, counts = [0.0, 0.0], [0, 0]
    for i in range(64):
        ids = torch.from_numpy(saved[f"ids{i}"].astype(np.int64))
        wanted = torch.from_numpy(saved[f"mask{i}"][1:])
        logits = lm(ids[None], use_cache=False).logits[0, :-1][wanted]
        sums[i // 32] = sums[i // 32] + F.cross_entropy(logits, ids[1:][wanted], reduction="sum")
        counts[i // 32] += int(wanted.sum())
    total = sum(weight * count for weight, count in zip(WEIGHTS, counts, strict=True))
    (sum(weight * value for weight, value in zip(WEIGHTS, sums, strict=True)) / total).backward()
    return [value.item() for value in sums], {name: parameter.grad for name, parameter in trainable(lm)}


@pytest.fixture(scope="module")
def expected(documents, pico_base):
    return by_transformers(documents, pico_base, torch.float64)


@pytest.fixture(scope="module")
def rounding(documents, pico_base, expected):
    """How far the same gradients are off in fp32, which depends on the processor: up to 1e-6 without AVX2."""
    _, grads = by_transformers(documents, pico_base, torch.float32)
    return distance(grads, expected[1])


def distance(theirs, ours):
    whole, off = (torch.cat([grads[name].flatten().double() for name in sorted(ours)]) for grads in (ours, theirs))
    return float((off - whole).norm() / whole.norm())


@pytest.mark.parametrize("ranks", [1, 2])
def test_gradients_do_not_depend_on_ranks_accumulation_and_packing(
    zygote, documents, expected, rounding, pico_base, shards, tmp_path, ranks
):
    stage, out = tmp_path / "stage.yaml", tmp_path / "found.pt"
    settings = settings_of(tmp_path / "run", pico_base, shards, replay=[{"shards": "b", "loss_weight": WEIGHTS[1]}])
    stage.write_text(yaml.safe_dump(settings | {"batch": {"rows": 8, "micro_rows": 8 // ranks}}))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    probe = Path(__file__).with_name("probe.py")
    run = zygote.start([str(probe), str(stage), str(documents), str(out)], ranks, env, ROOT, None)
    text, _ = run.communicate()
    assert run.returncode == 0, text
    found = torch.load(out)
    assert len(found) == 6
    sums, grads = expected
    for (packing, accumulation), (their_sums, their_grads) in found.items():
        np.testing.assert_allclose(list(their_sums.values()), sums, rtol=1e-6)
        assert their_grads.keys() == grads.keys()
        error = distance(their_grads, grads)
        assert error <= max(1e-6, 1.25 * rounding), (packing, accumulation, error, rounding)
