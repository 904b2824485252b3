"""A key-value cache that grows in place: appending a token copies no earlier ones."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):
    """One layer's keys and values, [batch, heads, length, head width], as views of buffers that double when full.

    transformers' `DynamicLayer` concatenates, which copies the whole past at every token; with a small
    model that costs more than the model itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self._length = 0
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the states of new positions and return those of all positions."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self._length, self._length + key_states.shape[-2]
        buffers = self._with_room(end, key_states, value_states)
        buffers[0][:, :, start:end] = key_states
        buffers[1][:, :, start:end] = value_states
        self._length = end
        self.keys, self.values = buffers[0][:, :, :end], buffers[1][:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep only some rows of the batch."""
        if self._buffers is None:
            return
        keys, values = (buffer[indices] for buffer in self._buffers)
        self._buffers = (keys, values)
        self.keys, self.values = keys[:, :, : self._length], values[:, :, : self._length]

    def _with_room(self, length: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        old = self._buffers
        if old is None or old[0].shape[2] < length:
            room = max(length + 64, 2 * self._length)
            new = tuple(like.new_empty(*like.shape[:2], room, like.shape[3]) for like in (keys, values))
            if old is not None:
                for target, source in zip(new, old, strict=True):
                    target[:, :, : self._length] = source[:, :, : self._length]
            self._buffers = (new[0], new[1])
        assert self._buffers is not None
        return self._buffers


class GrowingCache(Cache):
    """`GrowingLayer`s, made as the model asks for them."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=GrowingLayer)
