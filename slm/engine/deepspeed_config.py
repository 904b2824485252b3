"""Join the stage configuration with the DeepSpeed JSON.

The stage YAML owns batch, optimizer, schedule, precision and clipping; the JSON owns ZeRO stage,
offload and communication. The same setting in both is an error that names both places.
"""

from __future__ import annotations

from typing import Any

from slm.config.stage import StageConfig
from slm.config.zero import read_zero_json, with_places
from slm.errors import ConfigError


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
    """The complete DeepSpeed configuration of this run.

    Raises:
        ConfigError: rows that can't be shared, see `accumulation`, or ZeRO-1 with bf16.
    """
    values = with_places(read_zero_json(config.zero), config.zero)
    if bf16 and values["zero_optimization"].get("stage") == 1:
        raise ConfigError(
            "ZeRO-1 in bf16 keeps its fp32 weights where no checkpoint of this program finds them",
            where=config.zero,
            mend="stage 2 (ds_configs/zero/zero2.json) needs no more than it, or precision: fp32",
        )
    # Gradients of ranks are summed in fp32 as well, unless the JSON, which owns communication, says otherwise.
    own = {"communication_data_type": "fp32"} if bf16 else {}
    return {
        **own,
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
