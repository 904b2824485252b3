"""The text path of Mllama (Llama 3.2 Vision) as a plain Llama.

Without an image Mllama skips its cross-attention layers, so what is left is a Llama: the same logits
to the last bit. Its input embedding has eight rows more than its head (`<|image|>` and spares); a
text model has no use for them, and a resized Mllama could not be loaded again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlamaConfig

from slm.artifact import building, write_json, write_manifest
from slm.config.base import to_make
from slm.config.models import ImportJob
from slm.errors import CheckpointError, DataError
from slm.model.weights import Change, prove_loadable, read_config, rewrite
from slm.tokens.vocabulary import load_tokenizer, save_tokenizer, text_vocabulary, without_ids_from

log = logging.getLogger(__name__)

KEPT = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "hidden_act", "rms_norm_eps"),
    *("max_position_embeddings", "vocab_size", "initializer_range", "bos_token_id", "eos_token_id"),
)
_PREFIX = re.compile(r"^(model\.language_model\.|language_model\.model\.|language_model\.|model\.)")
_LAYER = re.compile(r"^layers\.(\d+)\.(.+)$")


def import_text_model(job: ImportJob) -> bool:
    """Make the `base` artifact of a job: a Llama with Mllama's self-attention layers.

    Returns:
        False when it was up to date already.

    Raises:
        CheckpointError: no Mllama there, weights are damaged, or the result could not be loaded.
        DataError: the tokenizer does not fit.
        MachineError: no space or no permission.
    """
    inputs = to_make(job)
    if inputs is None:
        return False
    source = Path(job.model)
    config, layers = llama_config(read_config(source), str(source))
    tokenizer, _ = load_tokenizer(source)
    dropped = len(tokenizer) - config.vocab_size
    tokenizer = without_ids_from(tokenizer, config.vocab_size)
    if len(tokenizer) > config.vocab_size:
        raise DataError(
            f"the tokenizer has {len(tokenizer)} tokens, the head {config.vocab_size} rows", where=str(source)
        )
    vocabulary = text_vocabulary(tokenizer)
    with building(job.out) as folder:
        rewrite(source, folder, text_path(layers, config.vocab_size, str(source)))
        dtype = read_config(source).get("dtype") or read_config(source).get("torch_dtype")
        values = {**config.to_diff_dict(), "architectures": ["LlamaForCausalLM"], "dtype": dtype}
        write_json(folder / "config.json", values)
        save_tokenizer(folder, tokenizer, vocabulary)
        prove_loadable(folder)
        about = {
            "model": job.model,
            "layers": {str(new): old for new, old in enumerate(layers)},
            "tokens_left_out": max(0, dropped),
            "vocabulary": vocabulary.to_json(),
        }
        write_manifest(folder, job.kind, config=job.identity(), inputs=inputs, about=about)
    log.info("%s: %d of Mllama's layers are text layers", job.out, len(layers))
    return True


def llama_config(values: dict[str, Any], where: str) -> tuple[LlamaConfig, list[int]]:
    """The Llama that Mllama is for text, and which of Mllama's layers its layers are.

    Raises:
        CheckpointError: not the configuration of an Mllama.
    """
    text = values.get("text_config", values)
    if text.get("model_type") not in ("mllama", "mllama_text_model") or "cross_attention_layers" not in text:
        raise CheckpointError(
            f"not an Mllama: model_type is {values.get('model_type')!r}",
            where=f"{where}/config.json",
            mend="Llama- and Qwen-like text models need no import: give them to slm model expand",
        )
    crossed = set(text["cross_attention_layers"])
    layers = [i for i in range(text["num_hidden_layers"]) if i not in crossed]
    rope = text.get("rope_parameters") or {
        "rope_theta": text.get("rope_theta", 500_000.0),
        **(text.get("rope_scaling") or {"rope_type": "default"}),
    }
    kept = {key: text[key] for key in KEPT if key in text}
    return LlamaConfig(
        **kept, num_hidden_layers=len(layers), rope_parameters=rope, tie_word_embeddings=False, pad_token_id=None
    ), layers


def text_path(layers: list[int], rows: int, where: str) -> Change:
    """Which of Mllama's tensors the Llama has, and under which names.

    Raises:
        CheckpointError: (when called) a layer with self-attention that the configuration does not know.
    """
    place = {old: new for new, old in enumerate(layers)}

    def change(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        if name.startswith(("vision_model", "model.vision_model", "multi_modal", "model.multi_modal")):
            return
        if name.endswith("lm_head.weight"):
            yield "lm_head.weight", tensor
            return
        inner = _PREFIX.sub("", name)
        layer = _LAYER.match(inner)
        if layer is None:
            yield f"model.{inner}", tensor[:rows].clone() if inner == "embed_tokens.weight" else tensor
        elif int(layer[1]) in place:
            yield f"model.layers.{place[int(layer[1])]}.{layer[2]}", tensor
        elif layer[2].startswith("self_attn."):
            raise CheckpointError(f"{name} is not of a text layer that config.json names", where=where)

    return change
