"""The configuration of an evaluation (`ds_configs/eval/*.yaml`)."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from slm.artifact import digest, find_manifest, hash_files
from slm.config.base import Job, Strict, input_fingerprints_of

Positive = Annotated[int, Field(gt=0)]
Stage = Literal["llm", "asr", "tts", "sqa"]
RULES: dict[str, tuple[str, ...]] = {
    "text_qa": ("em@1", "contains@1"),
    "instructions": ("rule@1",),
    "asr": ("wer@1", "sentence@1"),
    "tts": ("uer@1", "text_wer@1", "malformed@1", "wave_uer@1", "resynthesis_uer@1", "ceiling_uer@1"),
    "sqa": ("em@1", "contains@1", "transcript_wer@1", "speech@1"),
}
"""Scorer -> its metrics with their versions; kept here so that a rule that changes makes old results stale."""


class TaskOptions(Strict):
    """How one evaluation set is used."""

    scorer: Literal["text_qa", "instructions", "asr", "tts", "sqa"] | None = None
    """Which rules score it; null: the set is named after its scorer."""
    limit: Positive | None = None
    """At most so many items, drawn by the seed; null is all."""
    max_new_tokens: Positive | None = None
    """Longest answer; null: a quarter more than the longest right answer of the set."""
    resynthesise: Annotated[int, Field(ge=0)] = 20
    """`tts`: so many items also go through the vocoder and back through the extractor (`wave_uer` and its like)."""
    in_means: bool = True
    """Whether it counts in a chain's average, transfer, forgetting and retention; false: reported apart."""


class EvalJob(Job):
    """Evaluate models on evaluation sets, and compare those that follow each other."""

    kind: ClassVar[str] = "evaluations"
    ignored: ClassVar[tuple[str, ...]] = ("data", "models", "model", "batch_size", "workers")

    data: str
    """Folder with `eval/<set>.jsonl` and `speech/` (the tiny data artifact is one)."""
    models: dict[str, str] = {}
    """Label -> step, training checkpoint, adapter or Hugging Face folder."""
    model: str | None = None
    """Shorthand for one model, labelled by the name of its folder."""
    chains: dict[str, list[str]] = {}
    """Name -> labels of models that were trained one after the other, the base first."""
    stages: list[Stage] = ["llm", "asr", "tts", "sqa"]
    """What a chain's models were trained on, in order: where a task counts as learned."""
    tasks: dict[str, TaskOptions]
    """Name of the evaluation set -> how it is used."""
    samples: Annotated[int, Field(ge=0)] = 4
    """So many items of each speaking set are kept as WAV files."""
    bootstrap: Positive = 1000
    """Resamples behind every confidence interval."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of item choice and bootstrap."""
    batch_size: Positive = 128
    """Prompts decoded together."""
    workers: Positive | None = None
    """Processes; the models are shared out among them, one thread and one GPU each. Null: one for each GPU, or two."""

    @model_validator(mode="after")
    def _check(self) -> EvalJob:
        if not self.references():
            raise ValueError("nothing to evaluate: give model=FOLDER or models={label: FOLDER}")
        for name, labels in self.chains.items():
            unknown = [label for label in labels if label not in self.references()]
            if unknown:
                raise ValueError(f"chains.{name} names {unknown[0]!r}, which is no label of models")
            if not 2 <= len(labels) <= len(self.stages):
                raise ValueError(f"chains.{name} needs 2 to {len(self.stages)} labels (one for each of stages)")
        return self

    def references(self) -> dict[str, str]:
        """Label -> folder of every model."""
        named = {PurePath(self.model).name: self.model} if self.model else {}
        return {**named, **self.models}

    def inputs(self) -> dict[str, str]:
        """The data, and every model by its label."""
        return {"data": self.data, **{f"model/{label}": ref for label, ref in self.references().items()}}

    def fingerprints(self) -> dict[str, str]:
        """Of data that nobody sealed with a manifest: its files' content.

        Raises:
            DataError: a model or the data is missing.
        """
        places = self.inputs()
        if find_manifest(self.data) is None and Path(self.data).is_dir():
            del places["data"]
            files = hash_files(self.data).items()
            return {**input_fingerprints_of(places), "data": digest({name: entry["sha256"] for name, entry in files})}
        return input_fingerprints_of(places)

    def identity(self) -> dict[str, Any]:
        """What changes the figures; speed and paths left out."""
        return {**super().identity(), "labels": list(self.references()), "rules": self.rules()}

    def model_identity(self) -> dict[str, Any]:
        """The part that changes one model's own results."""
        own = self.model_dump(
            mode="json",
            include={"tasks", "samples", "bootstrap", "seed"},
            exclude={"tasks": {"__all__": {"in_means"}}},  # a matter of the summary alone
        )
        return {**own, "rules": self.rules()}

    def rules(self) -> dict[str, list[str]]:
        """Evaluation set -> names and versions of the metrics that it is scored by."""
        return {name: list(RULES.get(options.scorer or name, ())) for name, options in self.tasks.items()}
