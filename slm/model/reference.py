"""What a step, an adapter or a Hugging Face folder names: where its base and its adapter lie."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from slm.artifact import find_manifest
from slm.config.base import fingerprint_of_weights
from slm.errors import CheckpointError
from slm.model.adapter import ADAPTER_CONFIG

MODEL_CONFIG = "config.json"


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
    _refuse_checkpoints(folder)
    refuse_pickles(folder)
    begun = sorted(folder.glob("checkpoints/step_*"))
    raise CheckpointError(
        "no model here: neither adapter/, model/ nor config.json",
        where=str(folder),
        mend=f"the stage has not ended; its newest checkpoint is {begun[-1]}"
        if begun
        else "give a finished step, an adapter, or a Hugging Face folder",
    )


def _refuse_checkpoints(folder: Path) -> None:
    manifest = find_manifest(folder)
    if manifest is not None and manifest.kind == "checkpoint":
        raise CheckpointError(
            "a training checkpoint, and this command takes what a stage has ended with",
            where=str(folder),
            mend="give the finished step; `slm eval`, `slm generate` and `slm demo` take checkpoints too",
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


def _find_base(named: str, adapter: Path) -> Path:
    """The base an adapter names: as given, or relative to the adapter (a run folder that was moved)."""
    for candidate in (Path(named), adapter / named, adapter.parent.parent / Path(named).name):
        if (candidate / MODEL_CONFIG).is_file():
            return candidate
        if (candidate / "model" / MODEL_CONFIG).is_file():
            return candidate / "model"
    raise CheckpointError(f"the adapter's base model is not there: {named}", where=str(adapter / ADAPTER_CONFIG))
