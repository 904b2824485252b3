"""From a stage configuration to a DeepSpeed engine: model under ZeRO, adapter, optimizer."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slm.config.stage import Every, StageConfig
from slm.engine.deepspeed_config import joined
from slm.engine.distributed import Place, rank_seed
from slm.engine.handover import hand_over_exactly
from slm.engine.operators import import_muon_uncompiled, prepare_operators
from slm.engine.table_optimizer import TableOptimizer, join_optimizer
from slm.engine.tables import split_over_ranks
from slm.errors import CheckpointError, ConfigError, MachineError
from slm.model import attention
from slm.model.load import load_base, require_same_base
from slm.model.lora import attach, causal_lm, load_trainable, trainable, whole_modules
from slm.model.new_rows import split_vocabulary
from slm.model.reference import resolve
from slm.model.supervised import SupervisedLM
from slm.model.weights import shapes_of
from slm.tokens.vocabulary import load_tokenizer

log = logging.getLogger(__name__)


def gathered(parameters: list[nn.Parameter], *, write: bool = True) -> AbstractContextManager[Any]:
    """Parameters made whole for the block; with `write`, what rank 0 changed is partitioned again."""
    import deepspeed

    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return nullcontext()
    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if write else None)


def use_bf16(config: StageConfig, place: Place) -> bool:
    """`precision: auto` is fp32 on a CPU, bf16 on a GPU."""
    return config.precision == "bf16" or (config.precision == "auto" and place.device.type == "cuda")


def build_engine(config: StageConfig, place: Place) -> tuple[Any, dict[str, Any]]:
    """A DeepSpeed engine around `SupervisedLM`, and the DeepSpeed configuration it was built from.

    Raises:
        CheckpointError: base or previous adapter missing, damaged or of another shape.
        ConfigError: the DeepSpeed JSON clashes with the stage YAML.
        MachineError: NVMe offload without what it needs.
    """
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    bf16 = use_bf16(config, place)
    ds_config = joined(config, place.world_size, bf16)
    prepare_operators(ds_config, place)
    import_muon_uncompiled()
    torch.manual_seed(config.seed)
    attention.register()
    # Alive while the model is loaded: transformers then partitions it on the way in (a weak reference).
    keep = HfDeepSpeedConfig(ds_config) if ds_config["zero_optimization"].get("stage") == 3 else None
    lm = _language_model(config, torch.bfloat16 if bf16 else torch.float32, place)
    del keep
    tables = split_over_ranks(lm, place, gathered) if split_vocabulary_rows(config, ds_config) else []
    model = SupervisedLM(lm, config.model.head_chunk)
    # Fused: one pass over a partition, without the copies of it that torch's own choice on a GPU makes.
    optimizer = torch.optim.AdamW(
        parameter_groups(lm, config), lr=config.optim.lr, betas=config.optim.betas, eps=config.optim.eps, fused=True
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config)
    if bf16 and config.model.previous is not None:
        previous = resolve(config.model.previous).adapter
        assert previous is not None  # `_language_model` has continued it
        hand_over_exactly(engine, lm, tables, previous)
    if tables:
        join_optimizer(engine, TableOptimizer(tables, config.optim))
    # Until here all ranks draw the same numbers, for the same new weights; from here each its own, for dropout.
    torch.manual_seed(rank_seed(config.seed, 0, place.rank))
    return engine, ds_config


def _language_model(config: StageConfig, dtype: torch.dtype, place: Place) -> nn.Module:
    reference = resolve(config.model.base)
    if reference.adapter is not None:
        raise CheckpointError(
            "model.base is an adapter", where=config.model.base, mend="give its base, and the adapter as model.previous"
        )
    lm = load_base(reference.base, dtype=dtype)
    _set_attention(lm, place.device, dtype)
    lm.config.use_cache = False
    if config.model.train == "lora":
        whole = whole_modules(lm, config.model.also_train)
        lm = attach(lm, config.model.lora, vocabulary=config.model.vocabulary != "frozen", whole=whole)
        if config.model.previous is not None:
            previous = resolve(config.model.previous)
            if previous.adapter is None:
                raise CheckpointError("the previous step has no adapter to continue", where=config.model.previous)
            require_same_base(previous, reference)
            load_trainable(lm, previous.adapter, config.model.lora, gathered)
        if config.model.vocabulary == "new_rows":
            split_vocabulary(lm, _first_new_row(reference.base), gathered)
    else:
        _require_exportable(lm, reference.base)
        lm.requires_grad_(True)
    _checkpoint_activations(lm, config)
    lm.train()
    count = sum(getattr(parameter, "ds_numel", parameter.numel()) for _, parameter in trainable(lm))
    log.info("%s: %s trainable parameters", config.stage, f"{count:,}")
    return lm


def _set_attention(lm: Any, device: torch.device, dtype: torch.dtype) -> None:
    """
    Raises:
        MachineError: flash_attn is installed and can't be used.
    """
    backend = attention.training_backend(lm, device, dtype)
    try:
        lm.set_attn_implementation(backend)
    except (ImportError, ValueError) as error:
        raise MachineError(
            f"attention {backend} can't be used: {error}", mend="update flash_attn, or uninstall it"
        ) from error
    log.info("attention: %s", backend)


def _require_exportable(lm: nn.Module, base: Path) -> None:
    """A model that trains whole is written as the base's files are: known before the training, not after it.

    Raises:
        CheckpointError: a weight has another name in the base's files than in the model.
    """
    stored = shapes_of(base)
    other = next((name for name, _ in lm.named_parameters() if name not in stored), None)
    if other is not None:
        raise CheckpointError(
            f"{other} is in no file of the base under this name",
            where=str(base),
            mend="load it by transformers and save it anew by save_pretrained",
        )


def _first_new_row(base: Path) -> int:
    """Id of the first unit.

    Raises:
        CheckpointError: the base has no units.
    """
    _, vocabulary = load_tokenizer(base)
    if vocabulary.first_unit is None:
        raise CheckpointError(
            "model.vocabulary: new_rows needs a base with unit rows, and this one has none", where=str(base)
        )
    return vocabulary.first_unit


def split_vocabulary_rows(config: StageConfig, ds_config: dict[str, Any]) -> bool:
    """Whether embeddings and head are split by rows over the ranks.

    Raises:
        ConfigError: that was asked for, and so was the offload of optimizer states.
    """
    wanted = config.model.vocabulary_parallel
    offloaded = "offload_optimizer" in ds_config["zero_optimization"]
    if wanted is True and offloaded:
        raise ConfigError(
            f"model.vocabulary_parallel and offload_optimizer of {config.zero}: tables are not offloaded",
            mend="leave one of the two out",
        )
    whole = config.model.train == "full" or config.model.vocabulary == "full"
    return wanted is True or (wanted == "auto" and whole and not offloaded)


def _checkpoint_activations(lm: nn.Module, config: StageConfig) -> None:
    wanted = config.model.activation_checkpointing
    if wanted == "none":
        return
    inner = causal_lm(lm)
    inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if isinstance(wanted, Every):
        for i, layer in enumerate(inner.model.layers):
            layer.gradient_checkpointing = i % wanted.every == 0


def parameter_groups(lm: nn.Module, config: StageConfig) -> list[dict[str, Any]]:
    """Optimizer groups: matrices, vectors (norms, biases: no decay), vocabulary (own rate, no decay)."""
    groups: dict[str, list[nn.Parameter]] = {"matrix": [], "vector": [], "vocabulary": []}
    for name, parameter in trainable(lm):
        dims = len(getattr(parameter, "ds_shape", parameter.shape))
        is_vocabulary = "embed_tokens" in name or "lm_head" in name
        groups["vocabulary" if is_vocabulary else "matrix" if dims > 1 else "vector"].append(parameter)
    rates = {"vocabulary": config.optim.vocabulary_lr or config.optim.lr}
    return [
        {
            "name": name,
            "params": parameters,
            "lr": rates.get(name, config.optim.lr),
            "peak_lr": rates.get(name, config.optim.lr),
            "weight_decay": config.optim.weight_decay if name == "matrix" else 0.0,
        }
        for name, parameters in groups.items()
        if parameters
    ]
