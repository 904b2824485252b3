"""Whatever names a model, loaded for inference: a step, a training checkpoint, an adapter, a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from slm.startup import importing

if TYPE_CHECKING:
    import torch

    from slm.model.load import Loaded


def load_any(ref: str | Path, *, dtype: torch.dtype, device: str = "cpu", lora_scale: float = 1.0) -> Loaded:
    """`load_checkpoint` of a training checkpoint, `load_model` of everything else.

    Nothing heavy is imported before it is called, so that a command can hand it on and find its mistakes first.

    Raises:
        CheckpointError: nothing there, damaged, or not to be loaded.
    """
    with importing():
        from slm.engine.checkpoint_model import is_checkpoint, load_checkpoint
        from slm.model.load import load_model

    load = load_checkpoint if is_checkpoint(ref) else load_model
    return load(ref, dtype=dtype, device=device, lora_scale=lora_scale)
