"""Many evaluations side by side: scores with intervals, the matrix of every chain, what flipped."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slm.artifact import read_json
from slm.config.evaluation import EvalJob
from slm.errors import DataError
from slm.eval import forgetting as formulas
from slm.eval.evaluate import ITEMS, RESULTS, evaluation_folder, score_of
from slm.eval.statistics import holm, interval, mcnemar, ratio_of_sums, resampled, resamples

MEASURES: dict[str, Callable[[np.ndarray, Sequence[int]], np.ndarray]] = {
    "average_score": formulas.average_score,
    "backward_transfer": formulas.backward_transfer,
    "forgetting": formulas.forgetting,
    "retention": formulas.retention,
    "forward_transfer": formulas.forward_transfer,
}
TASK_MEASURES: dict[str, Callable[[np.ndarray, Sequence[int]], np.ndarray]] = {
    "transfer": formulas.task_transfer,
    "forgetting": formulas.task_forgetting,
    "retention": formulas.task_retention,
}


@dataclass
class Cell:
    """One model on one set: its results, and per item the headline ratio in item order."""

    results: dict[str, Any]
    ids: list[str]
    values: np.ndarray
    weights: np.ndarray

    @property
    def missing(self) -> str | None:
        """Why there is no figure; None when there is one."""
        return self.results.get("missing")

    @property
    def is_error(self) -> bool:
        """Whether less is better."""
        return bool(self.results["metrics"][self.results["headline"]]["less_is_better"])

    @property
    def binary(self) -> bool:
        """Whether every item is right or wrong."""
        return not self.is_error and bool(np.isin(self.values, (0.0, 1.0)).all() and (self.weights == 1).all())

    def scores(self, draws: np.ndarray) -> np.ndarray:
        """The score in every bootstrap sample."""
        raw = resampled(self.values.tolist(), self.weights.tolist(), draws)
        return 1.0 - np.minimum(raw, 1.0) if self.is_error else raw

    def score(self) -> float:
        """The score of all items."""
        value = score_of(float(ratio_of_sums(self.values, self.weights)), self.is_error)
        return math.nan if value is None else value


def read_cell(folder: Path, task: str) -> Cell:
    """Read a set's results and items from an evaluation.

    Raises:
        DataError: they are missing.
    """
    results = read_json(folder / task / RESULTS)
    if results.get("missing"):
        return Cell(results, [], np.zeros(0), np.zeros(0))
    records = [json.loads(line) for line in (folder / task / ITEMS).read_text().splitlines()]
    pairs = [record["counts"][results["headline"]] for record in records]
    return Cell(
        results,
        [record["id"] for record in records],
        np.array([value for value, _ in pairs], float),
        np.array([weight for _, weight in pairs], float),
    )


def summarise(job: EvalJob, out: str | Path) -> dict[str, Any]:
    """What `summary.json` holds.

    Args:
        job: every model of it is evaluated already.
        out: folder the paths in the summary are relative to.

    Raises:
        DataError: two models were asked different items, or scored by different normalisers.
    """
    folders = {label: evaluation_folder(ref) for label, ref in job.references().items()}
    cells = {label: {task: read_cell(folder, task) for task in job.tasks} for label, folder in folders.items()}
    draws: dict[str, np.ndarray] = {}
    for task in job.tasks:
        asked = {tuple(row[task].ids) for row in cells.values() if not row[task].missing}
        if len(asked) > 1:
            raise DataError("models were asked different items", where=task, mend="evaluate them again")
        if len({row[task].results.get("normaliser") for row in cells.values() if not row[task].missing}) > 1:
            raise DataError(
                "models were scored with different text normalisers",
                where=task,
                mend="remove the older models' eval/ folders and run this again",
            )
        if asked:
            draws[task] = resamples(len(next(iter(asked))), job.bootstrap, job.seed)
    return {
        "labels": list(cells),
        "tasks": list(job.tasks),
        "stages": {task: _known(cells, task, "stage") for task in job.tasks},
        "data": os.path.relpath(job.data, out),
        "folders": {label: os.path.relpath(folder, out) for label, folder in folders.items()},
        "scores": {
            label: {task: _score(cell, draws.get(task)) for task, cell in row.items()} for label, row in cells.items()
        },
        "chains": {name: _chain(job, labels, cells, draws) for name, labels in job.chains.items()},
        "flips": {name: _flips(labels, cells, draws) for name, labels in job.chains.items()},
    }


Cells = dict[str, dict[str, Cell]]


def _known(cells: Cells, task: str, key: str) -> Any:
    """A fact of the task from any model that did it; None when none did."""
    return next((row[task].results[key] for row in cells.values() if not row[task].missing), None)


def _score(cell: Cell, draws: np.ndarray | None) -> dict[str, Any]:
    if cell.missing or draws is None:
        return {"score": None, "raw": None, "missing": cell.missing}
    results = cell.results
    return {
        "score": results["score"],
        "raw": results["metrics"][results["headline"]]["value"],
        "metric": results["headline"],
        "less_is_better": cell.is_error,
        "n": results["n"],
        "ci": interval(cell.scores(draws)),
        "metrics": {name: entry["value"] for name, entry in results["metrics"].items()},
        "flags": results["flags"],
    }


def _plain(value: Any) -> Any:
    """Arrays as lists, NaN as None: JSON knows neither."""
    if isinstance(value, np.ndarray) and value.ndim:
        return [_plain(entry) for entry in value]
    return None if math.isnan(float(value)) else float(value)


def _chain(job: EvalJob, labels: Sequence[str], cells: Cells, draws: dict[str, np.ndarray]) -> dict[str, Any]:
    """The matrix R of one chain and what follows from it; tasks that no model of the chain did are left out.

    Tasks with `in_means: false` are in the matrix and in `by_task`, not in the chain's measures; `apart` names them.
    """
    tasks = [task for task in draws if any(not cells[label][task].missing for label in labels)]
    learned = [list(job.stages).index(_known(cells, task, "stage")) for task in tasks]
    matrix = np.full((len(labels), len(tasks)), np.nan)
    samples = np.full((job.bootstrap, *matrix.shape), np.nan)
    for i, label in enumerate(labels):
        for j, task in enumerate(tasks):
            if not cells[label][task].missing:
                matrix[i, j] = cells[label][task].score()
                samples[:, i, j] = cells[label][task].scores(draws[task])
    counted = [j for j, task in enumerate(tasks) if job.tasks[task].in_means]
    stages = [learned[j] for j in counted]
    measures = {
        name: {
            "value": _plain(measure(matrix[:, counted], stages)),
            "ci": interval(measure(samples[..., counted], stages)),
        }
        for name, measure in MEASURES.items()
    }
    by_task: dict[str, dict[str, Any]] = {task: {} for task in tasks}
    for name, measure in TASK_MEASURES.items():
        for task, value in zip(tasks, _plain(measure(matrix, learned)), strict=True):
            by_task[task][name] = value
    return {
        "labels": list(labels),
        "tasks": tasks,
        "stages": list(job.stages[: len(labels)]),
        "learned": learned,
        "matrix": _plain(matrix),
        "apart": [task for task in tasks if not job.tasks[task].in_means],
        **measures,
        "by_task": by_task,
    }


def _flips(labels: Sequence[str], cells: Cells, draws: dict[str, np.ndarray]) -> dict[str, list[dict[str, Any]]]:
    """Each step of a chain, and the whole of it, compared item by item; p-values corrected over the chain."""
    pairs = list(itertools.pairwise(labels))
    if len(labels) > 2:
        pairs.append((labels[0], labels[-1]))
    found: dict[str, list[dict[str, Any]]] = {}
    for task, drawn in draws.items():
        for before, after in pairs:
            first, second = cells[before][task], cells[after][task]
            if not first.missing and not second.missing:
                found.setdefault(task, []).append(_compare(before, after, first, second, drawn))
    tested = [entry for entries in found.values() for entry in entries if entry["p"] is not None]
    for entry, adjusted in zip(tested, holm([entry["p"] for entry in tested]), strict=True):
        entry["p_holm"] = adjusted
    return found


def _compare(before: str, after: str, first: Cell, second: Cell, drawn: np.ndarray) -> dict[str, Any]:
    compared: dict[str, Any] = {
        "before": before,
        "after": after,
        "n": len(first.ids),
        "difference": _plain(second.score() - first.score()),
        "ci": interval(second.scores(drawn) - first.scores(drawn)),
        "p": None,
        "p_holm": None,
    }
    if first.binary and second.binary:
        was, is_now = first.values == 1, second.values == 1
        compared["p"] = mcnemar(was.tolist(), is_now.tolist())
        compared["lost"] = [first.ids[i] for i in np.flatnonzero(was & ~is_now)]
        compared["gained"] = [first.ids[i] for i in np.flatnonzero(~was & is_now)]
    return compared
