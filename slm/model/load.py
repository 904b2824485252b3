"""Load a model from whatever names one: a step, an adapter, or a Hugging Face folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from slm.artifact import find_manifest
from slm.errors import CheckpointError
from slm.model.reference import MODEL_CONFIG, Reference, refuse_pickles, resolve
from slm.tokens.vocabulary import Vocabulary, load_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A model ready to generate, with its tokenizer and vocabulary."""

    model: Any
    tokenizer: PreTrainedTokenizerFast
    vocabulary: Vocabulary
    fingerprint: str


def refuse_foreign_code(folder: str | Path) -> None:
    """Say why a model that only code of its own can compute is not loaded: transformers would ask, or run it.

    Raises:
        CheckpointError: `config.json` names such code (`auto_map`), and transformers has no class for its type.
    """
    try:
        config = json.loads((Path(folder) / MODEL_CONFIG).read_text())
    except (OSError, ValueError):
        return  # the loader says what is wrong with it
    code = config.get("auto_map") if isinstance(config, dict) else None
    if not code:
        return
    if config.get("model_type") not in CONFIG_MAPPING:
        named = next(iter(code.values())) if isinstance(code, dict) else code
        raise CheckpointError(
            f"the model needs code of its own ({named}, trust_remote_code): running it can do anything, so none is run",
            where=str(Path(folder) / MODEL_CONFIG),
            mend="use a model that transformers itself knows",
        )
    log.warning("%s: its own code (auto_map) is not run; transformers' %s is", folder, config["model_type"])


def load_base(folder: str | Path, *, dtype: torch.dtype = torch.float32, attention: str | None = None) -> Any:
    """A causal language model from a Hugging Face folder; ZeRO-3 partitions it when the caller has set that up.

    Raises:
        CheckpointError: damaged or missing weights, or weights of another shape.
    """
    transformers_logging.disable_progress_bar()
    refuse_pickles(folder)
    refuse_foreign_code(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        # With a pad id, transformers 5.23 indexes the empty, partitioned embedding and fails.
        config.pad_token_id = None
        model, info = cast(Any, AutoModelForCausalLM).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation=attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        # under ZeRO-3 torch's own loader speaks: a headline, then one line per tensor
        told = next((line.strip() for line in lines if "size mismatch" in line), lines[0])
        raise CheckpointError(
            f"model can't be loaded: {told}", where=str(folder), mend="make or download the folder again"
        ) from error
    _require_all_weights(info, folder)
    return model


def _require_all_weights(info: Mapping[str, Any], folder: str | Path) -> None:
    """transformers fills what it does not find, or can't use, at random and only warns."""
    for fault, key in (("missing", "missing_keys"), ("of another shape than config.json says", "mismatched_keys")):
        names = sorted(entry if isinstance(entry, str) else entry[0] for entry in info[key])
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                f"weights are {fault}: {names[0]}{more}", where=str(folder), mend="make or download the folder again"
            )


def require_same_base(previous: Reference, base: Reference) -> None:
    """Refuse to continue an adapter on a base that it was not trained on.

    The previous step's manifest says which base that was; without one, the base its adapter names
    now counts. Bases that are no artifacts (no manifest) can't be told apart and pass.

    Raises:
        CheckpointError: the bases have different fingerprints.
    """
    recorded = find_manifest(previous.folder)
    trained_on = recorded.inputs.get("base") if recorded is not None else None
    trained_on = trained_on or _fingerprint_of_base(previous.base)
    here = _fingerprint_of_base(base.base)
    if trained_on is not None and here is not None and trained_on != here:
        raise CheckpointError(
            f"the previous adapter was trained on another base: {trained_on[:12]}, this stage's is {here[:12]}",
            where=f"{previous.folder} and {base.folder}",
            mend="give the base of the previous step as model.base, or train that step again on this one",
        )


def _fingerprint_of_base(base: Path) -> str | None:
    manifest = find_manifest(base) or (find_manifest(base.parent) if base.name == "model" else None)
    return manifest.fingerprint if manifest is not None else None


def load_model(
    ref: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu", lora_scale: float = 1.0
) -> Loaded:
    """A model for inference; an adapter is folded into its base.

    Args:
        ref: step, adapter, or Hugging Face folder.
        lora_scale: factor on the adapter's alpha / rank (the paper's discount).

    Raises:
        CheckpointError: no model, its parts don't fit, or a scale for an adapter where there is none.
    """
    reference = resolve(ref)
    refuse_foreign_code(reference.base)
    if reference.adapter is None and lora_scale != 1.0:
        raise CheckpointError("a LoRA scale needs an adapter, and this is a whole model", where=str(ref))
    tokenizer, vocabulary = load_tokenizer(reference.base)
    model = load_base(reference.base, dtype=dtype, attention="sdpa")
    if reference.adapter is not None:
        model = fold(model, reference.adapter, lora_scale)
    return Loaded(model.to(device).eval(), tokenizer, vocabulary, reference.fingerprint)


def fold(model: Any, adapter: str | Path, lora_scale: float = 1.0) -> Any:
    """The model with the adapter's change added to its weights.

    Raises:
        CheckpointError: the adapter does not fit the model.
    """
    from peft import PeftModel

    try:
        wrapped = PeftModel.from_pretrained(model, str(adapter), autocast_adapter_dtype=False)
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(
            f"the adapter does not fit its base: {str(error).splitlines()[0]}", where=str(adapter)
        ) from error
    return merged(wrapped, lora_scale)


def merged(wrapped: PeftModel, lora_scale: float = 1.0) -> Any:
    """The model inside a PEFT wrapper with its adapters added to the weights, `lora_scale` times as strong."""
    from peft.tuners.lora import LoraLayer

    for module in wrapped.modules():
        if isinstance(module, LoraLayer):
            module.set_scale("default", lora_scale)
    return cast(Any, wrapped).merge_and_unload()
