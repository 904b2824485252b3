"""Run a mergekit recipe whose models are steps, adapters or Hugging Face folders, named by label."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open

from slm.artifact import building, write_manifest
from slm.config.base import to_make
from slm.config.models import MergeJob
from slm.errors import CheckpointError, ConfigError, MachineError, from_os_error
from slm.merging.card import model_card
from slm.model.adapter import check_tensors, writing_weights
from slm.model.load import load_model
from slm.model.reference import resolve
from slm.tokens.vocabulary import load_tokenizer, save_tokenizer


def parse_recipe(text: str, labels: set[str]) -> dict[str, Any]:
    """The recipe as a mapping.

    Raises:
        ConfigError: no YAML mapping of that form, or it names a model that has no label.
    """
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"merge recipe is not valid YAML: {error}") from None
    if not isinstance(recipe, dict) or "merge_method" not in recipe:
        raise ConfigError("merge recipe: expected a mapping with merge_method")
    models = recipe.get("models")
    if (
        not isinstance(models, list)
        or not models
        or not all(isinstance(entry, dict) and "model" in entry for entry in models)
    ):
        raise ConfigError(
            "merge recipe: expected `models:`, a list of {model: LABEL, parameters: {…}} (slices are not read)"
        )
    if unknown := used_labels(recipe) - labels:
        raise ConfigError(
            f"merge recipe: model {sorted(unknown)[0]!r} is not given (given: {', '.join(sorted(labels)) or 'none'})",
            mend="name each model of the recipe: label=STEP",
        )
    return recipe


def used_labels(recipe: dict[str, Any]) -> set[str]:
    """The model labels a recipe refers to."""
    found = {str(entry["model"]) for entry in recipe["models"]}
    return found | ({str(recipe["base_model"])} if "base_model" in recipe else set())


def merge(job: MergeJob) -> bool:
    """Make the `merged` artifact of a job.

    Returns:
        False when it was up to date already.

    Raises:
        ConfigError: a recipe mergekit refuses, or a model without a label.
        CheckpointError: models that don't fit together or are damaged, or a result with non-finite numbers.
        MachineError: mergekit is not installed, no space, or no permission.
    """
    recipe = parse_recipe(job.recipe, set(job.models))
    inputs = to_make(job)
    if inputs is None:
        return False
    labels = sorted(used_labels(recipe))
    _require_one_vocabulary({label: job.models[label] for label in labels})
    with building(job.out) as folder, tempfile.TemporaryDirectory(dir=folder.parent, prefix=".merge-") as scratch:
        places = {label: _whole_model(job.models[label], Path(scratch).resolve() / label) for label in labels}
        _run_mergekit(_with_places(recipe, places), folder / "model", job.seed)
        first = resolve(job.models[labels[0]])
        save_tokenizer(folder / "model", *load_tokenizer(first.base))
        _check_result(folder / "model")
        (folder / "model" / "README.md").write_text(model_card(recipe, inputs))
        about = {"method": recipe["merge_method"], "models": {label: job.models[label] for label in labels}}
        write_manifest(folder, job.kind, config=job.identity(), inputs=inputs, about=about)
    return True


def _require_one_vocabulary(models: dict[str, str]) -> None:
    found = {label: load_tokenizer(resolve(ref).base)[1].fingerprint for label, ref in models.items()}
    first_label, first = next(iter(found.items()))
    for label, fingerprint in found.items():
        if fingerprint != first:
            raise CheckpointError(
                f"{label} and {first_label} have different vocabularies",
                where=models[label],
                mend="merge models of one base",
            )


def _whole_model(ref: str, folder: Path) -> Path:
    """The model as a plain fp32 folder: an adapter is folded into its base, a model is used as it lies."""
    reference = resolve(ref)
    if reference.adapter is None:
        return reference.base.resolve()
    loaded = load_model(ref, dtype=torch.float32)
    with writing_weights(folder):
        loaded.model.save_pretrained(folder)
    return folder


def _with_places(recipe: dict[str, Any], places: dict[str, Path]) -> dict[str, Any]:
    """Labels replaced by absolute folders: a relative name would be taken for a hub id."""
    replaced = dict(recipe)
    if "base_model" in recipe:
        replaced["base_model"] = str(places[str(recipe["base_model"])])
    replaced["models"] = [{**entry, "model": str(places[str(entry["model"])])} for entry in recipe["models"]]
    return replaced


def _run_mergekit(recipe: dict[str, Any], folder: Path, seed: int) -> None:
    try:
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions
    except ImportError:
        raise MachineError("mergekit is not installed", mend="pip install 'slm[merge]'") from None
    try:
        configuration = MergeConfiguration.model_validate(recipe)
    except ValueError as error:
        raise ConfigError(f"mergekit refuses the recipe: {error}") from error
    options = MergeOptions(random_seed=seed, copy_tokenizer=False, write_model_card=False, quiet=True, cuda=False)
    try:
        run_merge(configuration, str(folder), options)
    except OSError as error:
        raise from_os_error(error, f"merging into {folder}") from error
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "I/O error" in told:  # how safetensors tells of a disk that is full
            raise MachineError(
                f"weights can't be written: {told}", where=str(folder), mend="free some space and run it again"
            ) from error
        raise CheckpointError(
            f"mergekit can't merge these models: {told}",
            where=", ".join(str(entry["model"]) for entry in recipe["models"]),
            mend="the models need the same layers and shapes; check that their files are whole",
        ) from error


def _check_result(folder: Path) -> None:
    """No empty or non-finite tensor leaves this room."""
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as tensors:
            check_tensors({name: tensors.get_tensor(name) for name in tensors.keys()}, str(shard))  # noqa: SIM118
