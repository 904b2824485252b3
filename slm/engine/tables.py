"""Vocabulary-parallel embedding and head: the rows stay on their rank, hidden states travel.

Rows are split over the data-parallel ranks. For the embedding every rank asks the owners for the rows of
its tokens; for the head a chunk of supervised positions of all ranks is gathered, every rank computes the
logits of its own rows, softmax statistics are joined, and the hidden states' gradients are summed back. A
row's gradient is then whole on its owner: no table and no table's gradient is ever communicated.

The tables are no parameters of the engine's module, so neither ZeRO nor DeepSpeed's gradient reduction sees
them; `table_optimizer` steps them together with the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from slm.engine.distributed import Place
from slm.losses.linear_cross_entropy import Chunks
from slm.model.head import LossHead
from slm.model.lora import Gathered, causal_lm, is_tied

EACH = 256
"""Positions of each rank in a round on GPUs, at least."""


def bounds_of(rows: int, world_size: int) -> list[int]:
    """First row of each rank, and the number of rows at the end; as equal as can be."""
    return [rows * rank // world_size for rank in range(world_size + 1)]


@dataclass
class Table:
    """One rank's rows of a vocabulary matrix.

    Attributes:
        name: the whole matrix' parameter name in the model.
        bounds: see `bounds_of`.
        weight: (own rows, D) in the model's dtype.
        master: fp32; the same tensor as `weight` when that is fp32.
        grad: fp32 gradient of the step's loss, whole; None before any.
    """

    name: str
    place: Place
    bounds: list[int]
    weight: nn.Parameter
    master: nn.Parameter = field(init=False)
    grad: Tensor | None = None

    def __post_init__(self) -> None:
        same = self.weight.dtype == torch.float32
        self.master = self.weight if same else nn.Parameter(self.weight.detach().float())

    @property
    def first(self) -> int:
        """First row that is held here."""
        return self.bounds[self.place.rank]

    def add_grad(self, grad: Tensor, factor: Tensor | float) -> None:
        """Add a gradient over all rows held here; takes the tensor over."""
        grad.mul_(factor)
        self.grad = grad if self.grad is None else self.grad.add_(grad)

    def add_rows(self, rows_N: Tensor, grad_ND: Tensor) -> None:
        """Add gradients of single rows; a row may come more than once."""
        if self.grad is None:
            self.grad = torch.zeros_like(self.master, requires_grad=False)
        self.grad.index_add_(0, rows_N, grad_ND.float())

    def gathered(self) -> Tensor | None:
        """The whole fp32 matrix on the CPU of rank 0, None elsewhere. Collective."""
        own = self.master.detach()
        if self.place.rank:
            dist.send(own.contiguous(), 0)
            return None
        parts = [own.cpu()]
        for source, (first, end) in enumerate(pairwise(self.bounds)):
            if source:
                part = own.new_empty(end - first, own.shape[1])
                dist.recv(part, source)
                parts.append(part.cpu())
        return torch.cat(parts)


def _exchange(tensor: Tensor, send: list[int], receive: list[int]) -> Tensor:
    """Rows of `tensor` to the ranks, `send[r]` to rank r, and theirs back in rank order."""
    out = tensor.new_empty(sum(receive), *tensor.shape[1:])
    dist.all_to_all_single(out, tensor.contiguous(), receive, send)
    return out


def _gather(tensor: Tensor, world_size: int) -> Tensor:
    """(…) of every rank -> (ranks, …)."""
    out = tensor.new_empty(world_size, *tensor.shape)
    dist.all_gather_into_tensor(out.view(-1), tensor.reshape(-1))  # in one piece: a list of tensors is copied by NCCL
    return out


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Table, ids_U: Tensor, weight: Tensor) -> Tensor:
        borders = torch.searchsorted(ids_U, torch.tensor(table.bounds[1:-1], device=ids_U.device)).tolist()
        send = [end - first for first, end in pairwise([0, *borders, len(ids_U)])]
        mine = torch.tensor(send, device=ids_U.device)
        receive = _gather(mine, table.place.world_size)[:, table.place.rank].tolist()
        asked = _exchange(ids_U, send, receive) - table.first
        ctx.table, ctx.asked, ctx.send, ctx.receive = table, asked, send, receive
        return _exchange(weight[asked], receive, send)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_UD: Tensor) -> tuple[None, None, None]:
        table = ctx.table
        ctx.table.add_rows(ctx.asked, _exchange(grad_UD, ctx.send, ctx.receive) / table.place.world_size)
        return None, None, None


class ParallelEmbedding(nn.Module):
    """An embedding whose rows lie on all ranks; every rank must call it at the same time."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self._tables = [table]  # in a list: not a parameter of this module

    def forward(self, ids: Tensor) -> Tensor:
        """Int64 ids (…) -> (…, D). Collective."""
        table = self._tables[0]
        unique, inverse = torch.unique(ids, return_inverse=True)
        return F.embedding(inverse, _LookUp.apply(table, unique, table.weight))


