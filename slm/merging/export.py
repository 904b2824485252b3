"""A step for the world outside: a standard PEFT adapter, or the base with the adapter folded in.

Folding is W + (alpha / r) · B·A in fp32, rounded once to the wanted format, one file of the base at a time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from slm.artifact import building, write_atomic, write_manifest
from slm.config.base import to_make
from slm.config.models import ExportJob
from slm.errors import CheckpointError
from slm.model.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PREFIX, check_tensors, read_adapter, save_tensors
from slm.model.reference import Reference, resolve
from slm.model.weights import EMBEDDING, HEAD, Change, copy_config, prove_loadable, rewrite, shapes_of
from slm.tokens.vocabulary import load_tokenizer, save_tokenizer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
UNREAD = ("use_dora", "alpha_pattern", "rank_pattern", "fan_in_fan_out", "lora_bias", "trainable_token_indices")


def export(job: ExportJob) -> bool:
    """Make the `export` artifact of a job.

    Returns:
        False when it was up to date already.

    Raises:
        CheckpointError: the model has no adapter to export, is damaged, or the result could not be loaded.
        MachineError: no space or no permission.
    """
    inputs = to_make(job)
    if inputs is None:
        return False
    reference = resolve(job.model)
    if job.form == "adapter" and reference.adapter is None:
        raise CheckpointError("the step has no adapter", where=job.model, mend="form=merged writes the whole model")
    with building(job.out) as folder:
        if job.form == "adapter":
            _write_adapter(reference, folder, job.base_name)
        else:
            _write_merged(reference, folder, job.dtype)
        about = {"model": job.model, "base": str(reference.base)}
        write_manifest(folder, job.kind, config=job.identity(), inputs=inputs, about=about)
    return True


def verified_adapter(reference: Reference) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The adapter's configuration and tensors, checked against its base.

    Raises:
        CheckpointError: a tensor is empty, not finite, without its partner, of a shape that the base
            does not take, or would not be read by PEFT; or the adapter is of a kind that is not read here.
    """
    assert reference.adapter is not None
    config, tensors = read_adapter(reference.adapter)
    where = str(reference.adapter)
    if odd := next((key for key in UNREAD if config.get(key)), None):
        raise CheckpointError(f"adapters with {odd} are not read", where=where, mend="merge it with peft itself")
    check_tensors(tensors, where)
    shapes = shapes_of(reference.base)
    if HEAD not in shapes:
        shapes[HEAD] = shapes.get(EMBEDDING, ())
    rank, whole = config["r"], tuple(config.get("modules_to_save") or ())
    for name, tensor in tensors.items():
        plain = name.removeprefix(PREFIX)
        module = plain.partition(".lora_")[0]
        if module == plain:
            wanted = shapes.get(plain)
            if not plain.rpartition(".")[0].endswith(whole or ("-",)):
                raise CheckpointError(f"{name} is not in modules_to_save: PEFT would pass over it", where=where)
        else:
            partner = name.replace("lora_A", "lora_#").replace("lora_B", "lora_A").replace("lora_#", "lora_B")
            if partner not in tensors:
                raise CheckpointError(f"{partner} is missing", where=where)
            rows, columns = shapes.get(f"{module}.weight", (0, 0))
            wanted = (rank, columns) if ".lora_A." in name else (rows, rank)
        if tuple(tensor.shape) != wanted:
            raise CheckpointError(f"{name} is {tuple(tensor.shape)}, the base takes {wanted}", where=where)
    return config, tensors


def _write_adapter(reference: Reference, folder: Path, base_name: str | None) -> None:
    config, tensors = verified_adapter(reference)
    save_tensors(tensors, folder / ADAPTER_WEIGHTS)
    if base_name is not None:
        config["base_model_name_or_path"] = base_name
    write_atomic(folder / ADAPTER_CONFIG, json.dumps(config, indent=1, sort_keys=True) + "\n")
    save_tokenizer(folder, *load_tokenizer(reference.base))
    _, saved = read_adapter(folder)
    for name, tensor in tensors.items():
        if not torch.equal(saved[name], tensor):
            raise CheckpointError(f"{name} reads back differently", where=str(folder))


def _write_merged(reference: Reference, folder: Path, dtype: str) -> None:
    tied = bool(AutoConfig.from_pretrained(reference.base, trust_remote_code=False).tie_word_embeddings)
    config: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    if reference.adapter is not None:
        config, tensors = verified_adapter(reference)
        if tied and not torch.equal(
            tensors.get(PREFIX + HEAD, torch.ones(1)), tensors.get(PREFIX + EMBEDDING, torch.ones(1))
        ):
            raise CheckpointError("the adapter unties a tied base", where=str(reference.adapter))
    scale = _scale(config) if config else 1.0
    rewrite(reference.base, folder, fold(tensors, scale, DTYPES.get(dtype), tied=tied))
    copy_config(reference.base, folder, dtype=DTYPES.get(dtype))
    save_tokenizer(folder, *load_tokenizer(reference.base))
    prove_loadable(folder)


def _scale(config: Mapping[str, Any]) -> float:
    return float(config["lora_alpha"]) / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])


def fold(tensors: Mapping[str, Tensor], scale: float, dtype: torch.dtype | None, *, tied: bool) -> Change:
    """What a base tensor becomes: replaced, or with B·A added, in fp32, then rounded to `dtype` (None: its own)."""

    def change(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        if tied and name == HEAD:
            return
        value = tensors.get(PREFIX + name, tensor).float()
        low = PREFIX + name.removesuffix(".weight") + ".lora_{}.weight"
        if low.format("A") in tensors:
            value = value + scale * (tensors[low.format("B")].float() @ tensors[low.format("A")].float())
        yield name, value.to(dtype or tensor.dtype)

    return change
