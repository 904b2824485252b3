"""The files of a PEFT adapter, read and written without peft: what tools on a login node need."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from slm.errors import CheckpointError, MachineError, from_os_error

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
"""What PEFT puts before the names of the base's tensors."""


def read_adapter(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An adapter's configuration and tensors.

    Raises:
        CheckpointError: files are missing or unreadable.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
        return config, load_file(folder / ADAPTER_WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"no readable adapter: {error}", where=str(folder)) from error


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file.

    Raises:
        MachineError: it can't be written; safetensors reports a full disk by an error of its own.
    """
    with writing_weights(path):
        save_file(dict(tensors), path, metadata={"format": "pt"})


@contextmanager
def writing_weights(path: Path) -> Iterator[None]:
    """What a block that writes safetensors to `path` raises, as an error with advice.

    Raises:
        MachineError: it can't be written; safetensors reports a full disk by an error of its own.
    """
    try:
        yield
    except OSError as error:
        raise from_os_error(error, f"writing weights to {path}") from error
    except SafetensorError as error:
        raise MachineError(
            f"no space left, or no permission, while writing weights: {error}",
            where=str(path),
            mend="free some space and run the same command again; what was complete before is intact",
        ) from error


def check_tensors(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse to save what could not be loaded: empty, non-finite, or no tensors.

    Raises:
        CheckpointError: names the tensor.
    """
    if not tensors:
        raise CheckpointError("nothing to save: no tensors", where=where)
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            raise CheckpointError(f"{name} is empty: it was saved while partitioned", where=where)
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{name} holds non-finite numbers", where=where)
