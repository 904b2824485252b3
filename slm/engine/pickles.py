"""Pickles run what they name. DeepSpeed's checkpoint files name a few things, and no others are loaded."""

from __future__ import annotations

from pathlib import Path

from torch.serialization import get_unsafe_globals_in_checkpoint

from slm.errors import CheckpointError

KNOWN = frozenset(
    {
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    }
)


def require_known_pickles(folder: Path, rank: int = 0, world_size: int = 1) -> None:
    """Look through this rank's share of the pickle files in a checkpoint, loading none.

    Raises:
        CheckpointError: a file names something that DeepSpeed's own files do not; it is not loaded.
    """
    for file in sorted(folder.rglob("*.pt"))[rank::world_size]:
        try:
            named = set(get_unsafe_globals_in_checkpoint(file))
        except Exception as error:  # torch raises what its unpickler happens to meet
            raise CheckpointError(f"not a checkpoint file: {error}", where=str(file)) from error
        if strange := sorted(named - KNOWN):
            raise CheckpointError(
                f"the file is a pickle that calls {strange[0]}, as no checkpoint of this program does: not loaded",
                where=str(file),
                mend="use a checkpoint that was made here, or weights in safetensors",
            )
