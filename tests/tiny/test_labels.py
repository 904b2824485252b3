from __future__ import annotations

import numpy as np

from slm.tiny.labels import word_labels
from slm.tokens.alignment import Word


def test_every_period_has_the_part_of_the_word_in_its_middle():
    words = [[Word("a", 0.0, 0.32), Word("b", 0.32, 0.395)], [Word("b", 0.0, 0.16)]]
    waves = [np.zeros(6400), np.zeros(2561)]
    first, second = word_labels(words, waves, 640)
    assert first.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 5, 7]
    assert second.tolist() == [4, 5, 6, 7, 7]  # what lies past the last word is its last part
