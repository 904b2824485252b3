"""The best CTC path of a known label sequence, for a batch, in plain torch.

A CTC path gives every frame a label or the blank; it spells the labels when runs are merged and
blanks are dropped (Graves et al. 2006). Its states are blank, label 1, blank, label 2, …, blank; a
path stays, goes on by one, or leaps over a blank between two different labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Lattice:
    """The states of one utterance: state 2i+1 is label i, the even ones are what may stand between.

    Attributes:
        columns: which column of the scores each state reads, [2 labels + 1].
        leaps: whether a state may be entered from the one two before it, [2 labels + 1].
    """

    columns: tuple[int, ...]
    leaps: tuple[bool, ...]

    @classmethod
    def of(cls, labels: Sequence[int], gaps: Sequence[int]) -> Lattice:
        """The lattice of `labels`; `gaps` [labels + 1] are the columns before, between and after them."""
        columns, leaps = [gaps[0]], [False]
        for i, label in enumerate(labels):
            columns += [label, gaps[i + 1]]
            leaps += [i > 0 and label != labels[i - 1], False]
        return cls(tuple(columns), tuple(leaps))

    @property
    def least_frames(self) -> int:
        """Frames that the shortest path has: one a label, one more between equal neighbours."""
        labels = len(self.columns) // 2
        return labels + sum(not leap for leap in self.leaps[3::2])


def best_paths(scores: torch.Tensor, frames: Sequence[int], lattices: Sequence[Lattice]) -> list[np.ndarray]:
    """For each utterance the state of every frame on the path of the greatest sum of scores.

    Args:
        scores: float [utterances, frames, columns], logarithms of probabilities; they may lie on a GPU.
        frames: how many frames of each utterance are real; at least its lattice's `least_frames`.
        lattices: one an utterance, each of at least one label.

    Returns:
        int64 [frames of the utterance] each, never falling.
    """
    device, batch = scores.device, len(lattices)
    states = [len(lattice.columns) for lattice in lattices]
    columns = torch.zeros(batch, max(states), dtype=torch.long)
    leaps = torch.zeros(batch, max(states), dtype=torch.bool)
    for b, lattice in enumerate(lattices):
        columns[b, : states[b]] = torch.tensor(lattice.columns)
        leaps[b, : states[b]] = torch.tensor(lattice.leaps)
    columns, leaps = columns.to(device), leaps.to(device)
    count = torch.tensor(frames, device=device)

    never = torch.tensor(float("-inf"), device=device)
    best = torch.full((batch, max(states) + 2), float("-inf"), device=device)  # two states that are never left
    best[:, 2:4] = scores[:, 0].float().gather(1, columns[:, :2])
    steps = torch.zeros(scores.shape[1], batch, max(states), dtype=torch.uint8, device=device)
    for t in range(1, max(frames)):
        ways = torch.stack([best[:, 2:], best[:, 1:-1], torch.where(leaps, best[:, :-2], never)])
        reached, step = ways.max(dim=0)
        reached = reached + scores[:, t].float().gather(1, columns)
        real = (t < count)[:, None]
        best[:, 2:] = torch.where(real, reached, best[:, 2:])
        steps[t] = torch.where(real, step, 0)

    last = torch.tensor(states, device=device)[:, None] + 1  # index of the last state, after the two
    ends = torch.cat([best.gather(1, last), best.gather(1, last - 1)], dim=1)
    state = last[:, 0] - 2 - ends.argmax(dim=1)
    path = torch.empty(scores.shape[1], batch, dtype=torch.long, device=device)
    for t in reversed(range(max(frames))):
        path[t] = state
        state = state - steps[t].gather(1, state[:, None])[:, 0]
    found = path.cpu().numpy()
    return [found[: frames[b], b] for b in range(batch)]