class _ParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        table: Table,
        gradients: bool,
        chunk: int,
        labels_N: Tensor,
        weights_N: Tensor,
        hidden_ND: Tensor,
        weight: Tensor,
    ) -> tuple[Tensor, Tensor]:
        rounds = _Rounds(table.place, chunk, labels_N, weights_N)
        size = max(1, min(rounds.each * table.place.world_size, sum(rounds.counts)))
        chunks = Chunks([weight], [gradients], size)
        losses = chunks.buffer.new_zeros(len(labels_N))
        into_hidden = torch.zeros_like(hidden_ND) if gradients else None
        for start in range(0, max(rounds.counts), rounds.each):
            part = slice(start, start + rounds.each)
            hidden, labels, weights = rounds.gather(start, hidden_ND)
            columns = torch.where((labels >= table.first) & (labels < table.first + len(weight)), labels, -1)
            columns = columns - table.first * (columns >= 0)
            each, grad = chunks.losses(hidden, columns, weights, gradients=gradients, join=rounds.join)
            losses[part] = rounds.own(start, each)
            if into_hidden is not None and grad is not None:
                into_hidden[part] = rounds.sum_back(start, grad)
        ctx.table, ctx.grads = table, (into_hidden, chunks.grads[0])
        ctx.mark_non_differentiable(losses)
        return torch.dot(losses, weights_N.to(losses.dtype)), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (into_hidden, into_weight), ctx.grads = ctx.grads, None
        ctx.table.add_grad(into_weight, grad_loss / ctx.table.place.world_size)
        return None, None, None, None, None, into_hidden.mul_(grad_loss), None


class _Rounds:
    """The positions of all ranks, a few of each rank at a time."""

    def __init__(self, place: Place, chunk: int, labels_N: Tensor, weights_N: Tensor) -> None:
        self.place, self.each = place, -(-chunk // place.world_size)
        self.counts = _gather(torch.tensor(len(labels_N), device=labels_N.device), place.world_size).tolist()
        missing = max(self.counts) - len(labels_N)
        self._labels = _gather(F.pad(labels_N, (0, missing)), place.world_size)
        self._weights = _gather(F.pad(weights_N, (0, missing)), place.world_size)

    def _sizes(self, start: int) -> list[int]:
        return [min(max(count - start, 0), self.each) for count in self.counts]

    def gather(self, start: int, hidden_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states, labels and weights of the next positions of every rank, rank after rank. Collective."""
        sizes = self._sizes(start)
        own = hidden_ND[start : start + self.each]
        hidden = _gather(F.pad(own, (0, 0, 0, max(sizes) - len(own))), self.place.world_size)
        parts = [hidden, *(t[:, start : start + max(sizes)] for t in (self._labels, self._weights))]
        if min(sizes) == max(sizes):
            hidden, labels, weights = (part.flatten(0, 1) for part in parts)
            return hidden, labels, weights
        hidden, labels, weights = (
            torch.cat([rank[:size] for rank, size in zip(part, sizes, strict=True)]) for part in parts
        )
        return hidden, labels, weights

    def join(self, lse_n: Tensor, target_n: Tensor) -> tuple[Tensor, Tensor]:
        """See `Join`. Collective."""
        both = _gather(torch.stack([lse_n, target_n]), self.place.world_size)
        return both[:, 0].logsumexp(0), both[:, 1].sum(0)

    def own(self, start: int, values_n: Tensor) -> Tensor:
        """This rank's part of what `gather` put together."""
        return values_n.split(self._sizes(start))[self.place.rank]

    def sum_back(self, start: int, grad_nD: Tensor) -> Tensor:
        """This rank's part of the sum over ranks. Collective."""
        sizes = self._sizes(start)
        longest = max(sizes)
        if min(sizes) != longest:
            grad_nD = torch.cat([F.pad(part, (0, 0, 0, longest - len(part))) for part in grad_nD.split(sizes)])
        out = grad_nD.new_empty(longest, grad_nD.shape[1])
        dist.reduce_scatter_tensor(out, grad_nD.contiguous())
        return out[: sizes[self.place.rank]]


class ParallelHead(LossHead):
    """A head whose rows lie on all ranks; every rank must call it at the same time."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self._tables = [table]

    def suitable_chunk(self, device: torch.device) -> int:
        """More with more ranks: the rows of each are fewer, and rounds of a few positions are all waiting."""
        chunk = super().suitable_chunk(device)
        return max(chunk, EACH * self._tables[0].place.world_size) if device.type == "cuda" else chunk

    def forward(
        self, hidden_ND: Tensor, labels_N: Tensor, weights_N: Tensor, *, chunk: int = 128
    ) -> tuple[Tensor, Tensor]:
        """As `linear_cross_entropy`, for this rank's positions; `chunk` counts the positions of all ranks. Collective.

        The upstream gradient must be the same on all ranks: a table's gradient comes from all their losses.
        """
        table, gradients = self._tables[0], torch.is_grad_enabled()
        loss, losses = _ParallelCrossEntropy.apply(
            table, gradients, chunk, labels_N, weights_N, hidden_ND, table.weight
        )
        return loss, losses


def split_over_ranks(lm: nn.Module, place: Place, gathered: Gathered) -> list[Table]:
    """Take embeddings and head out of `lm` and put this rank's rows in their place. Collective.

    Returns:
        The tables: one of a tied model, else embedding and head.
    """
    inner = causal_lm(lm)
    names = {id(parameter): name for name, parameter in lm.named_parameters()}

    def table_of(weight: nn.Parameter) -> Table:
        with gathered([weight]):
            bounds = bounds_of(weight.shape[0], place.world_size)
            own = weight.detach()[bounds[place.rank] : bounds[place.rank + 1]].to(place.device, copy=True)
        return Table(names[id(weight)], place, bounds, nn.Parameter(own))

    tables = [table_of(inner.get_input_embeddings().weight)]
    if not is_tied(lm):
        tables.append(table_of(inner.get_output_embeddings().weight))
    inner.set_input_embeddings(ParallelEmbedding(tables[0]))
    inner.lm_head = ParallelHead(tables[-1])
    return tables


def tables_of(engine: Any) -> Any:
    """The `TableOptimizer` of an engine whose vocabulary is split over the ranks, else None."""
    return getattr(engine, "vocabulary_tables", None)
