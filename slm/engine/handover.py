"""The previous stage's weights, to the last bit: a bf16 engine makes its fp32 weights from rounded ones.

An adapter is saved in fp32. Loaded into a bf16 model it is rounded, and what the stage before had moved by less
than half a bf16 step would be lost, once a stage; the anchor would pull to the rounded values.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slm.engine.partitions import Partitions
from slm.engine.swapped import is_swapped
from slm.engine.tables import Table
from slm.model.adapter import read_adapter
from slm.model.lora import NEW_ROWS, saved_name, trainable


def hand_over_exactly(engine: Any, lm: nn.Module, tables: Sequence[Table], adapter: Path) -> None:
    """Put an adapter's fp32 values into the fp32 weights that the optimizer steps. Not collective.

    States on NVMe keep the rounded values. `load_trainable` has compared names and shapes.

    Raises:
        CheckpointError: the adapter can't be read.
    """
    if is_swapped(engine):
        return
    _, saved = read_adapter(adapter)
    pieces = Partitions(engine)
    names = {pieces.zero.get_param_id(parameter): name for name, parameter in trainable(lm)} if pieces.pieces else {}
    with torch.no_grad():
        for piece in pieces.pieces:
            value = _value_of(names[piece.key], saved, engine)
            pieces.value(piece).copy_(value.reshape(-1)[piece.offset : piece.offset + piece.size])
        for table in tables:
            table.master.copy_(saved[saved_name(table.name)][table.first : table.first + len(table.master)])


def _value_of(name: str, saved: dict[str, Tensor], engine: Any) -> Tensor:
    """The parameter's whole value; new rows are the last ones of the matrix that is saved."""
    value = saved[saved_name(name)]
    if not name.endswith(f".{NEW_ROWS}"):
        return value
    parameter = dict(engine.module.named_parameters())[f"lm.{name}"]
    rows = getattr(parameter, "ds_shape", parameter.shape)[0]
    return value[-rows:]
