"""Shapes of a model's weights from `config.json` and the heads of its safetensors files, and which of them train."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm.artifact import read_json
from slm.config.stage import ModelConfig
from slm.errors import CheckpointError

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
NEW_EMBEDDING, NEW_HEAD = "model.embed_tokens.new", "lm_head.new"
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


@dataclass(frozen=True)
class Weight:
    """One parameter: its name without PEFT's prefix, its shape, and whether it trains."""

    name: str
    shape: tuple[int, ...]
    trains: bool

    @property
    def count(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def layer(self) -> int | None:
        """The decoder layer it belongs to; None for embeddings, head and last norm."""
        found = _LAYER.search(self.name)
        return int(found[1]) if found else None


@dataclass(frozen=True)
class ModelShape:
    """The sizes that arithmetic needs, as `config.json` names them."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    key_value_heads: int
    head_width: int
    rows: int
    tied: bool
    bias: bool = False
    head_norms: bool = False

    @classmethod
    def from_config(cls, values: dict[str, Any], where: str = "") -> ModelShape:
        """From the mapping of a Llama- or Qwen-like `config.json`.

        Raises:
            CheckpointError: a size is missing: another kind of model.
        """
        try:
            heads = values["num_attention_heads"]
            kind = values.get("model_type")
            return cls(
                layers=values["num_hidden_layers"],
                width=values["hidden_size"],
                feed_forward=values["intermediate_size"],
                heads=heads,
                key_value_heads=values.get("num_key_value_heads") or heads,
                head_width=values.get("head_dim") or values["hidden_size"] // heads,
                rows=values["vocab_size"],
                tied=bool(values.get("tie_word_embeddings", False)),
                bias=kind == "qwen2" or bool(values.get("attention_bias")),
                head_norms=kind == "qwen3",
            )
        except KeyError as error:
            raise CheckpointError(f"config.json has no {error}: not a Llama- or Qwen-like model", where=where) from None


def read_shape(base: str | Path) -> ModelShape:
    """The shape of the model in a folder (or in its `model/`).

    Raises:
        CheckpointError: no readable config.json there.
    """
    path = _model_folder(base) / "config.json"
    try:
        return ModelShape.from_config(json.loads(path.read_text()), str(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"no model here: {getattr(error, 'strerror', None) or error}",
            where=str(path),
            mend="give a folder with at least a config.json: model.base=FOLDER",
        ) from None


def _model_folder(base: str | Path) -> Path:
    folder = Path(base)
    return folder / "model" if (folder / "model" / "config.json").is_file() else folder


def base_weights(base: str | Path, shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the base's parameters: from its files, or from the sizes where only config.json is there."""
    found: dict[str, tuple[int, ...]] = {}
    for file in sorted(_model_folder(base).glob("*.safetensors")):
        found.update(_head_of(file))
    if shape.tied:
        found.pop(HEAD, None)
    return found or expected_weights(shape)


def _head_of(file: Path) -> dict[str, tuple[int, ...]]:
    """A safetensors file starts with the length of a JSON object (8 bytes, little-endian), then that object."""
    try:
        with open(file, "rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            entries = json.loads(handle.read(length))
        return {name: tuple(entry["shape"]) for name, entry in entries.items() if name != "__metadata__"}
    except (OSError, ValueError, struct.error, KeyError) as error:
        raise CheckpointError(f"not a safetensors file: {error}", where=str(file)) from None


def expected_weights(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """The parameters that transformers makes for such sizes."""
    d, ff, h = shape.width, shape.feed_forward, shape.head_width
    q, kv = shape.heads * h, shape.key_value_heads * h
    found: dict[str, tuple[int, ...]] = {EMBEDDING: (shape.rows, d)}
    for i in range(shape.layers):
        at = f"model.layers.{i}."
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            found[f"{at}self_attn.{name}_proj.weight"] = (rows, d)
            if shape.bias:
                found[f"{at}self_attn.{name}_proj.bias"] = (rows,)
        found[f"{at}self_attn.o_proj.weight"] = (d, q)
        if shape.head_norms:
            found.update({f"{at}self_attn.{name}_norm.weight": (h,) for name in "qk"})
        found.update({f"{at}mlp.{name}_proj.weight": (ff, d) for name in ("gate", "up")})
        found[f"{at}mlp.down_proj.weight"] = (d, ff)
        found.update({f"{at}{name}_layernorm.weight": (d,) for name in ("input", "post_attention")})
    found["model.norm.weight"] = (d,)
    if not shape.tied:
        found[HEAD] = (shape.rows, d)
    return found


def stage_weights(model: ModelConfig) -> tuple[ModelShape, list[Weight]]:
    """The shape of a stage's base, and all parameters of the stage.

    Raises:
        CheckpointError: no readable config.json there, or another kind of model.
    """
    shape = read_shape(model.base)
    weights = training_weights(base_weights(model.base, shape), model)
    first = _first_unit(model.base)
    if model.train == "lora" and model.vocabulary == "new_rows" and first is not None:
        tables = [weight for weight in weights if weight.name in (EMBEDDING, HEAD)]
        weights += [
            Weight(f"{w.name.removesuffix('weight')}new", (w.shape[0] - first, w.shape[1]), True) for w in tables
        ]
    return shape, weights


def _first_unit(base: str | Path) -> int | None:
    path = _model_folder(base) / "vocabulary.json"
    return read_json(path)["first_unit"] if path.is_file() else None


def training_weights(base: dict[str, tuple[int, ...]], model: ModelConfig) -> list[Weight]:
    """The base's weights and the adapter's, and which of them train under a stage's `model` section."""
    if model.train == "full":
        return [Weight(name, shape, True) for name, shape in base.items()]
    found = []
    for name, shape in base.items():
        module = name.rpartition(".")[0]
        whole = any(re.fullmatch(pattern, module) for pattern in model.also_train)
        is_table = name in (EMBEDDING, HEAD)
        found.append(Weight(name, shape, whole or (is_table and model.vocabulary == "full")))
        takes_lora = name.endswith(".weight") and len(shape) == 2 and not whole and not is_table
        if takes_lora and _targeted(module, model.lora.targets):
            rows, columns = shape
            found.append(Weight(f"{module}.lora_A.weight", (model.lora.rank, columns), True))
            found.append(Weight(f"{module}.lora_B.weight", (rows, model.lora.rank), True))
    return found


def _targeted(module: str, targets: str | Sequence[str]) -> bool:
    if isinstance(targets, str):
        return targets == "all-linear" or re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)
