from __future__ import annotations

import numpy as np
import pytest

from slm.eval import forgetting as f

# Rows: base, asr, tts, sqa. Columns: text_qa (base), asr, tts, sqa.
R = np.array(
    [
        [0.9, 0.1, 0.0, 0.0],
        [0.3, 0.6, 0.2, 0.1],
        [0.5, 0.7, 0.8, 0.3],
        [0.4, 0.5, 0.6, 0.9],
    ]
)
LEARNED = [0, 1, 2, 3]


def test_against_numbers_worked_by_hand():
    assert f.average_score(R, LEARNED) == pytest.approx((0.4 + 0.5 + 0.6 + 0.9) / 4)
    assert f.backward_transfer(R, LEARNED) == pytest.approx((-0.5 - 0.1 - 0.2) / 3)
    assert f.forgetting(R, LEARNED) == pytest.approx((0.5 + 0.2 + 0.2) / 3)
    assert f.retention(R, LEARNED) == pytest.approx((0.4 / 0.9 + 0.5 / 0.6 + 0.6 / 0.8) / 3)
    assert f.forward_transfer(R, LEARNED) == pytest.approx((0.0 + (0.2 - 0.0) + (0.3 - 0.0)) / 3)


def test_a_shorter_chain():
    """After two stages only text QA can have been forgotten."""
    assert f.backward_transfer(R[:2], LEARNED) == pytest.approx(-0.6)
    assert f.forgetting(R[:2], LEARNED) == pytest.approx(0.6)
    assert f.average_score(R[:2], LEARNED) == pytest.approx((0.3 + 0.6) / 2)


def test_two_tasks_of_one_stage_each_count():
    both = np.hstack([R, R[:, :1] / 2])
    assert f.backward_transfer(both, [*LEARNED, 0]) == pytest.approx((-0.5 - 0.1 - 0.2 - 0.25) / 4)


def test_missing_is_left_out_and_never_zero():
    holes = R.copy()
    holes[3, 1] = np.nan
    assert f.backward_transfer(holes, LEARNED) == pytest.approx((-0.5 - 0.2) / 2)
    assert f.forgetting(holes, LEARNED) == pytest.approx((0.5 + 0.2) / 2)
    assert f.average_score(holes, LEARNED) == pytest.approx((0.4 + 0.6 + 0.9) / 3)
    assert np.isnan(f.backward_transfer(np.full((4, 4), np.nan), LEARNED))
    base = R.copy()
    base[0, 1:] = np.nan
    assert f.forgetting(base, LEARNED) == pytest.approx(f.forgetting(R, LEARNED))


def test_retention_needs_something_to_keep():
    low = R.copy()
    low[0, 0] = 0.0
    kept = f.task_retention(low, LEARNED)
    assert np.isnan(kept[0]) and np.isnan(kept[3])
    assert f.task_retention(R, LEARNED, chance=0.3)[0] == pytest.approx(0.1 / 0.6)


def test_bootstrap_axes():
    many = np.stack([R, R * 0.5])
    assert f.backward_transfer(many, LEARNED) == pytest.approx([-0.8 / 3, -0.4 / 3])
    assert f.forgetting(many, LEARNED) == pytest.approx([0.3, 0.15])
    assert f.retention(many, LEARNED)[0] == pytest.approx(f.retention(many, LEARNED)[1])
