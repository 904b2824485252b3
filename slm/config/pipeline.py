"""The configuration of a pipeline: named steps, each of a kind with keys of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from slm.config.base import Strict

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Share = Annotated[float, Field(gt=0, le=1)]
Problem = tuple[tuple[str | int, ...], str]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED = ("logs", "report", "slurm", "superseded")
"""Names in the run folder that are no steps of their own."""


class _Step(Strict):
    """What all kinds share; `set` holds `key.path: value` overrides of the step's own configuration."""

    set: dict[str, Any] = {}
    """Overrides of the step's configuration, dotted key -> value."""

    def needs(self) -> dict[tuple[str | int, ...], str]:
        """Key path inside the step -> the step that is named there."""
        return {}


class DataStep(_Step):
    """Build data: `python data_shards/build.py JOB`."""

    kind: Literal["data"]
    job: str
    """The job's YAML file."""
    tokenizer: str | None = None
    """Step that made the model whose tokenizer a shard set gets; null leaves what the job says."""
    shares: Annotated[int, Field(gt=0, le=1000)] = 1
    """Under SLURM: tasks of an array that build a shard set side by side; the bytes are the same."""

    def needs(self) -> dict[tuple[str | int, ...], str]:
        return {("tokenizer",): self.tokenizer} if self.tokenizer is not None else {}


class ImportStep(_Step):
    """Take the text path of a Llama 3.2 Vision: `slm model import`."""

    kind: Literal["import"]
    model: str
    """Hugging Face folder of the model."""


class TinyBaseStep(_Step):
    """Make the tiny world's random-weight model: `slm model tiny-base`."""

    kind: Literal["tiny-base"]
    data: str
    """Data step whose tokenizer the model gets."""

    def needs(self) -> dict[tuple[str | int, ...], str]:
        return {("data",): self.data}


class TrainStep(_Step):
    """Train a stage: `deepspeed launcher/train.py`."""

    kind: Literal["train"]
    config: str
    """The stage's YAML file."""
    overlays: list[str] = Field(default=[], alias="with")
    """YAML files laid over it (mitigations), in order."""
    base: str
    """Step that made the base model."""
    previous: str | None = None
    """Train step whose adapter is continued."""
    data: str
    """Shard set: its name in the only data step, or `STEP/SET`."""
    replay: dict[str, Share] = {}
    """Shard set of an earlier stage -> its rows per row of this stage."""
    ranks: Annotated[int, Field(gt=0)] | None = None
    """Processes; null takes the pipeline's."""
    slots: Annotated[int, Field(gt=0)] | None = None
    """Cores it counts for; null is all, so that nothing else runs beside it."""

    def needs(self) -> dict[tuple[str | int, ...], str]:
        named: dict[tuple[str | int, ...], str] = {("base",): self.base}
        if self.previous is not None:
            named[("previous",)] = self.previous
        return named

    def sets(self) -> dict[tuple[str | int, ...], str]:
        """Key path -> shard set that is named there."""
        return {("data",): self.data, **{("replay", name): name for name in self.replay}}


class ExpandStep(_Step):
    """Grow a model's vocabulary by the speech units: `slm model expand`."""

    kind: Literal["expand"]
    model: str
    """Step that is grown."""
    data: str | None = None
    """Data step whose tokenizer has the units; or, instead of it,"""
    speech: str | None = None
    """folder of a speech artifact whose units the model's own tokenizer gets."""

    def needs(self) -> dict[tuple[str | int, ...], str]:
        return {("model",): self.model, **({("data",): self.data} if self.data is not None else {})}


class MergeStep(_Step):
    """Merge models by a mergekit recipe: `slm merge`."""

    kind: Literal["merge"]
    recipe: str
    """mergekit YAML whose models are labels."""
    models: dict[str, str]
    """Label in the recipe -> step."""

    def needs(self) -> dict[tuple[str | int, ...], str]:
        return {("models", label): step for label, step in self.models.items()}


class DiscountStep(_Step):
    """An adapter at a smaller scale: `slm model discount`."""

    kind: Literal["discount"]
    model: str
    """Train step whose adapter is scaled."""
    scale: Annotated[float, Field(ge=0, le=1)]
    """Factor on alpha / rank."""
    scope: Literal["lora", "all"] = "lora"
    """`lora` leaves embeddings and head as trained; `all` draws them back too."""

    def needs(self) -> dict[tuple[str | int, ...], str]:
        return {("model",): self.model}


class EvalStep(_Step):
    """Evaluate checkpoints: `python -m slm.eval`."""

    kind: Literal["eval"]
    config: str
    """The evaluation's YAML file."""
    data: str | None = None
    """Data step with the test sets; or, instead of it,"""
    folder: str | None = None
    """a folder that has them already: `eval/SET.jsonl`, and `speech/` for sets that are spoken."""
    models: dict[str, str]
    """Label -> step; the report shows them in this order."""
    chains: dict[str, list[str]] = {}
    """Chain -> labels in the order they were trained."""

    def needs(self) -> dict[tuple[str | int, ...], str]:
        named: dict[tuple[str | int, ...], str] = {("models", label): step for label, step in self.models.items()}
        return {("data",): self.data, **named} if self.data is not None else named


