from __future__ import annotations

import numpy as np
import pytest

from slm.generation.output import interleaving_faults, to_wave


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("the<|5|><|9|> cat<|3|>", []),
        ("the cat<|3|>", []),
        ("", ["empty"]),
        ("the cat", ["no_units"]),
        ("<|3|>the<|4|>", ["units_first"]),
        ("the<|4|> cat", ["text_last"]),
        ("<|3|>the", ["units_first", "text_last"]),
    ],
)
def test_faults_of_an_interleaving(text, faults):
    assert interleaving_faults(text) == faults


def test_a_wave_from_units():
    class Beep:
        def wave(self, units, durations=None):
            return [0.5] * (2 * len(units))

    assert to_wave([1, 2], Beep()).dtype == np.float32
    assert len(to_wave([1, 2], Beep())) == 4
    assert len(to_wave([], Beep())) == 0
