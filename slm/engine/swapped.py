"""Checkpoints of optimizer states that are on NVMe: a safetensors file a rank and sub-group, one in memory at a time.

DeepSpeed 0.19.8 copies its swap files into a checkpoint and back, but a new engine does not know them for moments and
begins with fresh ones; Adam's step counters and groups under a megabyte, which stay in memory, are lost. Here every
sub-group is brought in, written and read back; on loading its weights go into the model as after a step. Names are
those of the pinned version.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from slm.errors import CheckpointError
from slm.model.lora import check_tensors, save_tensors

WEIGHT, STEP, MOMENTS = "weight", "step", ("exp_avg", "exp_avg_sq")


def is_swapped(engine: Any) -> bool:
    """Whether the optimizer's states are on NVMe."""
    return bool(getattr(engine.optimizer, "swap_optimizer", False))


def group_file(folder: Path, rank: int, group: int) -> Path:
    """Where a rank's part of a sub-group is."""
    return folder / f"optimizer_rank{rank}_group{group}.safetensors"


@contextmanager
def without_swap_files(engine: Any) -> Iterator[None]:
    """Keep DeepSpeed from copying its swap files while it saves."""
    engine.zero_nvme_offload_optimizer = lambda: False
    try:
        yield
    finally:
        del engine.zero_nvme_offload_optimizer


def save_swapped(engine: Any, folder: Path, rank: int) -> None:
    """Write this rank's weights and optimizer states and read them back. Not collective.

    Raises:
        CheckpointError: what was written reads back differently, or is not finite.
        MachineError: no space or no permission.
    """
    zero = engine.optimizer
    for group, flat in enumerate(zero.fp32_partitioned_groups_flat):
        swaps = zero._swappable_optimizer_subgroup(group)
        if swaps:
            zero.optimizer_swapper.swap_in_optimizer_state(parameter=flat)
        state = zero.optimizer.state.get(flat, {})  # empty before the first step that was taken
        found = {WEIGHT: flat.detach(), **{key: state[key].detach() for key in (*MOMENTS, STEP) if key in state}}
        found = {key: value.cpu().contiguous() for key, value in found.items()}
        file = group_file(folder, rank, group)
        check_tensors(found, str(file))
        save_tensors(found, file)
        require_same_tensors(found, file)
        if swaps:
            zero.optimizer_swapper.release_swap_buffers(flat)


def load_swapped(engine: Any, folder: Path, tag: str, rank: int) -> dict[str, Any]:
    """Restore the module's own states, then weights and optimizer states, into an engine that took no step.

    Returns:
        What DeepSpeed saved beside the states.

    Raises:
        CheckpointError: a file is missing, damaged, or of another shape.
    """
    zero = engine.optimizer
    zero.checkpoint_event_prologue()
    loaded, also = engine._load_checkpoint(str(folder), tag, load_module_strict=False)
    if loaded is None:
        raise CheckpointError("deepspeed found no checkpoint in the folder", where=str(folder))
    for group, flat in enumerate(zero.fp32_partitioned_groups_flat):
        swaps = zero._swappable_optimizer_subgroup(group)
        if swaps:
            zero.optimizer_swapper.swap_in_optimizer_state(parameter=flat)
        found = _read(group_file(folder, rank, group))
        if found[WEIGHT].shape != flat.shape:
            raise CheckpointError(
                f"{tuple(found[WEIGHT].shape)} weights were saved, the model has {tuple(flat.shape)}",
                where=str(group_file(folder, rank, group)),
            )
        flat.data.copy_(found[WEIGHT])
        zero._reassign_or_swap_out_partitioned_parameters(group)
        if STEP in found:
            # torch's AdamW, fused or not, counts steps in a tensor; moments get their swap files when they go out.
            zero.optimizer.state[flat] = {key: found[key].to(flat.device) for key in (STEP, *MOMENTS)}
        if swaps:
            zero._optimizer_states_and_gradient_swap_out(group)
    zero.checkpoint_event_epilogue()
    return dict(also)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as saved:
            return {key: saved.get_tensor(key) for key in saved.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"optimizer states can't be read: {error}", where=str(file)) from error


def require_same_tensors(written: dict[str, Tensor], file: Path) -> None:
    """Read a file of optimizer states and weights back.

    Raises:
        CheckpointError: a tensor is not what was written.
    """
    for key, value in _read(file).items():
        if not torch.equal(value, written[key]):
            raise CheckpointError("optimizer states read back differently", where=f"{file}: {key}")
