from __future__ import annotations

import numpy as np
import pytest

from slm.config.evaluation import EvalJob
from slm.config.loader import from_mapping
from slm.eval.statistics import resamples
from slm.eval.summary import Cell, _chain


def cell(stage: str, right: int) -> Cell:
    """`right` of four items are right."""
    results = {"stage": stage, "headline": "em@1", "metrics": {"em@1": {"less_is_better": False}}}
    return Cell(results, list("abcd"), np.array([float(i < right) for i in range(4)]), np.ones(4))


def test_a_set_that_is_reported_apart_changes_no_mean():
    tasks = {"text_qa": {}, "asr": {"scorer": "text_qa"}, "hard": {"scorer": "text_qa", "in_means": False}}
    values = {"out": "o", "data": "d", "models": {"a": "x", "b": "y", "c": "z"}, "tasks": tasks, "bootstrap": 20}
    cells = {
        "a": {"text_qa": cell("llm", 4), "asr": cell("asr", 0), "hard": cell("asr", 0)},
        "b": {"text_qa": cell("llm", 2), "asr": cell("asr", 4), "hard": cell("asr", 2)},
        "c": {"text_qa": cell("llm", 1), "asr": cell("asr", 3), "hard": cell("asr", 0)},
    }
    draws = {task: resamples(4, 20, 0) for task in tasks}
    chain = _chain(from_mapping(EvalJob, values, "test"), ["a", "b", "c"], cells, draws)
    assert chain["apart"] == ["hard"] and chain["matrix"][1] == [0.5, 1.0, 0.5]
    assert chain["average_score"]["value"] == pytest.approx((0.25 + 0.75) / 2)
    assert chain["backward_transfer"]["value"] == pytest.approx((-0.75 - 0.25) / 2)
    assert chain["forgetting"]["value"] == pytest.approx((0.75 + 0.25) / 2)
    assert chain["by_task"]["hard"]["transfer"] == -0.5
