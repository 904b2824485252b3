"""Join the stage configuration with the DeepSpeed JSON.

The stage YAML owns batch, optimizer, schedule, precision and clipping; the JSON owns ZeRO stage,
offload and communication. The same setting in both is an error that names both places.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from slm.config.stage import StageConfig
from slm.errors import ConfigError

OWNED_BY_STAGE = {
    "train_batch_size": "batch.rows",
    "train_micro_batch_size_per_gpu": "batch.micro_rows",
    "gradient_accumulation_steps": "batch.rows and batch.micro_rows",
    "gradient_clipping": "optim.clip",
    "optimizer": "optim",
    "scheduler": "schedule",
    "bf16": "precision",
    "fp16": "precision",
    "activation_checkpointing": "model.activation_checkpointing",
}


def read_zero_json(path: str) -> dict[str, Any]:
    """The DeepSpeed JSON.

    Raises:
        ConfigError: missing, no JSON object, or it sets what the stage YAML owns.
    """
    file = Path(path)
    if not file.is_file():
        near = ", ".join(sorted(str(other) for other in file.parent.glob("*.json")))
        raise ConfigError(f"{path}: file not found" + (f"; there are: {near}" if near else ""))
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(values, dict) or "zero_optimization" not in values:
        raise ConfigError(f"{path}: expected an object with zero_optimization")
    clashes = [
        f"{path}: {key}: is set by {OWNED_BY_STAGE[key]} of the stage YAML" for key in values if key in OWNED_BY_STAGE
    ]
    if clashes:
        raise ConfigError("\n".join(clashes), mend="remove it from the JSON")
    return values


def accumulation(config: StageConfig, world_size: int) -> int:
    """Micro-batches that each rank computes for one optimizer step.

    Raises:
        ConfigError: the rows of a step can't be shared equally.
    """
    per_pass = world_size * config.batch.micro_rows
    if config.batch.rows % per_pass:
        raise ConfigError(
            f"batch.rows: {config.batch.rows} rows can't be shared by {world_size} ranks x "
            f"{config.batch.micro_rows} micro_rows",
            mend=f"use a multiple of {per_pass}",
        )
    return config.batch.rows // per_pass


def joined(config: StageConfig, world_size: int, bf16: bool) -> dict[str, Any]:
    """The complete DeepSpeed configuration of this run."""
    values = read_zero_json(config.zero)
    return {
        **values,
        "train_micro_batch_size_per_gpu": config.batch.micro_rows,
        "gradient_accumulation_steps": accumulation(config, world_size),
        "gradient_clipping": config.optim.clip,
        "bf16": {"enabled": bf16},
        # bf16 accumulation loses small gradients; fp32 costs 2 bytes per trainable parameter and rank.
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
    }
