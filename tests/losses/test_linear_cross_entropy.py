from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from slm.losses.linear_cross_entropy import linear_cross_entropy

POSITIONS, CLASSES, WIDTH = 37, 50, 16


def problem(dtype, positions=POSITIONS, classes=CLASSES, spread=1.0):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, WIDTH, generator=generator).to(dtype)
    weight = (spread * torch.randn(classes, WIDTH, generator=generator)).to(dtype)
    labels = torch.randint(0, classes, (positions,), generator=generator)
    factors = torch.rand(positions, generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), labels, factors


def reference(hidden, weight, labels, factors):
    """torch's own cross-entropy and autograd, in fp64."""
    hidden, weight = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    losses = F.cross_entropy(hidden @ weight.T, labels, reduction="none")
    (losses * factors).sum().backward()
    return losses.detach(), hidden.grad, weight.grad


def error(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 4e-3)]
)
@pytest.mark.parametrize("chunk", [1, 8, 37, 1000])
def test_loss_and_gradients_are_those_of_torch_in_fp64(dtype, tolerance, chunk):
    hidden, weight, labels, factors = problem(dtype)
    losses, into_hidden, into_weight = reference(hidden, weight, labels, factors)
    loss, each = linear_cross_entropy(hidden, [weight], labels, factors, chunk=chunk)
    (3 * loss).backward()
    narrow = max(tolerance, 1e-7)  # the weights are fp32
    assert loss.item() == pytest.approx(float((losses * factors).sum()), rel=narrow)
    torch.testing.assert_close(each.double(), losses, rtol=narrow * 10, atol=narrow * 10)
    assert hidden.grad.dtype == weight.grad.dtype == dtype
    assert error(hidden.grad, 3 * into_hidden) < tolerance and error(weight.grad, 3 * into_weight) < tolerance


@pytest.mark.parametrize("spread", [30.0, 1000.0])
def test_large_logits_are_as_exact_as_torch_makes_them(spread):
    hidden, weight, labels, factors = problem(torch.float32, spread=spread)
    _, into_hidden, into_weight = reference(hidden, weight, labels, factors)
    (F.cross_entropy(hidden @ weight.T, labels, reduction="none") * factors).sum().backward()
    theirs = error(hidden.grad, into_hidden), error(weight.grad, into_weight)
    hidden.grad = weight.grad = None
    linear_cross_entropy(hidden, [weight], labels, factors, chunk=8)[0].backward()
    assert error(hidden.grad, into_hidden) < 2 * theirs[0] + 1e-6
    assert error(weight.grad, into_weight) < 2 * theirs[1] + 1e-6


def test_the_gradient_of_a_bf16_weight_is_accumulated_in_fp32():
    hidden, weight, labels, factors = problem(torch.bfloat16, positions=512)
    _, _, expected = reference(hidden, weight, labels, factors)
    linear_cross_entropy(hidden, [weight], labels, factors, chunk=2)[0].backward()
    assert error(weight.grad, expected) < 2**-8  # one rounding, not one for each of 256 chunks


@pytest.mark.parametrize("cut", [0, 20, 50])
def test_row_blocks_are_one_head_and_a_frozen_one_costs_no_gradient(cut):
    hidden, weight, labels, factors = problem(torch.float32)
    losses, into_hidden, into_weight = reference(hidden, weight, labels, factors)
    frozen, trained = weight[:cut].detach(), weight[cut:].detach().requires_grad_()
    loss, each = linear_cross_entropy(hidden, [frozen, trained], labels, factors, chunk=8)
    loss.backward()
    torch.testing.assert_close(each.double(), losses, rtol=1e-5, atol=1e-5)
    assert frozen.grad is None
    assert error(hidden.grad, into_hidden) < 1e-6
    torch.testing.assert_close(trained.grad.double(), into_weight[cut:], rtol=1e-5, atol=1e-6)


def test_no_position_at_all_still_gives_every_gradient():
    hidden, weight, labels, factors = problem(torch.float32, positions=0)
    loss, each = linear_cross_entropy(hidden, [weight], labels, factors, chunk=8)
    loss.backward()
    assert loss.item() == 0 and each.shape == (0,)
    assert not weight.grad.any() and hidden.grad.shape == (0, WIDTH)


class Largest(TorchDispatchMode):
    """Remembers the largest storage that any operation gave."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("gradients", [True, False])
def test_the_largest_tensor_does_not_grow_with_the_positions(gradients):
    sizes = []
    for positions in (64, 1024):
        hidden, weight, labels, factors = problem(torch.float32, positions=positions, classes=4000)
        with Largest() as largest, torch.set_grad_enabled(gradients):
            loss, _ = linear_cross_entropy(hidden, [weight], labels, factors, chunk=8)
            if gradients:
                loss.backward()
        sizes.append(largest.bytes)
    assert sizes[0] == sizes[1] == 4000 * WIDTH * 4  # the weight, or its gradient


def test_gradients_are_handed_out_once():
    hidden, weight, labels, factors = problem(torch.float32)
    loss, _ = linear_cross_entropy(hidden, [weight], labels, factors, chunk=8)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="handed out already"):
        loss.backward()
