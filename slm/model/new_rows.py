"""Train only the new rows of a vocabulary: frozen old rows beside a small trainable matrix.

The whole base matrix stays where it is, frozen; rows from `first` on are read from a parameter of their
own. Embedding is two look-ups, the head two products into one softmax, so nothing is cloned and the
head's gradient and the optimizer's states have only the new rows. Saved as whole matrices, under the
names of the whole.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm.errors import CheckpointError
from slm.model.head import Head
from slm.model.lora import NEW_ROWS, Gathered, causal_lm, is_tied


class SplitEmbedding(nn.Module):
    """Rows below `first` from the frozen `weight`, the others from `new`."""

    def __init__(self, weight: nn.Parameter, new: nn.Parameter, first: int) -> None:
        super().__init__()
        self.weight, self.new, self.first = weight, new, first

    def forward(self, ids: Tensor) -> Tensor:
        """Int64 ids (…) -> (…, D)."""
        old = F.embedding(ids, self.weight)
        new = F.embedding((ids - self.first).clamp(min=0), self.new)
        return torch.where((ids >= self.first)[..., None], new, old)


class SplitHead(Head):
    """The head of a `SplitEmbedding`'s model, with its parameters if tied."""

    def __init__(self, weight: nn.Parameter, new: nn.Parameter, first: int) -> None:
        super().__init__(weight)
        self.new, self.first = new, first

    @property
    def blocks(self) -> list[Tensor]:
        """Frozen old rows, new rows."""
        return [self.weight[: self.first], self.new]


def split_vocabulary(lm: nn.Module, first: int, gathered: Gathered) -> None:
    """Freeze embeddings and head and put trainable copies of their rows from `first` on beside them. Collective.

    Raises:
        CheckpointError: there are no such rows.
    """
    inner = causal_lm(lm)
    embedding, head = inner.get_input_embeddings(), inner.get_output_embeddings()
    new = _new_rows(embedding.weight, first, gathered)
    inner.set_input_embeddings(SplitEmbedding(embedding.weight, new, first))
    if not is_tied(lm):
        new = _new_rows(head.weight, first, gathered)
    inner.lm_head = SplitHead(head.weight, new, first)


def _new_rows(weight: nn.Parameter, first: int, gathered: Gathered) -> nn.Parameter:
    weight.requires_grad_(False)
    with gathered([weight]):
        rows = weight.detach()[first:].clone()
    if not len(rows):
        raise CheckpointError(
            f"the model has no rows from {first} on", mend="model.vocabulary: new_rows needs a base with unit rows"
        )
    return nn.Parameter(rows)


def whole_matrices(lm: nn.Module, values: dict[str, Tensor], gathered: Gathered, *, keep: bool) -> dict[str, Tensor]:
    """Trained values with new rows completed to whole matrices, under the whole matrix' name. Collective.

    Args:
        values: parameter name -> trained value, on the CPU; only read where `keep`.
        keep: whether this rank wants the result; the others only take part.
    """
    parts: dict[str, Any] = {}
    for name, module in lm.named_modules():
        if isinstance(module, SplitEmbedding | SplitHead):
            parts[f"{name}.{NEW_ROWS}"] = module
    found = dict(values)
    for name, module in parts.items():
        with gathered([module.weight]):
            if keep and name in found:
                old = module.weight.detach()[: module.first].float().cpu()
                new = found.pop(name)
                found[name.removesuffix(NEW_ROWS) + "weight"] = torch.cat([old, new.to(old.dtype)])
    return found
