"""A training checkpoint as a model for inference: before a stage has ended, or another step than its last.

The fp32 weights are put together from the ranks' files by DeepSpeed's own converter, and from the files of a split
vocabulary; which base they belong to says the stage's `config.yaml`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from slm.artifact import find_manifest, read_json, verify
from slm.config.loader import load_config
from slm.config.stage import StageConfig
from slm.engine.checkpoint import KIND, TAG
from slm.engine.pickles import require_known_pickles
from slm.engine.table_files import INDEX, rank_file
from slm.errors import CheckpointError, DataError
from slm.model.load import Loaded, load_base, merged
from slm.model.lora import NEW_ROWS, attach, whole_modules
from slm.model.reference import resolve
from slm.tokens.vocabulary import load_tokenizer

MODULE = "lm."
"""What stands before a parameter's name in the engine's module."""


def is_checkpoint(folder: str | Path) -> bool:
    """Whether a folder is one of a run's `checkpoints/step_…`."""
    manifest = find_manifest(folder)
    return manifest is not None and manifest.kind == KIND


def load_checkpoint(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu", lora_scale: float = 1.0
) -> Loaded:
    """The model of a checkpoint, its adapter folded into the base.

    Args:
        folder: `<step>/checkpoints/step_…`, in its place below the step.
        lora_scale: factor on the adapter's alpha / rank.

    Raises:
        CheckpointError: damaged, from pickles that are not DeepSpeed's, or without the step's configuration or base.
    """
    folder = Path(folder)
    manifest = verify(folder)
    config = _stage_config(folder)
    base = resolve(_base(config, folder)).base
    tokenizer, vocabulary = load_tokenizer(base)
    lm = load_base(base, dtype=dtype, attention="sdpa")
    if config.model.train == "lora":
        whole = whole_modules(lm, config.model.also_train)
        lm = attach(lm, config.model.lora, vocabulary=config.model.vocabulary != "frozen", whole=whole)
    _fill(lm, trained_weights(folder), folder)
    if config.model.train == "lora":
        lm = merged(lm, lora_scale)
    elif lora_scale != 1.0:
        raise CheckpointError("a LoRA scale needs an adapter, and this stage trains all weights", where=str(folder))
    return Loaded(lm.to(device).eval(), tokenizer, vocabulary, manifest.fingerprint)


def _stage_config(folder: Path) -> StageConfig:
    path = folder.parent.parent / "config.yaml"
    if not path.is_file():
        raise CheckpointError(
            "the configuration of its stage is not there",
            where=str(path),
            mend="leave checkpoints in their step folder",
        )
    return load_config(StageConfig, path)


def _base(config: StageConfig, folder: Path) -> Path:
    """The base as the stage named it, or of that name beside the step (a run folder that was moved)."""
    named = Path(config.model.base)
    beside = folder.parent.parent.parent / named.name
    return named if named.is_dir() or not beside.is_dir() else beside


def trained_weights(folder: Path) -> dict[str, Tensor]:
    """Parameter name -> whole fp32 value of everything that trained.

    Raises:
        CheckpointError: files that DeepSpeed did not write, or that it can't put together.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    require_known_pickles(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # its progress bars
            found = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=TAG)
    except (AssertionError, KeyError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"the ranks' weights can't be put together: {error}", where=str(folder)) from error
    weights = {name.removeprefix(MODULE): tensor for name, tensor in found.items()}
    return weights | _table_weights(folder)


def _table_weights(folder: Path) -> dict[str, Tensor]:
    """Matrices of a vocabulary that was split over the ranks; empty where it was not."""
    if not (folder / INDEX).is_file():
        return {}
    try:
        bounds: Mapping[str, list[int]] = read_json(folder / INDEX)["bounds"]
        ranks = range(max(len(rows) for rows in bounds.values()) - 1)
        files = [load_file(rank_file(folder, rank)) for rank in ranks]
        return {name: torch.cat([file[f"{name}:weight"] for file in files]) for name in bounds}
    except (OSError, KeyError, ValueError, DataError, SafetensorError) as error:
        raise CheckpointError(f"vocabulary rows can't be read: {error}", where=str(folder)) from error


def _fill(lm: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Put trained weights into the model; every trainable parameter has to get one."""
    parameters = dict(lm.named_parameters())
    wanted = {name for name, parameter in parameters.items() if parameter.requires_grad}
    filled = set()
    with torch.no_grad():
        for name, value in weights.items():
            target = name.removesuffix(NEW_ROWS) + "weight" if name.endswith(f".{NEW_ROWS}") else name
            parameter: Any = parameters.get(target)
            if parameter is None:
                raise CheckpointError(f"the checkpoint has {name}, the model has not", where=str(folder))
            rows = parameter[-len(value) :] if target != name else parameter
            if rows.shape != value.shape:
                raise CheckpointError(
                    f"{name} is {tuple(value.shape)} in the checkpoint, {tuple(rows.shape)} in the model",
                    where=str(folder),
                )
            rows.copy_(value)
            filled.add(target)
    if missing := sorted(wanted - filled):
        raise CheckpointError(f"the checkpoint has no {missing[0]}", where=str(folder))
