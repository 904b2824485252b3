"""The training forward pass: body on packed rows, head on supervised positions only."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slm.losses.next_token import summed_cross_entropy
from slm.model.attention import DOCUMENTS
from slm.model.lora import causal_lm


class SupervisedLM(nn.Module):
    """Wraps a causal language model, with or without LoRA, as (packed rows) -> summed loss.

    One module, so that embedding, body and head are all read inside one forward call: that is
    where ZeRO-3 gathers what it has partitioned.
    """

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm = lm

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        lengths: list[int],
        where: Tensor,
        labels: Tensor,
        rows: list[int],
    ) -> Tensor:
        """Cross-entropy summed over each row's labels.

        Args:
            input_ids: int64, (1, T): one or more packed rows, end to end.
            position_ids: int64, (1, T): 0 at each document's start.
            lengths: tokens of each document, summing to T.
            where: int64, (N,): positions that predict a label.
            labels: int64, (N,).
            rows: labels of each packed row, summing to N.

        Returns:
            fp32, (len(rows),), in nats.
        """
        inner = causal_lm(self.lm)
        extra = {"document_lengths": lengths} if inner.config._attn_implementation == DOCUMENTS else {}
        hidden_TD = inner.model(
            input_ids=input_ids, position_ids=position_ids, attention_mask=None, use_cache=False, **extra
        ).last_hidden_state[0]
        logits_NV = inner.lm_head(hidden_TD[where])
        sums = [
            summed_cross_entropy(logits, targets)
            for logits, targets in zip(logits_NV.split(rows), labels.split(rows), strict=True)
        ]
        return torch.stack(sums)
