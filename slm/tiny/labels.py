"""Which part of which word sounds when: labels for extractors that learn to tell words apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from slm.speech.audio import SAMPLE_RATE
from slm.tokens.alignment import Word

PARTS = 4
"""Every word is cut into so many parts of equal length, each with a label of its own."""


def word_labels(words: Sequence[Sequence[Word]], waves: Sequence[np.ndarray], hop: int) -> list[np.ndarray]:
    """One label per unit period of each utterance, int64 [ceil(samples / hop)].

    Args:
        words: the words of each utterance, in order, none missing.
        waves: the utterances.
        hop: samples of a unit period.
    """
    known = {text: number for number, text in enumerate(sorted({word.text for row in words for word in row}))}
    labels = []
    for row, wave in zip(words, waves, strict=True):
        middles = (np.arange(-(-len(wave) // hop)) + 0.5) * hop / SAMPLE_RATE
        starts = np.array([word.start_s for word in row])
        ends = np.array([word.end_s for word in row])
        place = np.clip(np.searchsorted(starts, middles, side="right") - 1, 0, len(row) - 1)
        passed = (middles - starts[place]) / np.maximum(ends[place] - starts[place], 1e-6)
        part = np.clip((passed * PARTS).astype(np.int64), 0, PARTS - 1)
        labels.append(np.array([known[word.text] for word in row])[place] * PARTS + part)
    return labels
