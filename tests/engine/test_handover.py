"""From one stage to the next nothing is rounded away, and a stage in which nothing moves is refused."""

from __future__ import annotations

import pytest

MODES = {
    "ZeRO-3": {"model": {"vocabulary_parallel": False}},
    "ZeRO-2": {"model": {"vocabulary_parallel": False}, "zero": "zero2.json"},
    "tables split over the ranks": {"model": {"vocabulary_parallel": True}},
    "new rows alone": {"model": {"vocabulary": "new_rows"}},
}


@pytest.mark.parametrize(("mode", "precision"), [*((mode, "bf16") for mode in sorted(MODES)), ("ZeRO-3", "fp32")])
def test_a_stage_that_moves_nothing_has_the_previous_stages_weights_and_is_refused(mode, precision, train, tmp_path):
    """The rate is so small that no fp32 weight changes: what is compared with the artifact is what was handed over."""
    settings = MODES[mode]
    first = train(tmp_path / "asr", steps=3, **settings)
    assert first.code == 0, first.text
    model = {**settings["model"], "previous": str(first.out)}
    second = train(tmp_path / "tts", steps=1, lr=1e-38, precision=precision, **{**settings, "model": model})
    assert second.code == 6, second.text
    assert "changed in the whole stage" in second.text and "no weight of the group" in second.text
