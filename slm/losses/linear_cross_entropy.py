"""Cross-entropy of a linear head in one pass: gradients are computed in the forward pass, chunk by chunk.

The logits of N positions over V classes are never held: a buffer of (chunk, V) is filled, turned into
unnormalised probabilities in place, and used at once for the loss, the gradient of the hidden states and the
gradient of the weight. Three matrix products per chunk, none repeated in the backward pass; the peak does not
grow with N.

With z the logits, m their maximum, e = exp(z - m) and s = exp(m - logsumexp z):
    d CE / d z = softmax(z) - onehot = s * (e - onehot / s),
so the row factor s (times the row's weight) is applied to the small matrices, never to the buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 8192
SMALLEST = 1e-30

Join = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(log-sum-exp over the rows held here, logit of the label or 0) -> the same two over all rows of the head."""


def alone(lse_N: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """The `Join` of a head that is all here."""
    return lse_N, target_N


@dataclass
class Chunks:
    """A head's row blocks, the buffer for their logits, and the gradients gathered so far.

    Attributes:
        blocks: (rows, D) each; together the rows held here, in order.
        trains: which of them get a gradient.
        buffer: fp32 (fp64 for fp64), (chunk, rows of all blocks).
        grads: for each block that trains its gradient in the buffer's dtype, else None.
    """

    blocks: Sequence[Tensor]
    trains: Sequence[bool]
    chunk: int
    buffer: Tensor = field(init=False)
    grads: list[Tensor | None] = field(init=False)

    def __post_init__(self) -> None:
        like = self.blocks[0]
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.buffer = like.new_empty(self.chunk, sum(block.shape[0] for block in self.blocks), dtype=dtype)
        self.grads = [
            torch.zeros_like(block, dtype=dtype) if trains else None
            for block, trains in zip(self.blocks, self.trains, strict=True)
        ]

    def losses(
        self, hidden_nD: Tensor, columns_n: Tensor, weights_n: Tensor, *, gradients: bool, join: Join = alone
    ) -> tuple[Tensor, Tensor | None]:
        """One chunk's cross-entropies; adds to `grads`.

        Args:
            hidden_nD: n <= chunk.
            columns_n: where the label's logit stands in the buffer; -1: another process holds it.
            weights_n: fp32; factor of each position in the loss.

        Returns:
            (n,) cross-entropies without weights, and (n, D) the hidden states' gradient from the rows held here.
        """
        z = self.buffer[: hidden_nD.shape[0]]
        for block, first in self._tiles():
            _product_into(z[:, first : first + block.shape[0]], hidden_nD, block.T)
        held, at = columns_n >= 0, columns_n.clamp(min=0)[:, None]
        target = z.gather(1, at)[:, 0] * held
        peak = z.amax(1)
        z.sub_(peak[:, None]).exp_()
        lse, target = join(peak + z.sum(1).log(), target)
        if not gradients:
            return lse - target, None
        scale = (peak - lse).exp().clamp_(min=SMALLEST)
        z.scatter_add_(1, at, (held / -scale)[:, None])
        factor = (scale * weights_n)[:, None]
        scaled = (hidden_nD * factor).to(hidden_nD.dtype)
        own = torch.zeros(hidden_nD.shape, dtype=z.dtype, device=z.device)
        for block, first in self._tiles():
            _add_product(own, z[:, first : first + block.shape[0]], block)
        for grad, first in self._grad_tiles():
            _add_product(grad, z[:, first : first + grad.shape[0]].T, scaled)
        return lse - target, own.mul_(factor)

    def _tiles(self) -> Iterator[tuple[Tensor, int]]:
        """Pieces of the blocks and their first column; whole blocks where no conversion needs a copy of them."""
        yield from _cut(self.blocks, self.blocks[0].dtype != self.buffer.dtype)

    def _grad_tiles(self) -> Iterator[tuple[Tensor, int]]:
        first = 0
        for block, grad in zip(self.blocks, self.grads, strict=True):
            if grad is not None:
                for piece, at in _cut([grad], block.dtype != self.buffer.dtype):
                    yield piece, first + at
            first += block.shape[0]


def _cut(blocks: Sequence[Tensor], small: bool) -> Iterator[tuple[Tensor, int]]:
    first = 0
    for block in blocks:
        size = TILE if small else block.shape[0]
        for start in range(0, block.shape[0], max(1, size)):
            yield block[start : start + size], first + start
        first += block.shape[0]


def _product_into(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out = a @ b, accumulated in out's dtype also where a and b are bf16."""
    if a.dtype == out.dtype and b.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(_wide(a, b, out.dtype))


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a @ b; the wide one of a and b is rounded to the narrow one's dtype on a GPU."""
    if a.dtype == out.dtype and b.dtype == out.dtype:
        out.addmm_(a, b)
    else:
        out.add_(_wide(a, b, out.dtype))


def _wide(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    if a.is_cuda:
        narrow = a.dtype if a.element_size() < b.element_size() else b.dtype
        return torch.mm(a.to(narrow), b.to(narrow), out_dtype=dtype)
    return torch.mm(a.to(dtype), b.to(dtype))  # CPUs multiply bf16 slower than fp32


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gradients: bool, chunk: int, labels_N: Tensor, weights_N: Tensor, hidden_ND: Tensor, *blocks: Tensor
    ) -> tuple[Tensor, Tensor]:
        count = labels_N.shape[0]
        trains = [gradients and needed for needed in ctx.needs_input_grad[5:]]
        chunks = Chunks(blocks, trains, max(1, min(chunk, count)))
        losses = chunks.buffer.new_zeros(count)
        into_hidden = torch.zeros_like(hidden_ND) if gradients else None
        for start in range(0, count, chunk):
            part = slice(start, start + chunk)
            losses[part], grad = chunks.losses(hidden_ND[part], labels_N[part], weights_N[part], gradients=gradients)
            if into_hidden is not None and grad is not None:
                into_hidden[part] = grad
        ctx.grads = (into_hidden, *chunks.grads)
        ctx.mark_non_differentiable(losses)
        return torch.dot(losses, weights_N.to(losses.dtype)), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            raise RuntimeError("the gradients were computed in the forward pass and have been handed out already")
        return None, None, None, None, *(None if grad is None else grad.mul_(grad_loss) for grad in grads)


def linear_cross_entropy(
    hidden_ND: Tensor, blocks: Sequence[Tensor], labels_N: Tensor, weights_N: Tensor, *, chunk: int
) -> tuple[Tensor, Tensor]:
    """Weighted sum of the cross-entropies of `hidden @ cat(blocks).T` against the labels.

    Args:
        hidden_ND: any float dtype; N may be 0, every gradient is then 0.
        blocks: the head's weight as row blocks, (rows, D) each, in order; one that needs no gradient costs none.
        labels_N: int64, below the number of all rows.
        weights_N: factor of each position.
        chunk: positions whose logits are held at a time.

    Returns:
        The loss, a scalar in fp32 (fp64 for fp64) that can be differentiated once, and the cross-entropies
        without weights, (N,), in nats, that can't.
    """
    gradients = torch.is_grad_enabled()
    return _LinearCrossEntropy.apply(gradients, chunk, labels_N, weights_N, hidden_ND, *blocks)