class ReportStep(_Step):
    """The report of the run: `slm report`."""

    kind: Literal["report"]
    evaluation: str
    """Eval step that is reported."""

    def needs(self) -> dict[tuple[str | int, ...], str]:
        return {("evaluation",): self.evaluation}


AnyStep = Annotated[
    DataStep | TinyBaseStep | ImportStep | TrainStep | ExpandStep | MergeStep | DiscountStep | EvalStep | ReportStep,
    Field(discriminator="kind"),
]
MODELS = ("tiny-base", "import", "train", "expand", "merge", "discount")
"""Kinds of steps that make a model."""


class Figure(Strict):
    """A result that the run is expected to reach; the closing table and the report say whether it did."""

    what: str
    """In words."""
    model: str
    """Label of the evaluated model."""
    task: str
    """Task whose score is meant."""
    minus: str | None = None
    """Label of a second model whose score is taken off."""
    raw: bool = False
    """Compare the raw metric (a word error rate) instead of the score."""
    at_least: float | None = None
    """Lower bound."""
    at_most: float | None = None
    """Upper bound."""


class PipelineConfig(Strict):
    """A graph of steps that live in one run folder."""

    name: Name
    """Name of the run; its folder is `<runs>/<name>`."""
    runs: str = "runs"
    """Folder of all runs."""
    title: str = ""
    """Title of the report."""
    ranks: Annotated[int, Field(gt=0)] = 2
    """Processes of a train step."""
    device: Literal["auto", "cpu"] = "auto"
    """`cpu` leaves a GPU alone, so that the run is the same on every machine."""
    slots: Annotated[int, Field(gt=0)] | None = None
    """Steps of one core that may run side by side; null is the number of cores."""
    steps: dict[str, AnyStep]
    """Name -> step. The order of the file is kept where the graph leaves it open."""
    figures: list[Figure] = []
    """What the run is expected to reach."""

    def problems(self) -> list[Problem]:
        """Names that don't fit and references to nothing: (key path, message) each."""
        return [*self._bad_names(), *self._bad_settings(), *self._bad_references(), *self._bad_labels()]

    def data_steps(self) -> list[str]:
        """Names of the steps that build data."""
        return [name for name, step in self.steps.items() if step.kind == "data"]

    def _bad_names(self) -> Iterator[Problem]:
        for name in self.steps:
            if not _NAME.fullmatch(name):
                yield ("steps", name), "a name has letters, digits, '.', '_', '-' and starts with a letter or digit"
            elif name in RESERVED and self.steps[name].kind != "report":
                yield ("steps", name), f"'{name}' is a folder of every run; choose another name"

    def _bad_settings(self) -> Iterator[Problem]:
        """What `set` can't change: the step's folder, and what has no way into its command."""
        for name, step in self.steps.items():
            for key in step.set:
                where = ("steps", name, "set", key)
                if step.kind == "report":
                    yield where, "a report has no settings; its title and figures are keys of the pipeline"
                elif key == "out":
                    yield where, f"the folder is <runs>/<name>/{name}; rename the step instead"
                elif step.kind == "merge" and key != "seed":
                    yield where, "a merge takes only 'seed' here; 'recipe' and 'models' are keys of the step"
            pair = {"expand": ("data", "speech"), "eval": ("data", "folder")}.get(step.kind, ())
            if sum(getattr(step, key) is not None for key in pair) != (1 if pair else 0):
                yield ("steps", name), f"needs one of {' and '.join(pair)}, and not both"

    def _bad_references(self) -> Iterator[Problem]:
        for name, step in self.steps.items():
            for path, needed in step.needs().items():
                where = ("steps", name, *path)
                wanted = {"data": ("data",), "previous": ("train",), "evaluation": ("eval",)}.get(str(path[0]), MODELS)
                fitting = [other for other, candidate in self.steps.items() if candidate.kind in wanted]
                options = ", ".join(fitting)
                if needed not in self.steps:
                    yield where, f"no step '{needed}'; there are: {options}"
                elif needed not in fitting:
                    yield where, f"'{needed}' is a {self.steps[needed].kind} step; expected one of: {options}"
            if isinstance(step, TrainStep):
                yield from self._bad_sets(name, step)

    def _bad_sets(self, name: str, step: TrainStep) -> Iterator[Problem]:
        sources = self.data_steps()
        for path, text in step.sets().items():
            owner, slash, _ = text.partition("/")
            if text in sources:
                continue  # a step that makes one set
            if slash and owner not in sources:
                yield ("steps", name, *path), f"no data step '{owner}'; there are: {', '.join(sources)}"
            elif not slash and len(sources) != 1:
                message = f"say which data step: STEP/{text} (data steps: {', '.join(sources) or 'none'})"
                yield ("steps", name, *path), message

    def _bad_labels(self) -> Iterator[Problem]:
        known: list[str] = []
        for name, step in self.steps.items():
            if isinstance(step, EvalStep):
                known += step.models
                options = ", ".join(step.models)
                for chain, labels in step.chains.items():
                    for i, label in enumerate(labels):
                        if label not in step.models:
                            yield ("steps", name, "chains", chain, i), f"no model '{label}'; there are: {options}"
        for i, figure in enumerate(self.figures):
            for key, named in (("model", figure.model), ("minus", figure.minus)):
                if named is not None and named not in known:
                    yield ("figures", i, key), f"no evaluated model '{named}'; there are: {', '.join(known)}"
