"""What is in a checkpoint, compared with what the engine holds: after writing, before it counts, and after loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from slm.engine.partitions import Partitions
from slm.errors import CheckpointError

SHARDED, FLAT = "fp32_flat_groups", "single_partition_of_fp32_groups"


def require_written(engine: Any, folder: Path, tag: str) -> None:
    """Compare this rank's fp32 weights in its optimizer file with the live ones.

    Raises:
        CheckpointError: missing, empty, not finite or different; names the file.
    """
    partitions = Partitions(engine)
    if getattr(partitions.zero, "swap_optimizer", False):
        return  # the weights are on NVMe, and DeepSpeed copies those files
    file = Path(engine._get_zero_ckpt_name(str(folder), tag))
    try:
        saved = torch.load(file, map_location="cpu", mmap=True, weights_only=False)["optimizer_state_dict"]
    except (OSError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"a checkpoint can't be read back: {error}", where=str(file)) from error
    flats = saved[SHARDED if partitions.sharded else FLAT]
    if len(flats) != len(partitions.flats):
        raise CheckpointError(
            f"{len(flats)} tensors of weights were saved, not {len(partitions.flats)}", where=str(file)
        )
    for written, live in zip(flats, partitions.flats, strict=True):
        held = live.detach().cpu()[: written.numel()]  # ZeRO-1 and 2 save without the padding at the end
        if held.numel() and not written.numel():
            raise CheckpointError("weights were saved empty", where=str(file))
        if not torch.equal(written, held):
            raise CheckpointError("weights read back differently", where=str(file))
        if not torch.isfinite(written).all():
            raise CheckpointError("weights hold numbers that are not finite", where=str(file))


def require_same_parameters(engine: Any, loaded: dict[str, Any], path: Path) -> None:
    """What the checkpoint trained must be what this engine trains: DeepSpeed was told not to be strict.

    Raises:
        CheckpointError: names the first parameter that differs.
    """

    def shapes(groups: list[dict[str, Any]]) -> dict[str, list[int]]:
        return {name: list(shape) for group in groups for name, shape in group.items()}

    then, now = shapes(loaded["param_shapes"]), shapes(engine._get_zero_param_shapes())
    changed = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    if changed:
        name = changed[0]
        raise CheckpointError(
            f"the checkpoint trained other parameters: {name} is {then.get(name)} there, {now.get(name)} here",
            where=str(path),
        )
