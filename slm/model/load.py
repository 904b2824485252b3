"""Load a model from whatever names one: a step, an adapter, or a Hugging Face folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from slm.artifact import find_manifest
from slm.config.base import fingerprint_of_weights
from slm.errors import CheckpointError
from slm.model.lora import ADAPTER_CONFIG
from slm.tokens.vocabulary import Vocabulary, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MODEL_CONFIG = "config.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """Where a model's parts lie.

    Attributes:
        folder: what was asked for.
        base: Hugging Face folder with config, weights and tokenizer.
        adapter: PEFT folder on top of it, or None.
    """

    folder: Path
    base: Path
    adapter: Path | None

    @property
    def fingerprint(self) -> str:
        """The artifact's fingerprint, or a hash of the configuration and weights that were found."""
        manifest = find_manifest(self.folder)
        if manifest is not None:
            return manifest.fingerprint
        return fingerprint_of_weights(*(folder for folder in (self.base, self.adapter) if folder is not None))


@dataclass(frozen=True)
class Loaded:
    """A model ready to generate, with its tokenizer and vocabulary."""

    model: Any
    tokenizer: PreTrainedTokenizerFast
    vocabulary: Vocabulary
    fingerprint: str


def resolve(ref: str | Path) -> Reference:
    """Find base and adapter behind a reference.

    Raises:
        CheckpointError: nothing there that is a model.
    """
    folder = Path(ref)
    for place in (folder / "adapter", folder):
        if (place / ADAPTER_CONFIG).is_file():
            named = json.loads((place / ADAPTER_CONFIG).read_text())["base_model_name_or_path"]
            return Reference(folder, _find_base(named, place), place)
    for place in (folder / "model", folder):
        if (place / MODEL_CONFIG).is_file():
            return Reference(folder, place, None)
    refuse_pickles(folder)
    begun = sorted(folder.glob("checkpoints/step_*"))
    raise CheckpointError(
        "no model here: neither adapter/, model/ nor config.json",
        where=str(folder),
        mend=f"the stage has not ended; its newest checkpoint is {begun[-1]}"
        if begun
        else "give a finished step, an adapter, or a Hugging Face folder",
    )


def refuse_pickles(folder: str | Path) -> None:
    """Say why a folder whose only weights are pickles is not loaded.

    Raises:
        CheckpointError: names one of them.
    """
    folder = Path(folder)
    found = sorted(path.name for kind in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{kind}"))
    if found and not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"the weights are pickles ({found[0]}): loading one can run any code, so none is loaded",
            where=str(folder),
            mend="convert them to safetensors where they come from",
        )


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


def _find_base(named: str, adapter: Path) -> Path:
    """The base an adapter names: as given, or relative to the adapter (a run folder that was moved)."""
    for candidate in (Path(named), adapter / named, adapter.parent.parent / Path(named).name):
        if (candidate / MODEL_CONFIG).is_file():
            return candidate
        if (candidate / "model" / MODEL_CONFIG).is_file():
            return candidate / "model"
    raise CheckpointError(f"the adapter's base model is not there: {named}", where=str(adapter / ADAPTER_CONFIG))


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
    try:
        wrapped = PeftModel.from_pretrained(model, str(adapter), autocast_adapter_dtype=False)
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(
            f"the adapter does not fit its base: {str(error).splitlines()[0]}", where=str(adapter)
        ) from error
    return merged(wrapped, lora_scale)


def merged(wrapped: PeftModel, lora_scale: float = 1.0) -> Any:
    """The model inside a PEFT wrapper with its adapters added to the weights, `lora_scale` times as strong."""
    for module in wrapped.modules():
        if isinstance(module, LoraLayer):
            module.set_scale("default", lora_scale)
    return cast(Any, wrapped).merge_and_unload()
