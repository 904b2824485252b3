"""A checkpoint at another number of ranks, through DeepSpeed's universal format.

The universal form holds one whole tensor per parameter and optimizer state. It is derived, so it is made in
a scratch folder on rank 0 and removed when all ranks have read their part of it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from slm.engine.distributed import LONG, Place, barrier, together
from slm.engine.read_back import require_same_parameters
from slm.errors import CheckpointError


def load_resharded(engine: Any, path: Path, tag: str, place: Place) -> None:
    """Load weights and optimizer states that another number of ranks saved. Collective.

    Raises:
        CheckpointError: DeepSpeed can't convert or load it, or other parameters were trained.
        MachineError: no space for the universal form.
    """
    scratch = path.with_name(f".{path.name}.universal")
    try:
        together(lambda: _convert(path / tag, scratch / tag) if place.is_main else None, within=LONG)
        groups = [copy.copy(group) for group in engine.optimizer.optimizer.param_groups]
        engine._config.load_universal_checkpoint = True
        try:
            loaded, also = engine.load_checkpoint(str(scratch), tag=tag, load_module_strict=False)
        except (AssertionError, KeyError, OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint can't be resharded: {error}", where=str(path)) from error
        finally:
            engine._config.load_universal_checkpoint = False
        if loaded is None:
            raise CheckpointError("deepspeed found no checkpoint in the folder", where=str(path))
        require_same_parameters(engine, also, path)
        _repair(engine.optimizer.optimizer, groups)
        barrier()
    finally:
        if place.is_main:
            shutil.rmtree(scratch, ignore_errors=True)


def _convert(source: Path, target: Path) -> None:
    """DeepSpeed's converter, in this process: its workers would be forks of a process that has threads."""
    from deepspeed.checkpoint.ds_to_universal import main

    shutil.rmtree(target.parent, ignore_errors=True)
    target.mkdir(parents=True)
    arguments = argparse.Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with (
        open(os.devnull, "w") as silence,
        contextlib.redirect_stdout(silence),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        try:
            main(arguments)
        except (AssertionError, KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint can't be resharded: {error}", where=str(source)) from error


def _repair(optimizer: Any, groups: list[dict[str, Any]]) -> None:
    """Undo two faults of DeepSpeed 0.19.8's universal loading under ZeRO-3.

    It writes the first group's settings over those of all groups, and gives all flat tensors one and the same
    step counter, which each of them then advances: the bias correction would run ahead.
    """
    for group, before in zip(optimizer.param_groups, groups, strict=True):
        group.update({key: value for key, value in before.items() if key != "params"})
    for state in optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
