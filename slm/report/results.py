"""What a run left, read for people: scores, chains, curves, expectations. No number is made up here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from slm.artifact import Manifest, find_manifest, read_json
from slm.config.loader import from_mapping
from slm.config.pipeline import Figure
from slm.config.report import ReportJob
from slm.errors import DataError

SUMMARY = "summary.json"
TASKS = {
    "text_qa": ("text QA", "questions in text, answered in text: exact match"),
    "instructions": ("instructions", "verifiable instructions: followed exactly"),
    "asr": ("ASR", "speech to text, unseen utterances of the world's own sentences: 1 − word error rate"),
    "asr_random": ("ASR random", "speech to text, random strings of words: 1 − word error rate"),
    "tts": ("TTS", "text to speech: 1 − edit rate of the units"),
    "sqa": ("spoken QA", "spoken questions, answered in text: exact match; unseen utterances of known voices"),
    "sqa_new_voices": ("spoken QA new", "the same, from voices never heard in training"),
}


@dataclass(frozen=True)
class Check:
    """An expectation and what came of it; `ok` is None when it was not measured."""

    figure: Figure
    value: float | None
    ok: bool | None

    @property
    def bound(self) -> str:
        """`≥ 0.85`."""
        parts = [f"≥ {self.figure.at_least:g}"] if self.figure.at_least is not None else []
        return " and ".join(parts + ([f"≤ {self.figure.at_most:g}"] if self.figure.at_most is not None else []))


@dataclass(frozen=True)
class Chain:
    """Stages trained one after the other.

    Attributes:
        labels: of the evaluated models, the base first.
        tasks, learned: tasks, and for each the row in which it was taught.
        replay: rows of replay per row, summed over the last stage's sources; 0 is the naive chain.
    """

    name: str
    labels: list[str]
    tasks: list[str]
    learned: list[int]
    stages: list[str]
    replay: float
    figures: dict[str, Any]


class Results:
    """Everything the page shows of a run.

    Raises:
        DataError: there is no summary of an evaluation.
    """

    def __init__(self, job: ReportJob) -> None:
        self.job = job
        self.run, self.evaluation = Path(job.run), Path(job.evaluation)
        self.summary: dict[str, Any] = read_json(self.evaluation / SUMMARY)
        path = self.run / "pipeline.json"
        self.record: dict[str, Any] = read_json(path) if path.is_file() else {}
        self.labels: list[str] = self.summary["labels"]
        self.tasks: list[str] = self.summary["tasks"]

    @property
    def title(self) -> str:
        """Of the page."""
        return self.job.title or f"Run {self.run.name}"

    def score(self, label: str, task: str) -> dict[str, Any] | None:
        """Score, raw metric and interval of a model on a task; None when it was not measured."""
        entry = self.summary["scores"].get(label, {}).get(task)
        return entry if entry and entry.get("score") is not None else None

    def value(self, label: str, task: str) -> float | None:
        """The score alone: 0 to 1, higher is better."""
        entry = self.score(label, task)
        return None if entry is None else float(entry["score"])

    def why_missing(self, label: str, task: str) -> str:
        """Why there is no score."""
        entry = self.summary["scores"].get(label, {}).get(task) or {}
        return str(entry.get("missing") or "not measured")

    def stage_of(self, task: str) -> str | None:
        """The stage a task belongs to."""
        stage = self.summary.get("stages", {}).get(task)
        return str(stage) if stage else None

    def task_of(self, stage: str) -> str | None:
        """The first task of a stage: text QA of `llm`, spoken QA of `sqa`."""
        return next((task for task in self.tasks if self.stage_of(task) == stage), None)

    @cached_property
    def chains(self) -> list[Chain]:
        """The chains, those without replay first."""
        found = []
        for name, entry in self.summary.get("chains", {}).items():
            found.append(
                Chain(
                    name=name,
                    labels=entry["labels"],
                    tasks=entry["tasks"],
                    learned=entry["learned"],
                    stages=entry["stages"],
                    replay=self._replay(entry["labels"][-1]),
                    figures=entry,
                )
            )
        return sorted(found, key=lambda chain: chain.replay > 0)

    @property
    def naive(self) -> Chain | None:
        """The first chain without replay."""
        return next((chain for chain in self.chains if not chain.replay), None)

    @property
    def replayed(self) -> Chain | None:
        """The first chain with replay."""
        return next((chain for chain in self.chains if chain.replay), None)

    def _replay(self, label: str) -> float:
        manifest = self.manifest(self.folder(label))
        sources = (manifest.config.get("replay") if manifest else None) or []
        return max((float(source["ratio"]) for source in sources), default=0.0)

    def folder(self, label: str) -> Path:
        """Folder of a model, from that of its evaluation."""
        return self.eval_folder(label).parent

    def eval_folder(self, label: str) -> Path:
        """Folder with a model's items and results."""
        return self.evaluation / str(self.summary["folders"][label])

    @property
    def data(self) -> Path:
        """Folder that audio paths of questions and references start from."""
        return self.evaluation / str(self.summary["data"])

    def manifest(self, folder: Path) -> Manifest | None:
        """A step's manifest; None when it has none."""
        return find_manifest(folder)

    def kind(self, label: str) -> str:
        """What made a model: base, stage, merged, discount."""
        manifest = self.manifest(self.folder(label))
        return manifest.kind if manifest else ""

    def items(self, label: str, task: str) -> list[dict[str, Any]]:
        """The records of a model on a task; empty when it was not measured."""
        path = self.eval_folder(label) / task / "items.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def right(self, item: dict[str, Any], task: str) -> bool:
        """Whether the item's headline figure is 1 (an error rate: 0)."""
        entry: dict[str, Any] = next(
            (row[task] for row in self.summary["scores"].values() if row[task].get("metric")), {}
        )
        value = item.get("scores", {}).get(entry.get("metric"))
        return value is not None and (value == 0 if entry.get("less_is_better") else value == 1)

    def steps_of(self, chain: Chain) -> list[str]:
        """Names of the train steps that lead to a chain's last model, the text LLM's first."""
        steps = {entry["name"]: entry for entry in self.record.get("steps", [])}
        by_folder = {Path(entry["folder"]).resolve(): name for name, entry in steps.items()}
        names = [by_folder[f] for label in chain.labels if (f := self.folder(label).resolve()) in by_folder]
        found: list[str] = []

        def visit(name: str) -> None:
            if name not in found and name in steps:
                for need in steps[name]["needs"]:
                    visit(need)
                found.append(name)

        for name in names:
            visit(name)
        return [name for name in found if steps[name]["kind"] == "train"]

    def metrics(self, step: str) -> list[dict[str, Any]]:
        """The records of `metrics.jsonl` of a train step."""
        folder = next((entry["folder"] for entry in self.record.get("steps", []) if entry["name"] == step), None)
        path = Path(folder or "") / "metrics.jsonl"
        if folder is None or not path.is_file():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def checks(self) -> list[Check]:
        """Every expectation with its value."""
        return [self._check(figure) for figure in self.job.figures]

    def _check(self, figure: Figure) -> Check:
        key = "raw" if figure.raw else "score"
        first = self.score(figure.model, figure.task)
        second = self.score(figure.minus, figure.task) if figure.minus else {key: 0.0}
        if first is None or second is None:
            return Check(figure, None, None)
        value = float(first[key]) - float(second[key])
        low = figure.at_least is None or value >= figure.at_least
        return Check(figure, value, low and (figure.at_most is None or value <= figure.at_most))


def task_name(task: str) -> str:
    """A task in a word or two."""
    return TASKS.get(task, (task.replace("_", " "), ""))[0]


def task_words(task: str) -> str:
    """What a task measures."""
    return TASKS.get(task, ("", task.replace("_", " ")))[1]


def job_of_run(run: Path) -> ReportJob:
    """The report that a run's pipeline asks for.

    Raises:
        DataError: no pipeline ran there, or it has no report step.
    """
    path = run / "pipeline.json"
    if not path.is_file():
        raise DataError("no pipeline ran here", where=str(run), mend="give a run folder, such as runs/quickstart")
    asked = read_json(path).get("report")
    if not asked:
        raise DataError("the run's pipeline has no report step", where=str(path))
    return from_mapping(ReportJob, asked, str(path))
