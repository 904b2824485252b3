"""This rank's pieces of the trained parameters, as ZeRO keeps them: fp32 weights and their gradients.

ZeRO-3 cuts each parameter into equal parts, ZeRO-1 and 2 cut the flat buffer of a parameter group.
Both pad; padding is left out here, so sums over pieces and ranks are sums over parameters. Nothing is
gathered. DeepSpeed has no public way to all pieces at once: names are those of the pinned version.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slm.errors import ConfigError


@dataclass(frozen=True)
class Piece:
    """Where a piece lies.

    Attributes:
        group: name of its optimizer group (`matrix`, `vector`, `vocabulary`).
        flat: number of the flat fp32 tensor that holds it.
        at: its number among that tensor's parameters (ZeRO-3).
        start, size: its elements in the flat tensor.
        offset: where it begins in its parameter, whose elements are counted through.
        key: DeepSpeed's id of the parameter.
    """

    group: str
    flat: int
    at: int
    start: int
    size: int
    offset: int
    key: Any


class Partitions:
    """The pieces of an engine's trained parameters on this rank.

    Raises:
        ConfigError: the engine has no ZeRO.
    """

    def __init__(self, engine: Any) -> None:
        self.zero = engine.optimizer
        self.sharded = hasattr(self.zero, "fp32_partitioned_groups_flat")
        if not self.sharded and not hasattr(self.zero, "single_partition_of_fp32_groups"):
            raise ConfigError("the DeepSpeed JSON sets no ZeRO stage", mend="set zero_optimization.stage to 1, 2 or 3")
        self.offloaded = bool(self.zero.offload_optimizer if self.sharded else self.zero.cpu_offload)
        self.pieces = list(self._sharded_pieces() if self.sharded else self._flat_pieces())

    @property
    def flats(self) -> list[Tensor]:
        """The flat fp32 tensors that the inner optimizer steps."""
        return self.zero.fp32_partitioned_groups_flat if self.sharded else self.zero.single_partition_of_fp32_groups

    def value(self, piece: Piece) -> Tensor:
        """The piece's fp32 weights, (size,); a view."""
        return self.flats[piece.flat].data.narrow(0, piece.start, piece.size)

    def gradients(self) -> Iterator[tuple[Piece, Tensor]]:
        """Each piece and its gradient, (size,), a view; between the last backward pass of a step and `step`."""
        if self.offloaded:
            if not self.sharded:
                self.zero._wait_for_offload_copies()
            for piece in self.pieces:
                gradient = self.flats[piece.flat].grad
                assert gradient is not None
                yield piece, gradient.view(-1).narrow(0, piece.start, piece.size)
        elif self.sharded:
            for piece in self.pieces:
                yield piece, self.zero.averaged_gradients[piece.flat][piece.at].view(-1)[: piece.size]
        else:
            starts: dict[tuple[int, int], Tensor] = {}
            for flat in {piece.flat for piece in self.pieces}:
                at = 0
                for part in self.zero.averaged_gradients[flat]:
                    starts[flat, at] = part
                    at += part.numel()
            for piece in self.pieces:
                yield piece, starts[piece.flat, piece.start].view(-1)[: piece.size]

    def gradient_changed(self, piece: Piece, gradient: Tensor) -> None:
        """Must follow a change of a gradient: with offload its norm was taken in the backward pass."""
        if self.offloaded:
            self.zero.norm_for_param_grads[piece.key] = torch.linalg.vector_norm(gradient)

    def spoil_gradients(self) -> None:
        """Make the gradient norm NaN on every rank: the step that follows is then left out, its buffers reset."""
        if self.offloaded:  # the norm is made of these; the gradients may be in files
            for key in self.zero.norm_for_param_grads:
                self.zero.norm_for_param_grads[key] = torch.tensor(math.nan)
            return
        for _, gradient in self.gradients():
            gradient.fill_(math.nan)

    def _sharded_pieces(self) -> Iterator[Piece]:
        for flat, parameters in enumerate(self.zero.fp16_groups):
            group = self.zero.optimizer.param_groups[self.zero.sub_group_to_group_id[flat]]["name"]
            for at, parameter in enumerate(parameters):
                key = self.zero.get_param_id(parameter)
                _, start, padded = self.zero.grad_position[key]
                offset = self.zero._get_param_partition_rank(parameter) * padded
                own = parameter.ds_numel - offset
                if own > 0:
                    yield Piece(group, flat, at, start, min(own, padded), offset, key)

    def _flat_pieces(self) -> Iterator[Piece]:
        for flat, parameters in enumerate(self.zero.bit16_groups):
            group = self.zero.optimizer.param_groups[flat]["name"]
            for at, parameter in enumerate(parameters):
                mapping = parameter._hp_mapping
                if mapping is not None and mapping.hp_fragment_address.numel:
                    address, offset = mapping.hp_fragment_address, mapping.lp_fragment_address.start
                    key = self.zero.get_param_id(parameter)
                    yield Piece(group, flat, at, address.start, address.numel, offset, key)
