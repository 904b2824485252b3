from __future__ import annotations

from itertools import groupby, product

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.speech.viterbi import Lattice, best_paths

BLANK, LABELS = 0, 3


def lattice(labels: list[int]) -> Lattice:
    return Lattice.of(labels, [BLANK] * (len(labels) + 1))


def spelled(columns) -> list[int]:
    """What a path spells: runs merged, then blanks dropped."""
    return [column for column, _ in groupby(columns) if column != BLANK]


@st.composite
def utterances(draw):
    """(labels, frames): any number of frames from the least on, few enough for all paths to be tried."""
    labels = draw(st.lists(st.integers(1, LABELS - 1), min_size=1, max_size=4))
    return labels, draw(st.integers(lattice(labels).least_frames, 7))


@settings(deadline=None, max_examples=60)
@given(st.lists(utterances(), min_size=1, max_size=4), st.integers(0, 2**31))
def test_the_best_of_all_paths(batch, seed):
    longest = max(frames for _, frames in batch)
    scores = torch.log_softmax(torch.randn(len(batch), longest, LABELS, generator=torch.manual_seed(seed)), dim=-1)
    lattices = [lattice(labels) for labels, _ in batch]
    paths = best_paths(scores, [frames for _, frames in batch], lattices)
    for b, (labels, frames) in enumerate(batch):
        rows = scores[b, :frames].double().numpy()
        tried = [p for p in product(range(LABELS), repeat=frames) if spelled(p) == labels]
        best = max(sum(rows[t, column] for t, column in enumerate(path)) for path in tried)
        columns = [lattices[b].columns[state] for state in paths[b]]
        assert len(columns) == frames and spelled(columns) == labels
        np.testing.assert_allclose(sum(rows[t, column] for t, column in enumerate(columns)), best, atol=1e-5)
        assert (np.diff(paths[b]) >= 0).all() and paths[b][0] <= 1


@given(st.lists(st.integers(1, LABELS - 1), min_size=1, max_size=4))
def test_the_least_number_of_frames(labels):
    least = lattice(labels).least_frames
    lengths = (n for n in range(9) if any(spelled(p) == labels for p in product(range(LABELS), repeat=n)))
    assert least == next(lengths)


def test_the_best_path_is_part_of_the_sum_over_paths():
    """torch's CTC loss sums over all paths: it is above the best one, and equal when there is only one."""
    generator = torch.manual_seed(0)
    labels = [3, 3, 1, 7, 2, 2, 5]
    for frames in (9, 40):
        scores = torch.log_softmax(3 * torch.randn(1, frames, 8, generator=generator), dim=-1)
        (path,) = best_paths(scores, [frames], [lattice(labels)])
        best = sum(float(scores[0, t, lattice(labels).columns[state]]) for t, state in enumerate(path))
        total = -torch.nn.functional.ctc_loss(
            scores.transpose(0, 1), torch.tensor([labels]), [frames], [len(labels)], reduction="sum"
        )
        if frames == lattice(labels).least_frames:
            assert abs(best - float(total)) < 1e-4
        else:
            assert best < float(total)


def test_padding_and_neighbours_change_nothing():
    scores = torch.log_softmax(torch.randn(3, 30, 6, generator=torch.manual_seed(1)), dim=-1)
    lattices = [lattice(labels) for labels in ([1, 2, 3, 4, 5, 1, 2], [2], [5, 5])]
    frames = [30, 12, 21]
    together = best_paths(scores, frames, lattices)
    for b in range(3):
        (alone,) = best_paths(scores[b : b + 1, : frames[b]], frames[b : b + 1], lattices[b : b + 1])
        np.testing.assert_array_equal(together[b], alone)
