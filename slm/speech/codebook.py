"""Mini-batch k-means and what tells a good codebook: distances, use and entropy of units.

The update is Sculley's (Web-scale k-means clustering, WWW 2010): each centroid is the running mean of all frames that
were ever nearest to it. It is scikit-learn's `MiniBatchKMeans.partial_fit` (a test holds them together) in a form whose
whole state is four arrays and a number, so that a fit can be saved without pickles and continued to the bit, and whose
distances can be computed on a GPU. Sums are made on the CPU in float64 and a fixed order: a GPU's atomic additions are
not repeatable.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from slm.errors import DataError

DISTANCES = 1 << 25
"""Distances that are held at once."""
REASSIGN_EVERY = 10
"""Steps between two moves of rarely used centroids."""
REASSIGN_UNTIL = 0.8
"""Share of the steps after which none moves any more: a moved centroid needs time to settle."""


def assign(frames: np.ndarray, centroids: np.ndarray, device: str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroid of each frame by Euclidean distance.

    Args:
        frames: float32 [frames, width].
        centroids: float32 [count, width].
        device: where distances are computed.

    Returns:
        (units int64 [frames], squared distances float64 [frames]).
    """
    import torch

    if not len(frames):
        return np.zeros(0, np.int64), np.zeros(0)
    points = torch.from_numpy(np.ascontiguousarray(centroids, np.float32)).to(device)
    norms = (points**2).sum(dim=1)
    found = []
    for part in torch.from_numpy(np.ascontiguousarray(frames, np.float32)).split(max(1, DISTANCES // len(points))):
        found.append(torch.argmin(norms - 2.0 * (part.to(device) @ points.T), dim=1).cpu())
    units = torch.cat(found).numpy()
    # |x|² - 2xc + c² cancels where x is near c; the difference itself does not.
    distances = [
        np.square(frames[at : at + 4096].astype(np.float64) - centroids[units[at : at + 4096]]).sum(axis=1)
        for at in range(0, len(frames), 4096)
    ]
    return units, np.concatenate(distances)


@dataclass
class Centroids:
    """Where units are, and what made them so.

    Attributes:
        points: float32 [count, width].
        counts: float64 [count], frames that each one is the mean of.
        step: steps made.
    """

    points: np.ndarray
    counts: np.ndarray
    step: int = 0

    @classmethod
    def begin(cls, sample: np.ndarray, count: int, seed: int, *, spread: bool) -> Centroids:
        """Frames of a sample to begin with.

        Args:
            sample: float32 [frames, width].
            count: number of units.
            seed: chooses the frames.
            spread: far from each other (k-means++, Arthur and Vassilvitskii 2007) instead of at random.

        Raises:
            DataError: fewer different frames than units.
        """
        distinct = np.unique(sample, axis=0) if len(sample) else sample
        if len(distinct) < count:
            raise DataError(
                f"{len(distinct)} different frames can't make {count} units", mend="give more speech or fewer units"
            )
        chance = np.random.default_rng([seed, 1])
        if spread:
            from sklearn.cluster import kmeans_plusplus

            points = kmeans_plusplus(sample, count, random_state=int(chance.integers(2**31)))[0]
        else:
            points = distinct[np.sort(chance.choice(len(distinct), count, replace=False))]
        return cls(np.asarray(points, np.float32), np.zeros(count))

    def update(self, frames: np.ndarray, device: str = "cpu") -> float:
        """One step: every centroid goes to the mean of all frames that were ever nearest to it.

        Args:
            frames: float32 [frames, width], a batch.

        Returns:
            The batch's mean squared distance to the centroids as they were.
        """
        units, distances = assign(frames, self.points, device)
        order = np.argsort(units, kind="stable")
        seen, first, new = np.unique(units[order], return_index=True, return_counts=True)
        sums = np.add.reduceat(frames[order].astype(np.float64), first, axis=0)
        total = self.counts[seen] + new
        old = self.points[seen].astype(np.float64) * self.counts[seen, None]
        self.points[seen] = ((old + sums) / total[:, None]).astype(np.float32)
        self.counts[seen] = total
        self.step += 1
        return float(distances.mean())

    def reassign(self, frames: np.ndarray, share: float, seed: int) -> int:
        """Move units that are hardly used to frames of the batch, each of which then has the least count of the others.

        Args:
            frames: float32 [frames, width].
            share: of the mean count, below which a unit is hardly used.
            seed: chooses the frames, together with the step.

        Returns:
            How many moved.
        """
        rare = np.flatnonzero(self.counts < share * self.counts.mean())[: len(frames) // 2]
        if not len(rare):
            return 0
        chance = np.random.default_rng([seed, 2, self.step])
        self.points[rare] = frames[chance.choice(len(frames), len(rare), replace=False)]
        self.counts[rare] = np.delete(self.counts, rare).min()
        return len(rare)


@dataclass
class Usage:
    """What a codebook does to frames, summed over a stream.

    Attributes:
        count: number of units.
        frames, changes: frames seen, and those whose unit is another than the frame's before.
        used: int64 [count], frames of each unit.
        distance: sum of squared distances to the nearest centroid; NaN where frames have no features.
    """

    count: int
    frames: int = 0
    changes: int = 0
    used: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    distance: float = 0.0
    _sum: np.ndarray | float = 0.0
    _squares: float = 0.0

    def __post_init__(self) -> None:
        self.used = np.zeros(self.count, np.int64)

    def add(self, units: np.ndarray, features: np.ndarray | None, centroids: np.ndarray | None) -> None:
        """Count an utterance.

        Args:
            units: int [frames].
            features: float32 [frames, width] that they are of.
            centroids: float32 [count, width].
        """
        self.frames += len(units)
        self.used += np.bincount(units, minlength=self.count)
        self.changes += int(len(units) > 0) + int(np.count_nonzero(np.diff(units)))
        if features is None or centroids is None:
            self.distance = math.nan
            return
        exact = features.astype(np.float64)
        self.distance += float(np.square(exact - centroids[units]).sum())
        self._sum = self._sum + exact.sum(axis=0)
        self._squares += float(np.square(exact).sum())

    def figures(self) -> dict[str, float | int | None]:
        """What tells a good codebook.

        Returns:
            inertia: mean squared distance of a frame to its centroid; inertia_share: of the features' variance, 0 is
            lossless, 1 is no codebook at all; used_units; entropy_bits of the units, and what it allows at most is
            log2(count); perplexity = 2 to its power, the number of equally frequent units that would be as
            diverse; unit_share: the greatest share of one unit; repeats: share of the frames that repeat a unit.

        Raises:
            DataError: nothing was seen.
        """
        if not self.frames:
            raise DataError("no frame was heard: nothing can be said of the codebook")
        shares = self.used[self.used > 0] / self.frames
        entropy = float(-(shares * np.log2(shares)).sum())
        inertia = spread = None
        if not math.isnan(self.distance):
            inertia = self.distance / self.frames
            mean = np.asarray(self._sum) / self.frames
            variance = self._squares / self.frames - float(np.square(mean).sum())
            spread = inertia / variance if variance > 0 else None
        return {
            "frames": self.frames,
            "count": self.count,
            "inertia": inertia,
            "inertia_share": spread,
            "used_units": int((self.used > 0).sum()),
            "entropy_bits": entropy,
            "entropy_share": entropy / math.log2(self.count),
            "perplexity": 2.0**entropy,
            "unit_share": float(shares.max()),
            "repeats": 1.0 - self.changes / self.frames,
        }
