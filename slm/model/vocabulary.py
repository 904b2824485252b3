"""Grow a vocabulary off-line: the base is saved with its unit rows, so nothing is resized under ZeRO."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig

from slm.artifact import building, write_json, write_manifest
from slm.config.base import to_make
from slm.config.models import ExpandJob
from slm.errors import CheckpointError, DataError
from slm.model.adapter import check_tensors
from slm.model.reference import resolve
from slm.model.weights import EMBEDDING, HEAD, Change, prove_loadable, read_config, read_tensor, rewrite, shapes_of
from slm.speech.load import read_units
from slm.tokens.vocabulary import UnitSet, Vocabulary, add_units, load_tokenizer, save_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


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


class NewRows:
    """The rows of the units and of the padding, for embeddings and head.

    Args:
        kept: rows of the old matrices that stay; those after them are spares of the model and are replaced.
        rows: rows of the grown matrices.
        units: number of units, whose rows come first.
        given: the units' rows by matrix (`embed_tokens`, `lm_head`), instead of drawn ones.
    """

    def __init__(self, kept: int, rows: int, units: int, *, noise: float, seed: int, given: dict[str, Tensor]) -> None:
        self.kept, self.rows, self.units, self.noise, self.given = kept, rows, units, noise, given
        self.generator = torch.Generator().manual_seed(seed)

    def grow(self, old_VD: Tensor, matrix: str) -> Tensor:
        """The matrix with its new rows, in its own dtype.

        Raises:
            DataError: the given rows have another shape.
        """
        old = old_VD[: self.kept]
        fresh = spread_rows(old, self.rows - self.kept, self.noise, self.generator)
        if matrix in self.given:
            wanted = (self.units, old_VD.shape[1])
            if tuple(self.given[matrix].shape) != wanted:
                raise DataError(
                    f"rows of {matrix} have shape {tuple(self.given[matrix].shape)}, the model wants {wanted}"
                )
            fresh[: self.units] = self.given[matrix].to(fresh.dtype)
        return torch.cat([old, fresh])


def expand(job: ExpandJob) -> bool:
    """Make the `base` artifact of a job. Weights are streamed: one file of the model is held at a time.

    Returns:
        False when it was up to date already.

    Raises:
        DataError: the tokenizer has no unit tokens, or is not an extension of the model's; rows that don't fit.
        CheckpointError: the model is not Llama-like, damaged, or the grown one could not be loaded again.
        MachineError: no space or no permission.
    """
    inputs = to_make(job)
    if inputs is None:
        return False
    reference = resolve(job.model)
    if reference.adapter is not None:
        raise CheckpointError("vocabulary can't be grown under an adapter", where=job.model, mend="give the base model")
    tokenizer, vocabulary, first_unit, units = _tokenizer_with_units(job, reference.base)
    tied = bool(AutoConfig.from_pretrained(reference.base, trust_remote_code=False).tie_word_embeddings)
    old_rows, width = _table_shape(reference.base, tied)
    rows = max(old_rows, -(-len(tokenizer) // job.pad_to) * job.pad_to)
    if first_unit > old_rows:
        raise DataError(
            f"the first unit has id {first_unit}, the model has {old_rows} rows",
            where=f"{job.tokenizer or job.speech} and {job.model}",
        )
    new = NewRows(
        *(first_unit, rows, units.count),
        noise=job.noise,
        seed=job.seed,
        given=_given_rows(job.rows, tied),
    )
    with building(job.out) as folder:
        rewrite(reference.base, folder, _change(reference.base, new, tied))
        write_json(folder / "config.json", {**read_config(reference.base), "vocab_size": rows})
        if (generation := reference.base / "generation_config.json").is_file():
            shutil.copy(generation, folder)
        save_tokenizer(folder, tokenizer, vocabulary)
        prove_loadable(folder)
        about = {"rows": rows, "unit_rows": units.count, "vocabulary": vocabulary.to_json(), "width": width}
        write_manifest(folder, job.kind, config=job.identity(), inputs=inputs, about=about)
    return True


def _tokenizer_with_units(job: ExpandJob, base: Path) -> tuple[PreTrainedTokenizerFast, Vocabulary, int, UnitSet]:
    """The tokenizer that is saved with the model, its vocabulary, and where which units begin.

    Raises:
        DataError: no units in the tokenizer, or it is not the model's own with units; the model has units already.
    """
    own, before = load_tokenizer(base)
    if job.tokenizer is not None:
        tokenizer, vocabulary = load_tokenizer(job.tokenizer)
    elif before.units is not None:
        raise DataError("the model has units already", where=job.model, mend="give the model before it was grown")
    else:
        tokenizer, vocabulary = own, add_units(own, read_units(job.speech or ""))
    if vocabulary.units is None or vocabulary.first_unit is None:
        raise DataError("the tokenizer has no unit tokens", where=str(job.tokenizer))
    if before.text_sha256 != vocabulary.text_sha256:
        raise DataError(
            "the tokenizer is not an extension of the model's own", where=f"{job.tokenizer} and {job.model}"
        )
    return tokenizer, vocabulary, vocabulary.first_unit, vocabulary.units


def _table_shape(base: Path, tied: bool) -> tuple[int, int]:
    """Rows and width of embeddings and head.

    Raises:
        CheckpointError: not named as Llama and Qwen name them, or head and embeddings differ in shape.
    """
    shapes = shapes_of(base)
    wanted = [EMBEDDING] if tied else [EMBEDDING, HEAD]
    missing = [name for name in wanted if name not in shapes]
    if missing:
        raise CheckpointError(
            f"not a Llama- or Qwen-like model: it has no {missing[0]}",
            where=str(base),
            mend="an Mllama is made a Llama by slm model import",
        )
    if len({shapes[name] for name in wanted}) > 1:
        raise CheckpointError(
            f"embeddings are {shapes[EMBEDDING]}, the head is {shapes[HEAD]}",
            where=str(base),
            mend="an Mllama is made a Llama by slm model import",
        )
    rows, width = shapes[EMBEDDING]
    return rows, width


def _given_rows(path: str | None, tied: bool) -> dict[str, Tensor]:
    """The rows of a job's file.

    Raises:
        DataError: unreadable, or a matrix is not in it.
    """
    if path is None:
        return {}
    try:
        given = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"rows can't be read: {error}", where=path, mend="give a safetensors file") from None
    wanted = {"embed_tokens"} if tied else {"embed_tokens", "lm_head"}
    if set(given) != wanted:
        raise DataError(
            f"the file has {', '.join(sorted(given)) or 'nothing'}; wanted are {', '.join(sorted(wanted))}",
            where=path,
        )
    check_tensors(given, path)
    return given


def _change(base: Path, new: NewRows, tied: bool) -> Change:
    # Drawn in one order whatever file a matrix lies in, so that the shards of a model do not change its new rows.
    grown = {EMBEDDING: new.grow(read_tensor(base, EMBEDDING), "embed_tokens")}
    if not tied:
        grown[HEAD] = new.grow(read_tensor(base, HEAD), "lm_head")

    def change(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        if name == HEAD and tied:
            return  # a copy that transformers would pass over
        yield name, grown.pop(name) if name in grown else tensor

    return change
