"""LoRA with embeddings and head trained in place, saved as a standard PEFT adapter.

The vocabulary matrices are not wrapped: they train where they are, and are written under the names
that PEFT's `modules_to_save` reads. So there is no frozen duplicate, and a reload by plain PEFT
gives the same logits to the last bit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from slm.artifact import write_atomic
from slm.config.stage import LoraConfig
from slm.errors import CheckpointError, ConfigError
from slm.model.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, check_tensors, read_adapter, save_tensors

VOCABULARY_MODULES = ["embed_tokens", "lm_head"]
NEW_ROWS = "new"

Gathered = Callable[[list[nn.Parameter]], AbstractContextManager[Any]]
"""Context in which the parameters are whole on every rank, and written back when it ends."""


def causal_lm(lm: nn.Module) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself."""
    return lm.get_base_model() if isinstance(lm, PeftModel) else lm


def is_tied(lm: nn.Module) -> bool:
    """Whether head and embeddings are one matrix."""
    return bool(causal_lm(lm).config.tie_word_embeddings)


def whole_modules(lm: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Names of the modules with weights of their own that the regular expressions match, in the model's order.

    Raises:
        ConfigError: an expression is malformed, matches nothing, or reaches for the vocabulary.
    """
    named = [name for name, module in lm.named_modules() if any(True for _ in module.parameters(recurse=False))]
    found: set[str] = set()
    for pattern in patterns:
        where = f"model.also_train: {pattern}"
        try:
            hits = {name for name in named if re.fullmatch(pattern, name)}
        except re.error as error:
            raise ConfigError(f"not a regular expression: {error}", where=where) from None
        if not hits:
            raise ConfigError("matches no module", where=where, mend=f"modules are named like {named[len(named) // 2]}")
        if tables := [name for name in hits if name.split(".")[-1] in VOCABULARY_MODULES]:
            raise ConfigError(f"matches {tables[0]}", where=where, mend="model.vocabulary says how the tables train")
        found |= hits
    return [name for name in named if name in found]


def attach(lm: nn.Module, config: LoraConfig, *, vocabulary: bool, whole: Sequence[str] = ()) -> PeftModel:
    """Freeze `lm`, add fresh adapters, and let embeddings and head train if `vocabulary`.

    Args:
        whole: modules that train in place and get no adapter: what PEFT does with its `modules_to_save`.

    Raises:
        CheckpointError: no layer matches `config.targets`.
    """
    peft_config = PeftLoraConfig(
        r=config.rank,
        lora_alpha=cast(int, config.alpha),  # PEFT says int and computes with any number
        lora_dropout=config.dropout,
        target_modules=config.targets,
        exclude_modules=list(whole) or None,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        # fp32 adapters in a bf16 model break ZeRO-3's flat partitions; the optimizer keeps the fp32 copy.
        model = get_peft_model(lm, peft_config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise CheckpointError(
            f"LoRA can't be attached: {error}", where=f"model.lora.targets: {config.targets}"
        ) from error
    if vocabulary:
        model.get_input_embeddings().weight.requires_grad_(True)
        model.get_output_embeddings().weight.requires_grad_(True)
    for name in whole:
        for parameter in causal_lm(model).get_submodule(name).parameters(recurse=False):
            parameter.requires_grad_(True)
    return model


def saved_name(parameter: str) -> str:
    """A parameter's name in the adapter file: without the adapter's own name (`default`); new rows as the whole."""
    for module in VOCABULARY_MODULES:
        if parameter.endswith(f"{module}.{NEW_ROWS}"):
            parameter = parameter.removesuffix(NEW_ROWS) + "weight"
    return parameter.replace(".default.", ".")


def trainable(lm: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that train, in the model's order.

    Raises:
        CheckpointError: there are none: the adapter was loaded frozen.
    """
    found = [(name, parameter) for name, parameter in lm.named_parameters() if parameter.requires_grad]
    if not found:
        raise CheckpointError(
            "no parameter is trainable", mend="an adapter that is continued must be loaded as trainable"
        )
    return iter(found)


def load_trainable(lm: PeftModel, folder: str | Path, config: LoraConfig, gathered: Gathered) -> None:
    """Continue an earlier stage's adapter: fill every trainable parameter from its file.

    Raises:
        CheckpointError: rank, targets or vocabulary differ, or a tensor is missing or has another shape.
    """
    saved_config, tensors = read_adapter(folder)
    if saved_config["r"] != config.rank:
        raise CheckpointError(
            f"the previous adapter has rank {saved_config['r']}, this stage asks for {config.rank}",
            where=str(folder),
            mend="keep model.lora.rank over the chain",
        )
    if saved_config["lora_alpha"] != config.alpha:
        raise CheckpointError(
            f"the previous adapter has alpha {saved_config['lora_alpha']:g}, this stage asks for {config.alpha:g}",
            where=str(folder),
            mend="keep model.lora.alpha over the chain; a discounted adapter is for use, not for training on",
        )
    expected = {saved_name(name): parameter for name, parameter in trainable(lm)}
    if is_tied(lm):
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("lm_head.weight")}
    if missing := sorted(set(expected) ^ set(tensors)):
        raise CheckpointError(
            f"the previous adapter and this stage train different parameters: {missing[0]} and {len(missing) - 1} more",
            where=str(folder),
            mend="keep model.lora.targets, model.also_train and model.vocabulary over the chain",
        )
    for name, parameter in expected.items():
        with gathered([parameter]):
            if parameter.shape != tensors[name].shape:
                raise CheckpointError(
                    f"{name} is {tuple(tensors[name].shape)} in the adapter, {tuple(parameter.shape)} here",
                    where=str(folder),
                )
            parameter.data.copy_(tensors[name])


