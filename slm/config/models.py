"""Configurations of the jobs that make a model out of models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from slm.artifact import file_sha256
from slm.config.base import Job


class ImportJob(Job):
    """Take the text path out of an Mllama (Llama 3.2 Vision) as a plain Llama."""

    kind: ClassVar[str] = "base"
    ignored: ClassVar[tuple[str, ...]] = ("model",)

    model: str
    """Hugging Face folder of the Mllama."""

    def inputs(self) -> dict[str, str]:
        """The Mllama."""
        return {"model": self.model}

    def identity(self) -> dict[str, Any]:
        """What is done: a tiny random base has the same kind."""
        return {"import": "mllama-text"}


class ExpandJob(Job):
    """Grow a text model's vocabulary by the speech units, off-line."""

    kind: ClassVar[str] = "base"
    ignored: ClassVar[tuple[str, ...]] = ("model", "tokenizer", "speech", "rows")

    model: str
    """Step or Hugging Face folder that is grown."""
    tokenizer: str | None = None
    """Folder of the tokenizer that has the unit tokens (`vocabulary.json` beside it)."""
    speech: str | None = None
    """Instead of a tokenizer: speech artifact whose units the model's own tokenizer gets."""
    noise: Annotated[float, Field(gt=0)] = 1.0
    """Spread of a new row around the mean row, in standard deviations of the old rows."""
    rows: str | None = None
    """Safetensors file with the units' rows: `embed_tokens`, and `lm_head` unless they are tied; null draws them."""
    pad_to: Annotated[int, Field(gt=0)] = 8
    """Rows are padded to a multiple of this."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the new rows."""

    @model_validator(mode="after")
    def _one_source_of_units(self) -> ExpandJob:
        if (self.tokenizer is None) == (self.speech is None):
            raise ValueError("give either tokenizer, which has the units, or speech, whose units the model's own gets")
        return self

    def inputs(self) -> dict[str, str]:
        """The model, and what says which units there are."""
        named = {"tokenizer": self.tokenizer, "speech": self.speech}
        return {"model": self.model, **{name: folder for name, folder in named.items() if folder is not None}}

    def identity(self) -> dict[str, Any]:
        """The file of rows counts by its content."""
        own = super().identity()
        if self.rows is not None:
            own["rows"] = file_sha256(self.rows) if Path(self.rows).is_file() else "missing"
        return own


class DiscountJob(Job):
    """Use a trained adapter with its scale multiplied by a factor below 1 (arXiv 2505.17496)."""

    kind: ClassVar[str] = "discount"
    ignored: ClassVar[tuple[str, ...]] = ("model",)

    model: str
    """Step whose adapter is discounted."""
    scale: Annotated[float, Field(ge=0, le=1)]
    """Factor on alpha / rank."""
    scope: Literal["lora", "all"] = "lora"
    """`lora` leaves embeddings and head as trained; `all` draws them back to the base by the same factor."""

    def inputs(self) -> dict[str, str]:
        """The step."""
        return {"model": self.model}


class MergeJob(Job):
    """Merge models by a mergekit recipe."""

    kind: ClassVar[str] = "merged"
    ignored: ClassVar[tuple[str, ...]] = ("models",)

    recipe: str
    """Text of the recipe in mergekit's own YAML; models are named by label (`base`, `asr`, …)."""
    models: dict[str, str]
    """Label -> step or Hugging Face folder."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of DARE's random mask."""

    def inputs(self) -> dict[str, str]:
        """Every labelled model."""
        return dict(self.models)


class ExportJob(Job):
    """A finished step as a standard PEFT adapter, or folded into its base."""

    kind: ClassVar[str] = "export"
    ignored: ClassVar[tuple[str, ...]] = ("model",)

    model: str
    """Step, adapter or Hugging Face folder."""
    form: Literal["adapter", "merged"] = "adapter"
    """A PEFT adapter, or a whole model."""
    dtype: Literal["keep", "fp32", "bf16"] = "keep"
    """Number format of a merged model; the sum is made in fp32 and rounded once. `keep` is the base's own."""
    base_name: str | None = None
    """What the adapter shall name as its base (a hub id, for publishing); null keeps the folder."""

    def inputs(self) -> dict[str, str]:
        """The model."""
        return {"model": self.model}
