"""The training forward pass: body on packed rows, head on supervised positions only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from slm.device import sent
from slm.model.attention import document_arguments
from slm.model.head import use_loss_head
from slm.model.lora import causal_lm


class SupervisedLM(nn.Module):
    """Wraps a causal language model, with or without LoRA, as (packed rows) -> loss.

    One module, so that embedding, body and head are all read inside one forward call: that is
    where ZeRO-3 gathers what it has partitioned.

    Args:
        lm: its head is replaced by one that computes the loss in chunks, over the same parameter.
        chunk: positions whose logits are held at a time; None is what suits the device.

    Raises:
        CheckpointError: the head is no plain matrix.
    """

    def __init__(self, lm: nn.Module, chunk: int | None = None) -> None:
        super().__init__()
        use_loss_head(lm)
        self.lm, self.chunk = lm, chunk

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        lengths: list[int],
        where: Tensor,
        labels: Tensor,
        rows: list[int],
        weights: Sequence[float] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy over the labels of packed rows.

        Args:
            input_ids: int64, (1, T): one or more packed rows, end to end.
            position_ids: int64, (1, T): 0 at each document's start.
            lengths: tokens of each document, summing to T.
            where: int64, (N,): positions that predict a label.
            labels: int64, (N,).
            rows: labels of each packed row, summing to N.
            weights: factor of each row in the loss; None is 1 for all.

        Returns:
            The weighted sum over all labels, a scalar that can be differentiated once, and the sum
            over each row's labels without weights, fp32, (len(rows),), in nats, that can't.
        """
        inner = causal_lm(self.lm)
        extra = document_arguments(inner.config._attn_implementation, lengths, input_ids.device)
        hidden_TD = inner.model(
            input_ids=input_ids, position_ids=position_ids, attention_mask=None, use_cache=False, **extra
        ).last_hidden_state[0]
        of_row = sent(torch.repeat_interleave(torch.tensor(rows)), labels.device)
        factors = sent(torch.tensor(weights if weights is not None else [1.0] * len(rows)), labels.device)
        chunk = self.chunk or inner.lm_head.suitable_chunk(labels.device)
        loss, losses_N = cast(
            tuple[Tensor, Tensor], inner.lm_head(hidden_TD[where], labels, factors[of_row], chunk=chunk)
        )
        return loss, losses_N.new_zeros(len(rows)).index_add_(0, of_row, losses_N)
