"""The DeepSpeed JSON (`ds_configs/zero/*.json`): ZeRO stage, offload, communication, and nothing else.

DeepSpeed passes over top-level keys that it does not know, so a slip of the pen would change a run in
silence: every key is checked here. Known keys are those of DeepSpeed 0.19.8; a test compares them.
"""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Any

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
    "torch_autocast": "precision",
    "activation_checkpointing": "model.activation_checkpointing",
}
OWNED_BY_ENGINE = {
    "data_types": "gradients always accumulate in fp32",
    "zero_allow_untested_optimizer": "the optimizer is torch's AdamW",
    "zero_force_ds_cpu_optimizer": "the optimizer is torch's AdamW",
    "steps_per_print": "metrics.jsonl has every step",
}
TOP_LEVEL = {
    *("zero_optimization", "communication_data_type", "seq_parallel_communication_data_type", "prescale_gradients"),
    *("gradient_predivide_factor", "comms_logger", "flops_profiler", "wall_clock_breakdown", "memory_breakdown"),
    *("dump_state", "aio", "disable_allgather", "checkpoint"),
}
REMOVED = {
    *("nebula", "compression_training", "amp", "quantize_training", "sparse_gradients", "eigenvalue", "elasticity"),
    *("sparse_attention", "graph_harvesting", "curriculum_learning", "progressive_layer_drop"),
    *("mics_shard_size", "mics_hierarchical_params_gather", "zeropp_loco_param"),
}
ZERO = {
    *("stage", "contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "use_multi_rank_bucket_allreduce"),
    *("allgather_partitions", "allgather_bucket_size", "overlap_comm", "load_from_fp32_weights", "compute_grad_norm"),
    *("elastic_checkpoint", "offload_param", "offload_optimizer", "zenflow", "sub_group_size", "leaf_module"),
    *("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "stage3_model_persistence_threshold"),
    *("stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_gather_16bit_weights_on_model_save"),
    *("stage3_module_granularity_threshold", "stage3_use_all_reduce_for_fetch_params", "stage3_allgather_sequential"),
    *("ignore_unused_parameters", "legacy_stage1", "round_robin_gradients", "parameter_alignment"),
    *("zero_hpz_partition_size", "zero_quantized_weights", "zero_quantized_nontrainable_weights"),
    *("zero_quantized_gradients", "memory_efficient_linear", "pipeline_loading_checkpoint", "override_module_apply"),
    *("log_trace_cache_warnings", "enable_sanity_checks", "save_muon_momentum_buffer_in_memory"),
}
OFFLOAD = {
    "offload_param": {"device", "nvme_path", "buffer_count", "buffer_size", "max_in_cpu", "pin_memory"},
    "offload_optimizer": {
        *("device", "nvme_path", "buffer_count", "pin_memory", "pipeline_read", "pipeline_write", "fast_init"),
        *("ratio", "super_offload", "cpuadam_cores_perc"),
    },
}


def read_zero_json(path: str) -> dict[str, Any]:
    """The DeepSpeed JSON, every key of it known and its own to set.

    Raises:
        ConfigError: missing, no JSON object, or each key that is unknown, was removed from DeepSpeed,
            or belongs to the stage YAML: one line each.
    """
    file = Path(path)
    if not file.is_file():
        near = ", ".join(sorted(str(other) for other in file.parent.glob("*.json")))
        raise ConfigError(f"{path}: file not found" + (f"; there are: {near}" if near else ""))
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(values, dict) or not isinstance(values.get("zero_optimization"), dict):
        raise ConfigError(f"{path}: expected an object with zero_optimization")
    faults = [*_faults(values, "", TOP_LEVEL), *_faults(values["zero_optimization"], "zero_optimization.", ZERO)]
    for section, known in OFFLOAD.items():
        inner = values["zero_optimization"].get(section)
        if isinstance(inner, dict):
            faults += _faults(inner, f"zero_optimization.{section}.", known)
    if values["zero_optimization"].get("stage") not in (1, 2, 3):
        faults.append("zero_optimization.stage: has to be 1, 2 or 3")
    if values["zero_optimization"].get("stage") != 3 and offload_device(values, "offload_param") != "none":
        faults.append("zero_optimization.offload_param: needs stage 3")
    if faults:
        raise ConfigError("\n".join(f"{path}: {fault}" for fault in faults), mend="change or remove it in the JSON")
    return values


def _faults(values: dict[str, Any], prefix: str, known: set[str]) -> list[str]:
    found = []
    for key in values:
        if not prefix and key in OWNED_BY_STAGE:
            found.append(f"{key}: is set by {OWNED_BY_STAGE[key]} of the stage YAML")
        elif not prefix and key in OWNED_BY_ENGINE:
            found.append(f"{key}: is not for setting: {OWNED_BY_ENGINE[key]}")
        elif key in REMOVED:
            found.append(f"{prefix}{key}: was removed from DeepSpeed; it would do nothing")
        elif key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.6)
            found.append(f"{prefix}{key}: unknown key" + (f"; did you mean '{near[0]}'?" if near else ""))
    return found


def offload_device(values: dict[str, Any], section: str) -> str:
    """Where `offload_param` or `offload_optimizer` puts things: none, cpu or nvme."""
    return str((values["zero_optimization"].get(section) or {}).get("device", "none"))


def with_places(values: dict[str, Any], path: str) -> dict[str, Any]:
    """The same with environment variables in `nvme_path` replaced: a local disk has its own name on each host.

    Raises:
        ConfigError: a variable is not set, or a path is missing.
    """
    zero = dict(values["zero_optimization"])
    for section in OFFLOAD:
        if offload_device(values, section) != "nvme":
            continue
        given = str(zero[section].get("nvme_path") or "")
        place = os.path.expandvars(given)
        if not place or "$" in place:
            raise ConfigError(
                f"{path}: zero_optimization.{section}.nvme_path: {given or 'missing'}",
                mend=f"export {given.lstrip('$')}=/a/folder/on/a/local/disk" if "$" in given else "name a local folder",
            )
        zero[section] = {**zero[section], "nvme_path": place}
    return {**values, "zero_optimization": zero}
