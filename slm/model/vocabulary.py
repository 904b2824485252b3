"""Grow a vocabulary off-line: the base is saved with its unit rows, so nothing is resized under ZeRO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slm.artifact import building, write_manifest
from slm.config.base import to_make
from slm.config.models import ExpandJob
from slm.errors import CheckpointError, DataError
from slm.model.load import load_base, resolve
from slm.model.lora import check_tensors, writing_weights
from slm.tokens.vocabulary import load_tokenizer, save_tokenizer


def spread_rows(old_VD: Tensor, count: int, noise: float, generator: torch.Generator) -> Tensor:
    """New rows around the mean of the old ones, as far apart as the old ones are.

    transformers' own mean resizing spreads new rows by 1e-9 of the covariance: ten thousand
    near-identical vectors that training first has to tell apart.

    Args:
        old_VD: existing rows.
        count: new rows.
        noise: standard deviations per dimension.

    Returns:
        (count, D), in old_VD's dtype.
    """
    old = old_VD.float()
    mean_D, std_D = old.mean(0), old.std(0)
    fresh = torch.randn(count, old.shape[1], generator=generator)
    return (mean_D + noise * std_D * fresh).to(old_VD.dtype)


def grow(model: Any, rows: int, noise: float, seed: int) -> None:
    """Extend embeddings and head of `model` in place to `rows`; tied matrices stay tied.

    Raises:
        CheckpointError: the model already has more rows.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    old_rows = embedding.weight.shape[0]
    if rows < old_rows:
        raise CheckpointError(f"the model has {old_rows} rows already, more than the {rows} of the tokenizer")
    generator = torch.Generator().manual_seed(seed)
    tied = model.config.tie_word_embeddings
    grown = torch.cat([embedding.weight.data, spread_rows(embedding.weight.data, rows - old_rows, noise, generator)])
    embedding.weight = nn.Parameter(grown)
    embedding.num_embeddings = rows
    if tied:
        head.weight = embedding.weight
    else:
        fresh = spread_rows(head.weight.data, rows - old_rows, noise, generator)
        head.weight = nn.Parameter(torch.cat([head.weight.data, fresh]))
    head.out_features = rows
    model.config.vocab_size = rows


def expand(job: ExpandJob) -> bool:
    """Make the `base` artifact of a job.

    Returns:
        False when it was up to date already.

    Raises:
        DataError: the tokenizer has no unit tokens, or is not an extension of the model's.
        CheckpointError: the model can't be loaded, or the grown one can't be loaded again.
        MachineError: no space or no permission.
    """
    inputs = to_make(job)
    if inputs is None:
        return False
    reference = resolve(job.model)
    if reference.adapter is not None:
        raise CheckpointError("vocabulary can't be grown under an adapter", where=job.model, mend="give the base model")
    tokenizer, vocabulary = load_tokenizer(job.tokenizer)
    _, before = load_tokenizer(reference.base)
    if vocabulary.units is None:
        raise DataError("the tokenizer has no unit tokens", where=job.tokenizer)
    if before.text_sha256 != vocabulary.text_sha256:
        raise DataError(
            "the tokenizer is not an extension of the model's own", where=f"{job.tokenizer} and {job.model}"
        )
    model = load_base(reference.base)
    rows = -(-len(tokenizer) // job.pad_to) * job.pad_to
    grow(model, rows, job.noise, job.seed)
    check_tensors(model.state_dict(), job.out)
    with building(job.out) as folder:
        with writing_weights(folder):
            model.save_pretrained(folder)
        save_tokenizer(folder, tokenizer, vocabulary)
        _prove_reload(folder, rows)
        about = {"rows": rows, "unit_rows": vocabulary.units.count, "vocabulary": vocabulary.to_json()}
        write_manifest(folder, job.kind, config=job.identity(), inputs=inputs, about=about)
    return True


def _prove_reload(folder: Path, rows: int) -> None:
    """A base that can't be loaded again is worth nothing: load it and compare the shapes."""
    model = load_base(folder)
    found = (model.get_input_embeddings().weight.shape[0], model.get_output_embeddings().weight.shape[0])
    if found != (rows, rows):
        raise CheckpointError(f"the grown base reloads with {found} rows instead of {rows}", where=str(folder))
