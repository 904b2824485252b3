"""From a pipeline's YAML to its plan: every step with its command and its own typed configuration."""

from __future__ import annotations

import graphlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm.config.base import Job
from slm.config.evaluation import EvalJob
from slm.config.jobs import SPLIT, load_data_job
from slm.config.loader import dotted, from_mapping, load_config, read_layers
from slm.config.models import DiscountJob, ExpandJob, ImportJob, MergeJob
from slm.config.pipeline import (
    AnyStep,
    DataStep,
    DiscountStep,
    EvalStep,
    ExpandStep,
    ImportStep,
    MergeStep,
    PipelineConfig,
    ReportStep,
    TinyBaseStep,
    TrainStep,
)
from slm.config.report import ReportJob
from slm.config.stage import StageConfig
from slm.config.tiny import TinyBaseJob
from slm.errors import ConfigError
from slm.pipeline import commands
from slm.pipeline.graph import Plan, Step

ROOT = Path(__file__).resolve().parents[2]
"""The checkout: where `launcher/` and `ds_configs/` are."""


def load_pipeline(path: str | Path, overrides: Sequence[str] = ()) -> PipelineConfig:
    """Read and check a pipeline's YAML.

    Raises:
        ConfigError: every problem, one line each with file and line.
    """
    config = load_config(PipelineConfig, path, overrides)
    problems = config.problems()
    if problems:
        layer = read_layers(path, overrides)
        raise ConfigError("\n".join(f"{layer.where(key)}: {dotted(key)}: {message}" for key, message in problems))
    return config


def make_plan(
    config: PipelineConfig,
    *,
    source: tuple[str, ...] = (),
    cores: int | None = None,
    has_gpu: bool | None = None,
    launch: commands.Launch = commands.on_this_machine,
) -> Plan:
    """Resolve every step's own configuration and put the steps in order.

    Args:
        source: the YAML and its overrides, for the record.
        cores, has_gpu: of this machine; found when not given.
        launch: starts the ranks of train steps. Elsewhere than here they take the whole plan's slots, and no
            variable is derived from this machine.

    Raises:
        ConfigError: problems of all the steps' configurations at once, or a cycle.
    """
    cores = cores or len(os.sched_getaffinity(0))
    has_gpu = Path("/dev/nvidiactl").exists() if has_gpu is None else has_gpu
    planner = _Planner(config, config.slots or cores, cores, has_gpu, launch)
    made: dict[str, Step] = {}
    problems: list[str] = []
    for name in _ordered(config):
        try:
            made[name] = planner.step(name)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(line for text in problems for line in text.splitlines())))
    return Plan(config, planner.run, tuple(made.values()), planner.slots, source)


def _ordered(config: PipelineConfig) -> list[str]:
    """The names in the order of the file, moved back only where a need comes later."""
    needs = {name: _needs(config, name) for name in config.steps}
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as error:
        raise ConfigError(f"steps need each other: {' -> '.join(error.args[1])}", where="steps") from None
    placed: list[str] = []

    def place(name: str) -> None:
        if name not in placed:
            for need in needs[name]:
                place(need)
            placed.append(name)

    for name in config.steps:
        place(name)
    return placed


def _needs(config: PipelineConfig, name: str) -> tuple[str, ...]:
    step = config.steps[name]
    needed = list(step.needs().values())
    if isinstance(step, TrainStep):
        needed += [_source(config, text)[0] for text in step.sets().values()]
    if isinstance(step, ReportStep):
        needed += [other for other in config.steps if other != name and config.steps[other].kind != "report"]
    return tuple(dict.fromkeys(needed))


def _source(config: PipelineConfig, text: str) -> tuple[str, str]:
    """A shard set's (data step, set); the set is empty when the step makes that one set and no other."""
    if text in config.data_steps():
        return text, ""
    owner, slash, name = text.partition("/")
    return (owner, name) if slash else (config.data_steps()[0], text)


