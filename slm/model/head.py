"""The head as a loss: logits of supervised positions only, in chunks, never all at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.errors import CheckpointError
from slm.losses.linear_cross_entropy import linear_cross_entropy
from slm.model.lora import causal_lm

CHUNK = {"cpu": 128, "cuda": 2048}
"""Positions whose logits are held at a time, by kind of device."""


class LossHead(nn.Module):
    """A head that gives the loss of supervised positions: called with (hidden, labels, weights, chunk=…)."""

    def suitable_chunk(self, device: torch.device) -> int:
        """How many positions at a time suit a device."""
        return CHUNK[device.type]


class Head(LossHead):
    """The head's own parameter behind a forward that gives logits, or with labels the loss.

    Called as a module, so that ZeRO-3 gathers the weight before and frees it after. The gradient of a
    whole micro-batch is one tensor, so it is reduced once.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    @property
    def blocks(self) -> list[Tensor]:
        """The weight as row blocks in order."""
        return [self.weight]

    def forward(
        self, hidden: Tensor, labels_N: Tensor | None = None, weights_N: Tensor | None = None, *, chunk: int = 128
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (…, V) of hidden states (…, D); with labels what `linear_cross_entropy` returns.

        Args:
            labels_N: int64; hidden is (N, D) then.
            weights_N: factor of each position in the loss.
            chunk: positions whose logits are held at a time.
        """
        if labels_N is None or weights_N is None:
            return torch.cat([F.linear(hidden, block) for block in self.blocks], dim=-1)
        return linear_cross_entropy(hidden, self.blocks, labels_N, weights_N, chunk=chunk)


def use_loss_head(lm: nn.Module) -> None:
    """Replace the head of a causal language model, with or without LoRA, by a `Head` over the same parameter.

    Raises:
        CheckpointError: the head is no plain matrix (it has a bias, or an adapter).
    """
    inner = causal_lm(lm)
    if isinstance(inner.lm_head, LossHead):
        return
    if type(inner.lm_head) is not nn.Linear or inner.lm_head.bias is not None:
        raise CheckpointError(
            "the model's head is no plain matrix",
            where=f"{type(inner).__name__}.lm_head: {type(inner.lm_head).__name__}",
            mend="leave lm_head out of model.lora.targets; train it by model.vocabulary: full",
        )
    inner.lm_head = Head(inner.lm_head.weight)
