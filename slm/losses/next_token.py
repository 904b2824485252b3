"""Which positions of packed rows predict a label."""

from __future__ import annotations

import torch
from torch import Tensor


def supervised_positions(supervised_T: Tensor, starts_T: Tensor) -> Tensor:
    """Positions whose *next* token is a label of the same document.

    Args:
        supervised_T: bool, (T,); True where the token is a label.
        starts_T: bool, (T,); True at each document's first token, which nothing predicts.

    Returns:
        int64, (N,), ascending.
    """
    return torch.nonzero(supervised_T[1:] & ~starts_T[1:]).flatten()
