"""What a chain of stages kept and lost: formulas over the matrix R.

R[i, j] is the score, higher is better, of the model after stage i on task j; NaN means not measured.
`learned[j]` is the stage that task j belongs to, so R[learned[j], j] is the score when it was learned. R may have
leading axes (bootstrap samples); every function works on the last two. A task with a missing score is left out of
a mean, never counted as 0.

Ref: backward and forward transfer: Lopez-Paz & Ranzato 2017 (GEM); forgetting: Chaudhry et al. 2018.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def mean_known(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN when nothing is."""
    known = ~np.isnan(values)
    count = known.sum(-1)
    total = np.where(known, values, 0.0).sum(-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def average_score(scores: np.ndarray, learned: Sequence[int]) -> np.ndarray:
    """Mean of the last row over the tasks that were learned by then (TRACE's overall performance)."""
    last = scores.shape[-2] - 1
    return mean_known(scores[..., last, :][..., np.asarray(learned) <= last])


def task_transfer(scores: np.ndarray, learned: Sequence[int]) -> np.ndarray:
    """R[T, j] - R[learned[j], j] of every task; NaN for tasks of the last stage, which can't be forgotten yet."""
    last = scores.shape[-2] - 1
    at = np.asarray(learned)
    tasks = np.arange(scores.shape[-1])
    change = scores[..., last, :] - scores[..., np.minimum(at, last), tasks]
    return np.where(at < last, change, np.nan)


def backward_transfer(scores: np.ndarray, learned: Sequence[int]) -> np.ndarray:
    """Mean over earlier tasks of R[T, j] - R[learned[j], j] (GEM): negative is forgetting."""
    return mean_known(task_transfer(scores, learned))


def task_forgetting(scores: np.ndarray, learned: Sequence[int]) -> np.ndarray:
    """max over earlier stages l of R[l, j], minus R[T, j], of every earlier task (Chaudhry); NaN for the last's."""
    last = scores.shape[-2] - 1
    earlier = scores[..., :last, :]
    best = np.where(np.isnan(earlier), -np.inf, earlier).max(-2)
    lost = np.where(np.isinf(best), np.nan, best - scores[..., last, :])
    return np.where(np.asarray(learned) < last, lost, np.nan)


def forgetting(scores: np.ndarray, learned: Sequence[int]) -> np.ndarray:
    """Mean of `task_forgetting`."""
    return mean_known(task_forgetting(scores, learned))


def task_retention(scores: np.ndarray, learned: Sequence[int], chance: float = 0.0) -> np.ndarray:
    """(R[T, j] - c) / (R[learned[j], j] - c) of every earlier task; NaN where nothing was above chance."""
    last = scores.shape[-2] - 1
    at = np.asarray(learned)
    then = scores[..., np.minimum(at, last), np.arange(scores.shape[-1])] - chance
    kept = scores[..., last, :] - chance
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((then > 0) & (at < last), kept / then, np.nan)


def retention(scores: np.ndarray, learned: Sequence[int], chance: float = 0.0) -> np.ndarray:
    """Mean of `task_retention`."""
    return mean_known(task_retention(scores, learned, chance))


def forward_transfer(scores: np.ndarray, learned: Sequence[int]) -> np.ndarray:
    """Mean over later tasks of R[learned[j] - 1, j] - R[0, j] (GEM, with the base as the initial model)."""
    at = np.asarray(learned)
    later = (at > 0) & (at < scores.shape[-2])
    tasks = np.arange(scores.shape[-1])
    gain = scores[..., np.clip(at - 1, 0, scores.shape[-2] - 1), tasks] - scores[..., 0, :]
    return mean_known(np.where(later, gain, np.nan))
