"""What is planned of a source: its epochs, their windows, and how far a run has come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class EpochPlan:
    """One pass over a source.

    Attributes:
        order: int64, (groups,): group numbers, window after window.
        rows, samples, tokens: (windows + 1,): how many come before each window.
        lane_starts: (lanes + 1,): rows of the list before each lane's part of it.
    """

    order: np.ndarray
    rows: list[int]
    samples: list[int]
    tokens: list[int]
    lane_starts: list[int]


@dataclass(frozen=True)
class WindowPlan:
    """The packed rows of one window.

    Attributes:
        groups: int64, (g,): group numbers in the set.
        row_starts: int64, (rows + 1,): row r holds the documents `row_starts[r]:row_starts[r + 1]`.
        group: int64, (documents,): which of `groups` a document is in.
        sample: int64, (documents,): which sample of that group it is.
        start, stop: int64, (documents,): its tokens within the group.
        token_ends: int64, (rows + 1,): tokens before each row.
    """

    groups: np.ndarray
    row_starts: np.ndarray
    group: np.ndarray
    sample: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    token_ends: np.ndarray


@dataclass(frozen=True)
class Progress:
    """How far a source has been read.

    Attributes:
        rows, samples, tokens: read so far.
        epochs: passes, with the fraction of the one under way, counted in rows.
        wraps: times the source has started over.
    """

    rows: int
    samples: int
    tokens: int
    epochs: float
    wraps: int


class Held(NamedTuple):
    """Documents and tokens of a stretch of rows."""

    samples: int
    tokens: int
