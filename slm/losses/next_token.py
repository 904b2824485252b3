"""Cross-entropy of the next token, summed over supervised positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def summed_cross_entropy(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Cross-entropy of N predictions over V classes, in nats and fp32.

    The sum, not the mean: the mean over all supervised tokens of an optimizer step can only be
    taken by whoever knows their number over all ranks and micro-batches (design §6).

    Args:
        logits_NV: any float dtype, (N, V).
        labels_N: int64, (N,).

    Returns:
        Scalar fp32; 0 with a gradient path when N is 0.
    """
    if labels_N.numel() == 0:
        return logits_NV.float().sum() * 0.0
    return F.cross_entropy(logits_NV.float(), labels_N, reduction="sum")


def supervised_positions(supervised_T: Tensor, starts_T: Tensor) -> Tensor:
    """Positions whose *next* token is a label of the same document.

    Args:
        supervised_T: bool, (T,); True where the token is a label.
        starts_T: bool, (T,); True at each document's first token, which nothing predicts.

    Returns:
        int64, (N,), ascending.
    """
    return torch.nonzero(supervised_T[1:] & ~starts_T[1:]).flatten()
