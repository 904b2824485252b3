"""Packed rows as the tensors of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slm.data.loader import Row
from slm.device import sent
from slm.losses.next_token import supervised_positions


@dataclass(frozen=True)
class MicroBatch:
    """Arguments of `SupervisedLM.forward`, and which source each row came from."""

    input_ids: Tensor
    position_ids: Tensor
    lengths: list[int]
    where: Tensor
    labels: Tensor
    rows: list[int]
    sources: list[str]

    @property
    def tokens(self) -> int:
        """Tokens in the batch."""
        return self.input_ids.shape[1]

    def to(self, device: torch.device) -> MicroBatch:
        """The same on a device."""
        moved = [sent(tensor, device) for tensor in (self.input_ids, self.position_ids, self.where, self.labels)]
        return MicroBatch(moved[0], moved[1], self.lengths, moved[2], moved[3], self.rows, self.sources)


def to_micro_batch(rows: Sequence[Row]) -> MicroBatch:
    """Lay packed rows end to end, positions restarting at each document.

    Raises:
        ValueError: a row whose document lengths do not sum to its tokens.
    """
    lengths = [int(length) for row in rows for length in row.lengths]
    ids = torch.from_numpy(np.concatenate([row.ids for row in rows]).astype(np.int64))
    if sum(lengths) != ids.numel():
        raise ValueError(f"documents hold {sum(lengths)} tokens, rows hold {ids.numel()}")
    position_ids = torch.cat([torch.arange(length) for length in lengths])
    supervised = torch.from_numpy(np.concatenate([row.supervised for row in rows]).astype(bool))
    where = supervised_positions(supervised, position_ids == 0)
    borders = torch.tensor(np.cumsum([len(row.ids) for row in rows]))
    of_row = torch.bucketize(where, borders, right=True)
    return MicroBatch(
        input_ids=ids[None],
        position_ids=position_ids[None],
        lengths=lengths,
        where=where,
        labels=ids[where + 1],
        rows=torch.bincount(of_row, minlength=len(rows)).tolist(),
        sources=[row.source for row in rows],
    )
