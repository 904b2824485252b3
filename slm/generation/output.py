"""What a model said, taken apart: text, units, and the faults of the interleaving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from slm.generation.generate import Generated
from slm.tokens.chat import decode
from slm.tokens.interleave import unweave
from slm.tokens.vocabulary import split_runs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from slm.speech.vocoder import Vocoder


@dataclass(frozen=True)
class Output:
    """A continuation as text.

    Attributes:
        raw: everything, units written as `<|u|>`.
        text: without the units, and without spaces around.
        units: the units, in order.
        finished: it ended by itself, not at the limit.
    """

    raw: str
    text: str
    units: list[int]
    finished: bool


def split_output(tokenizer: PreTrainedTokenizerFast, generated: Generated) -> Output:
    """Decode a continuation and split it into text and units."""
    raw = decode(tokenizer, generated.ids)
    text, units = unweave(raw)
    return Output(raw, text.strip(), units, generated.finished)


def interleaving_faults(text: str) -> list[str]:
    """What is wrong with an interleaved text: `empty`, `no_units`, `units_first`, `text_last`.

    Text that opens with units speaks before it has a word; text that ends in words leaves them unspoken.
    """
    runs = split_runs(text)
    if not text.strip():
        return ["empty"]
    if not any(units for _, units in runs):
        return ["no_units"]
    faults = []
    if not runs[0][0].strip():
        faults.append("units_first")
    if not runs[-1][1]:
        faults.append("text_last")
    return faults


def to_wave(units: Sequence[int], vocoder: Vocoder) -> np.ndarray:
    """Units through the vocoder: float32 at 16 kHz, of length 0 without units."""
    if not len(units):
        return np.zeros(0, dtype=np.float32)
    return np.asarray(vocoder.wave(units), dtype=np.float32)