@dataclass(frozen=True)
class _Planner:
    """Makes the `Step` of each kind."""

    config: PipelineConfig
    slots: int
    cores: int
    has_gpu: bool
    launch: commands.Launch

    @property
    def run(self) -> Path:
        return Path(self.config.runs) / self.config.name

    def folder(self, name: str) -> str:
        return str(self.run / ("report" if self.config.steps[name].kind == "report" else name))

    def shards(self, text: str) -> str:
        owner, name = _source(self.config, text)
        return f"{self.folder(owner)}/shards/{name}" if name else self.folder(owner)

    def step(self, name: str) -> Step:
        step = self.config.steps[name]
        makers: dict[str, Callable[[str, Any], tuple[Job, list[str], int]]] = {
            "data": self._data,
            "tiny-base": self._tiny_base,
            "import": self._import,
            "train": self._train,
            "expand": self._expand,
            "merge": self._merge,
            "discount": self._discount,
            "eval": self._eval,
            "report": self._report,
        }
        job, argv, slots = makers[step.kind](name, step)
        environment = self._environment(step, slots)
        folder = Path(self.folder(name))
        shares = step.shares if isinstance(step, DataStep) else 1
        return Step(name, step.kind, folder, _needs(self.config, name), job, tuple(argv), environment, slots, shares)

    @property
    def is_local(self) -> bool:
        return self.launch is commands.on_this_machine

    def _environment(self, step: AnyStep, slots: int) -> dict[str, str]:
        train = isinstance(step, TrainStep)
        if not self.is_local and (train or self.launch is commands.in_a_batch_job):
            through = {} if self.launch is commands.in_a_batch_job else commands.hosts_environment()
            return through | (commands.cpu_environment() if self.config.device == "cpu" else {})
        on_gpu = self._on_gpu
        environment = {"CUDA_VISIBLE_DEVICES": ""} if self.has_gpu and not on_gpu else {}
        if isinstance(step, TrainStep):
            environment |= commands.train_environment(step.ranks or self.config.ranks, self.cores, on_gpu)
        elif slots < self.slots:
            environment["OMP_NUM_THREADS"] = str(slots)
        return environment

    def _data(self, name: str, step: DataStep) -> tuple[Job, list[str], int]:
        tokenizer = {"tokenizer": self.folder(step.tokenizer)} if step.tokenizer is not None else {}
        values = {"out": self.folder(name), **tokenizer, **step.set}
        job = load_data_job(find_config(step.job), commands.overrides(values))
        if step.shares > 1 and getattr(job, "job", "") not in SPLIT:
            raise ConfigError(f"steps.{name}.shares: a job of this kind is built in one piece", mend="leave out shares")
        return job, commands.data(step.job, values), self.slots

    def _tiny_base(self, name: str, step: TinyBaseStep) -> tuple[Job, list[str], int]:
        values = {"out": self.folder(name), "tokenizer": f"{self.folder(step.data)}/tokenizer", **step.set}
        job = self._from_values(TinyBaseJob, name, values)
        return job, commands.tiny_base(values), 1

    def _import(self, name: str, step: ImportStep) -> tuple[Job, list[str], int]:
        values = {"out": self.folder(name), "model": step.model, **step.set}
        return self._from_values(ImportJob, name, values), commands.import_text(values), 1

    def _train(self, name: str, step: TrainStep) -> tuple[Job, list[str], int]:
        values: dict[str, Any] = {"out": self.folder(name), "model.base": self.folder(step.base)}
        if step.previous is not None:
            values["model.previous"] = self.folder(step.previous)
        values["data.shards"] = self.shards(step.data)
        if step.replay:
            values["replay"] = [{"shards": self.shards(text), "ratio": ratio} for text, ratio in step.replay.items()]
        values.update(step.set)
        overlays = [find_config(overlay) for overlay in step.overlays]
        slots = min(step.slots or self.slots, self.slots) if self.is_local else self.slots
        if self.is_local and self._on_gpu and slots < self.slots:
            raise ConfigError(
                f"steps.{name}.slots: steps that train side by side on one machine would take the same GPUs",
                mend="leave slots out, or put the chains on nodes of their own: --where slurm",
            )
        job = load_config(StageConfig, find_config(step.config), commands.overrides(values), overlays)
        script = commands.train(step.config, step.overlays, values)
        return job, self.launch(script, step.ranks or self.config.ranks), slots

    @property
    def _on_gpu(self) -> bool:
        return self.has_gpu and self.config.device != "cpu"

    def _expand(self, name: str, step: ExpandStep) -> tuple[Job, list[str], int]:
        values: dict[str, Any] = {"out": self.folder(name), "model": self.folder(step.model)}
        if step.data is not None:
            values["tokenizer"] = f"{self.folder(step.data)}/tokenizer"
        else:
            values["speech"] = step.speech
        values.update(step.set)
        return self._from_values(ExpandJob, name, values), commands.expand(values), 1

    def _merge(self, name: str, step: MergeStep) -> tuple[Job, list[str], int]:
        models = {label: self.folder(other) for label, other in step.models.items()}
        try:
            recipe = Path(find_config(step.recipe)).read_text()
        except OSError:
            raise ConfigError(f"{step.recipe}: file not found (steps.{name}.recipe)") from None
        values = {"out": self.folder(name), "recipe": recipe, "models": models, "seed": 0, **step.set}
        job = self._from_values(MergeJob, name, values)
        return job, commands.merge(step.recipe, self.folder(name), models, values["seed"]), 1

    def _discount(self, name: str, step: DiscountStep) -> tuple[Job, list[str], int]:
        values: dict[str, Any] = {"out": self.folder(name), "model": self.folder(step.model)}
        values.update({"scale": step.scale, "scope": step.scope, **step.set})
        return self._from_values(DiscountJob, name, values), commands.discount(values), 1

    def _eval(self, name: str, step: EvalStep) -> tuple[Job, list[str], int]:
        models = {label: self.folder(other) for label, other in step.models.items()}
        data = self.folder(step.data) if step.data is not None else step.folder
        values = {"out": self.folder(name), "data": data, "models": models, **step.set}
        if step.chains:
            values["chains"] = step.chains
        job = load_config(EvalJob, find_config(step.config), commands.overrides(values))
        return job, commands.evaluate(step.config, values), self.slots

    def _report(self, name: str, step: ReportStep) -> tuple[Job, list[str], int]:
        steps = {other: self.folder(other) for other in _needs(self.config, name) if other != step.evaluation}
        job = ReportJob(
            out=self.folder(name),
            run=str(self.run),
            evaluation=self.folder(step.evaluation),
            steps=steps,
            title=self.config.title,
            figures=self.config.figures,
        )
        return job, commands.report(str(self.run)), 1

    def _from_values(self, job_class: type[Job], name: str, values: dict[str, Any]) -> Job:
        job: Job = from_mapping(job_class, values, f"steps.{name}")
        return job


def find_config(path: str) -> str:
    """A file named in a pipeline: relative to where one stands, else to the checkout."""
    if Path(path).exists() or not (ROOT / path).exists():
        return path
    return str(ROOT / path)
