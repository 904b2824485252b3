"""Mini-batch k-means against scikit-learn and formulas; what is said of a codebook against numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.errors import DataError
from slm.speech.codebook import Centroids, Usage, assign


def blobs(seed: int, count: int = 12, frames: int = 3000, width: int = 6) -> np.ndarray:
    chance = np.random.default_rng(seed)
    centres = chance.normal(size=(count, width)) * 5
    return (centres[chance.integers(count, size=frames)] + chance.normal(size=(frames, width))).astype(np.float32)


def test_the_nearest_centroid_and_its_distance_are_scikit_learns(monkeypatch):
    from sklearn.metrics import pairwise_distances_argmin_min

    frames, points = blobs(0), blobs(1)[:40]
    units, distances = assign(frames, points)
    wanted, apart = pairwise_distances_argmin_min(frames.astype(np.float64), points.astype(np.float64))
    np.testing.assert_array_equal(units, wanted)
    np.testing.assert_allclose(distances, apart**2, rtol=1e-5)
    monkeypatch.setattr("slm.speech.codebook.DISTANCES", 40 * 7)  # many small pieces
    np.testing.assert_array_equal(assign(frames, points)[0], wanted)
    assert [len(part) for part in assign(frames[:0], points)] == [0, 0]


def test_steps_are_those_of_scikit_learns_partial_fit():
    from sklearn.cluster import MiniBatchKMeans

    frames = blobs(2)
    first = frames[:12].copy()
    theirs = MiniBatchKMeans(12, init=first, n_init=1, reassignment_ratio=0.0, random_state=0)
    ours = Centroids(first.copy(), np.zeros(12))
    for batch in np.split(frames, 10):
        theirs.partial_fit(batch)
        inertia = ours.update(batch)
    np.testing.assert_allclose(ours.points, theirs.cluster_centers_, rtol=1e-4, atol=1e-4)
    assert ours.counts.sum() == 3000 and ours.step == 10
    assert inertia == pytest.approx(assign(frames[-300:], ours.points)[1].mean(), rel=0.05)


def test_a_centroid_is_the_mean_of_all_that_was_nearest_to_it():
    frames = blobs(3, count=3)
    ours = Centroids(frames[[0, 500, 900]].copy(), np.zeros(3))
    sums, counts = np.zeros((3, 6)), np.zeros(3)
    for batch in np.split(frames, 6):
        units = assign(batch, ours.points)[0]
        np.add.at(sums, units, batch)
        np.add.at(counts, units, 1)
        ours.update(batch)
    np.testing.assert_allclose(ours.points, sums / counts[:, None], rtol=1e-4)
    np.testing.assert_array_equal(ours.counts, counts)


@pytest.mark.parametrize("spread", [True, False])
def test_beginnings_are_different_frames_and_follow_the_seed(spread):
    frames = np.concatenate([blobs(4)] * 2)
    points = Centroids.begin(frames, 30, 0, spread=spread).points
    assert len(np.unique(points, axis=0)) == 30
    assert all((frames == point).all(axis=1).any() for point in points)
    np.testing.assert_array_equal(Centroids.begin(frames, 30, 0, spread=spread).points, points)
    assert not np.array_equal(Centroids.begin(frames, 30, 1, spread=spread).points, points)
    with pytest.raises(DataError, match="2 different frames can't make 3 units"):
        Centroids.begin(np.repeat(frames[:2], 50, axis=0), 3, 0, spread=spread)
    with pytest.raises(DataError, match="0 different frames"):
        Centroids.begin(np.zeros((0, 6), np.float32), 3, 0, spread=spread)


def test_units_that_nothing_is_near_to_move_to_where_frames_are():
    frames = blobs(5, count=8)
    ours = Centroids(np.concatenate([frames[:4], np.full((4, 6), 1e3, np.float32)]), np.zeros(8))
    before = ours.update(frames)
    assert ours.reassign(frames, 0.01, 0) == 4
    assert (ours.counts > 0).all() and ours.counts[4:].max() == ours.counts[:4].min()
    again = Centroids(np.concatenate([frames[:4], np.full((4, 6), 1e3, np.float32)]), np.zeros(8))
    again.update(frames)
    again.reassign(frames, 0.01, 0)
    np.testing.assert_array_equal(ours.points, again.points)
    for _ in range(5):
        after = ours.update(frames)
    assert after < 0.7 * before
    assert ours.reassign(frames, 0.0, 0) == 0


@given(st.integers(0, 1000), st.integers(2, 9), st.integers(1, 4))
def test_figures_agree_with_numpy_and_scipy(seed, count, utterances):
    from scipy.stats import entropy

    chance = np.random.default_rng(seed)
    points = chance.normal(size=(count, 3)).astype(np.float32)
    rows = [chance.normal(size=(chance.integers(1, 60), 3)).astype(np.float32) for _ in range(utterances)]
    usage = Usage(count)
    units = [assign(row, points)[0] for row in rows]
    for row, found in zip(rows, units, strict=True):
        usage.add(found, row, points)
    figures, every, frames = usage.figures(), np.concatenate(units), np.concatenate(rows).astype(np.float64)
    shares = np.bincount(every, minlength=count) / len(every)
    assert figures["frames"] == len(every) and figures["used_units"] == len(set(every.tolist()))
    assert figures["entropy_bits"] == pytest.approx(entropy(shares, base=2), abs=1e-9)
    assert figures["perplexity"] == pytest.approx(np.exp(entropy(shares)))
    assert figures["entropy_share"] == pytest.approx(entropy(shares) / np.log(count), abs=1e-9)
    assert figures["unit_share"] == shares.max()
    inertia = np.square(frames - points[every]).sum(axis=1).mean()
    assert figures["inertia"] == pytest.approx(inertia)
    if len(frames) > 1:
        assert figures["inertia_share"] == pytest.approx(inertia / frames.var(axis=0).sum(), rel=1e-6)
    repeats = sum(int((np.diff(found) == 0).sum()) for found in units)
    assert figures["repeats"] == pytest.approx(repeats / len(every))


def test_without_features_there_is_no_inertia_and_without_frames_nothing():
    usage = Usage(4)
    with pytest.raises(DataError, match="no frame was heard"):
        usage.figures()
    usage.add(np.array([0, 0, 1]), None, None)
    figures = usage.figures()
    assert figures["inertia"] is None and figures["inertia_share"] is None
    assert figures["used_units"] == 2 and figures["repeats"] == pytest.approx(1 / 3)
