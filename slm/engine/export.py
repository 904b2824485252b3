"""What a finished stage hands over: an adapter or a model, gathered in fp32 and read back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from slm.artifact import hash_files
from slm.config.stage import StageConfig
from slm.engine.build import gathered
from slm.engine.distributed import LONG, Place, together
from slm.engine.tables import tables_of
from slm.errors import CheckpointError
from slm.model.adapter import read_adapter
from slm.model.lora import causal_lm, saved_name, trainable, write_adapter
from slm.model.new_rows import whole_matrices
from slm.model.reference import resolve
from slm.model.weights import copy_config, prove_loadable, rewrite
from slm.tokens.vocabulary import load_tokenizer, save_tokenizer


def gather_trained(engine: Any, place: Place) -> dict[str, Tensor]:
    """Name -> fp32 value of every trained parameter, on the CPU of rank 0; empty elsewhere. Collective.

    The fp32 copy of the optimizer is read: rounding to bf16 would lose a stage's small changes.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    values = {}
    for name, parameter in trainable(engine.module.lm):
        value = safe_get_full_fp32_param(parameter)
        if value is None:
            raise CheckpointError(f"{name} has no fp32 copy in the optimizer", where="export")
        if place.is_main:
            values[name] = value.detach().cpu().clone()
    tables = tables_of(engine)
    if tables is not None:
        values |= {name: value for name, value in tables.gathered().items() if place.is_main}
    return whole_matrices(engine.module.lm, values, gathered, keep=place.is_main)


def export(engine: Any, config: StageConfig, place: Place) -> dict[str, dict[str, Any]]:
    """Write `adapter/` or `model/` into the run folder. Collective.

    Returns:
        On rank 0 the manifest's entries of what was written; empty elsewhere.

    Raises:
        CheckpointError: a tensor that could not be loaded again, or a group of weights that never changed.
        MachineError: no space; nothing half-written is left.
    """
    values = gather_trained(engine, place)
    entries: dict[str, dict[str, Any]] = {}

    def write() -> None:
        if place.is_main:
            require_movement(values, config)
            entries.update(_write(engine, config, values))

    together(write, within=LONG)
    return entries


def _write(engine: Any, config: StageConfig, values: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    name = "adapter" if config.model.train == "lora" else "model"
    final = Path(config.out) / name
    scratch = final.with_name(f".{name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        if name == "adapter":
            base = str(resolve(config.model.base).base)
            write_adapter(scratch, engine.module.lm, values, base, beside=_table_names(engine))
        else:
            _write_model(scratch, engine, config, values)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(scratch, final)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return {f"{name}/{file}": entry for file, entry in hash_files(final).items()}


def require_movement(values: dict[str, Tensor], config: StageConfig) -> None:
    """Refuse a stage in which a whole group of weights never changed: something was frozen in silence.

    Raises:
        CheckpointError: names the group.
    """
    start = _start_values(config, {name: value.shape for name, value in values.items()})
    moved: dict[str, bool] = {}
    for name, value in values.items():
        before = start(name)
        if before is not None:
            group = (
                "vocabulary"
                if "embed_tokens" in name or "lm_head" in name
                else "adapter"
                if "lora_" in name
                else "body"
            )
            moved[group] = moved.get(group, False) or not torch.equal(before.float(), value.float())
    for group, changed in moved.items():
        if not changed:
            raise CheckpointError(f"no weight of the group '{group}' changed in the whole stage", where=config.out)


def _start_values(config: StageConfig, shapes: dict[str, torch.Size]) -> Callable[[str], Tensor | None]:
    """What each trained tensor was before the stage; None for fresh random ones (a new adapter's A)."""
    reference = resolve(config.model.base)
    previous = resolve(config.model.previous).adapter if config.model.previous else None
    adapter = read_adapter(previous)[1] if previous else {}
    places: dict[str, Path] = {}
    for shard in reference.base.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            places |= dict.fromkeys(file.keys(), shard)

    def value_of(parameter: str) -> Tensor | None:
        name = saved_name(parameter)
        if name in adapter:
            return adapter[name]
        if ".lora_B." in name:
            return torch.zeros(shapes[parameter])
        plain = name.removeprefix("base_model.model.")
        if plain not in places:
            return None
        with safe_open(places[plain], framework="pt") as file:
            return file.get_tensor(plain)

    return value_of


def _table_names(engine: Any) -> set[str]:
    tables = tables_of(engine)
    return {saved_name(table.name) for table in tables.tables} if tables is not None else set()


def _write_model(folder: Path, engine: Any, config: StageConfig, values: dict[str, Tensor]) -> None:
    """All weights trained: the base's files with every weight replaced, in fp32, one file after another.

    No second copy of the model is held: `values` is one already.
    """
    base = resolve(config.model.base).base
    expected = {name for name, _ in causal_lm(engine.module.lm).named_parameters()} | _table_names(engine)
    if set(values) != expected:
        raise CheckpointError(
            f"weights to save differ from the model's: {sorted(set(values) ^ expected)[:3]}", where=str(folder)
        )

    def trained(name: str, _: Tensor) -> Iterator[tuple[str, Tensor]]:
        if name in values:  # else a tied head, or a buffer that old checkpoints hold
            yield name, values[name]

    written = rewrite(base, folder, trained)
    if missing := values.keys() - written.keys():
        raise CheckpointError(f"{sorted(missing)[0]} is trained, and no file of the base has it", where=str(base))
    copy_config(base, folder, dtype=torch.float32)
    save_tokenizer(folder, *load_tokenizer(base))
    prove_loadable(folder)
