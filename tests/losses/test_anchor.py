from __future__ import annotations

import numpy as np
import pytest
import torch

from slm.losses import anchor
from slm.losses.anchor import add_penalty_gradient, compact, pull, squared_distance


def tensors():
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(1000, generator=draw) for _ in range(3)]


@pytest.fixture(autouse=True, params=[2**24, 300], ids=["whole", "in chunks"])
def _chunks(request, monkeypatch):
    monkeypatch.setattr(anchor, "CHUNK", request.param)


def test_the_gradient_is_autograds():
    gradient, value, start = tensors()
    value.requires_grad_(True)
    (0.3 * (value - start).square().sum()).backward()
    wanted = gradient + value.grad
    add_penalty_gradient(gradient, value.detach(), start, 0.3)
    torch.testing.assert_close(gradient, wanted)


def test_the_sum_is_taken_in_fp64():
    value, start = torch.full((100_000,), 1.1), torch.full((100_000,), 1.0)
    wanted = np.square(value.numpy() - start.numpy()).sum(dtype=np.float64)
    assert float(squared_distance(value, start)) == pytest.approx(wanted, rel=1e-12)


def test_a_pull_is_a_gradient_step_of_the_penalty_and_never_overshoots():
    _, value, start = tensors()
    wanted = value - 0.1 * 2 * 0.5 * (value - start)
    pull(value, start, 0.1, 0.5)
    torch.testing.assert_close(value, wanted)
    pull(value, start, 10.0, 10.0)
    assert torch.equal(value, start)


def test_a_start_is_a_copy_in_the_dtype_that_the_weights_were_loaded_in():
    _, value, _ = tensors()
    rounded = value.to(torch.bfloat16).float()
    half = compact(rounded, torch.bfloat16)
    assert half.dtype == torch.bfloat16 and torch.equal(half.float(), rounded)
    kept = compact(value, torch.float32)
    assert kept.dtype == torch.float32 and torch.equal(kept, value) and kept.data_ptr() != value.data_ptr()
