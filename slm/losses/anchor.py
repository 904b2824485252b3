"""L2 to where training started: the penalty λ·Σ(θ−θ₀)², its gradient, and its decoupled form.

Li et al. 2018 (L2-SP) with the previous stage as the starting point. Everything works on flat pieces
of parameters, so it does not matter how the parameters are divided among ranks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK = 2**24
"""Elements at a time: a piece can be a vocabulary matrix, and copies of it are not for free."""


def compact(start: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of θ₀ in the dtype that the weights were loaded in, which loses nothing of it.

    Args:
        start: θ₀ in fp32.
        dtype: of the weights that θ₀ was made of.
    """
    return start.detach().to(dtype, copy=True)


def squared_distance(value: Tensor, start: Tensor) -> Tensor:
    """Σ(θ−θ₀)², summed in fp64.

    Args:
        value: θ, (n,), fp32.
        start: θ₀, (n,), fp32 or bf16.

    Returns:
        Scalar fp64.
    """
    total = torch.zeros((), dtype=torch.float64, device=value.device)
    for part, origin in _chunks(value, start):
        total += (part - origin).square().sum(dtype=torch.float64)
    return total


def add_penalty_gradient(gradient: Tensor, value: Tensor, start: Tensor, weight: float) -> None:
    """Add 2λ(θ−θ₀), the gradient of λ·Σ(θ−θ₀)², to `gradient`, all of them (n,), in place."""
    for part, origin, slope in _chunks(value, start, gradient):
        slope.add_(part - origin, alpha=2 * weight)


def pull(value: Tensor, start: Tensor, rate: float, weight: float) -> None:
    """The decoupled form: a plain gradient step of the penalty, θ ← θ − rate·2λ(θ−θ₀), in place.

    Adam's moments do not see it, as they do not see decoupled weight decay (Loshchilov & Hutter 2019).
    A product 2·rate·λ above 1 ends at θ₀ and does not overshoot.
    """
    for part, origin in _chunks(value, start):
        part.lerp_(origin.to(value.dtype), min(1.0, 2 * rate * weight))


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(CHUNK) for tensor in tensors), strict=True)