def write_adapter(
    folder: str | Path, lm: PeftModel, tensors: Mapping[str, Tensor], base: str, beside: Collection[str] = ()
) -> None:
    """Write a PEFT adapter and read it back.

    Args:
        lm: the model whose adapter it is; only names and configuration are read.
        tensors: parameter name -> whole tensor, on the CPU.
        base: what the adapter's configuration names as its base model.
        beside: names of trained parameters that are no parameters of `lm` here.

    Raises:
        CheckpointError: a tensor is empty, not finite, missing or unexpected.
    """
    folder = Path(folder)
    named = {saved_name(name): tensor.contiguous() for name, tensor in tensors.items()}
    expected = {saved_name(name) for name, _ in trainable(lm)} | set(beside)
    if set(named) != expected:
        raise CheckpointError(
            f"tensors to save differ from what trains: {sorted(set(named) ^ expected)[:3]}", where=str(folder)
        )
    whole_vocabulary = any(name.endswith("embed_tokens.weight") for name in named)
    if whole_vocabulary and is_tied(lm):
        embedding = next(name for name in named if name.endswith("embed_tokens.weight"))
        named[embedding.replace("model.embed_tokens", "lm_head")] = named[embedding].clone()
    check_tensors(named, str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(named, folder / ADAPTER_WEIGHTS)
    config = lm.peft_config["default"].to_dict()
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    whole = [*(VOCABULARY_MODULES if whole_vocabulary else []), *(config["exclude_modules"] or [])]
    config |= {
        "base_model_name_or_path": base,
        "inference_mode": True,
        "modules_to_save": whole or None,
        "exclude_modules": None,
        "ensure_weight_tying": whole_vocabulary and is_tied(lm),
    }
    write_atomic(folder / ADAPTER_CONFIG, json.dumps(config, indent=1, sort_keys=True, default=str) + "\n")
    _, saved = read_adapter(folder)
    for name, tensor in named.items():
        if not torch.equal(saved[name], tensor):
            raise CheckpointError(f"{name} reads back differently", where=str(folder))
