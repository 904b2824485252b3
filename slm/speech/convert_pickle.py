"""Reading a published checkpoint: a pickle of which the tensors count and nothing is run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from slm.errors import CheckpointError


class _Inert:
    """Stands for whatever class a checkpoint mentions beside its tensors (settings, optimizers)."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Lists of settings are filled one by one."""

    def extend(self, values: Any) -> None:
        """Or several at a time."""

    def add(self, value: Any) -> None:
        """And sets."""


def read_checkpoint(path: str | Path, part: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, name -> tensor, mapped into memory rather than read.

    Classes that the pickle names are replaced by ones that do nothing, so none of its code can run.

    Args:
        path: what `torch.save` wrote.
        part: keys under which the tensors may lie (`model`, `generator`); a plain dictionary of tensors will do too.

    Raises:
        CheckpointError: damaged, no checkpoint, or without tensors there.
    """
    try:
        # `getattr` and its like come as inert classes too
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_Inert, name) for name in unsafe]):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError, EOFError, OSError, KeyError, AttributeError, pickle.UnpicklingError) as error:
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"not a readable checkpoint: {told}", where=str(path), mend="download it again; its size may tell"
        ) from None
    tensors = found
    for key in part:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            tensors = found[key]
            break
    if not isinstance(tensors, dict) or not any(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise CheckpointError(
            f"no tensors under {' or '.join(part)}", where=str(path), mend="is it the checkpoint of something else?"
        )
    strays = [str(name) for name, value in tensors.items() if not isinstance(value, torch.Tensor)]
    if strays:
        raise CheckpointError(f"{strays[0]} is no tensor", where=str(path))
    return {str(name): value for name, value in tensors.items()}
