"""What a model said, taken apart: text, units, and the faults of the interleaving."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from slm.generation.generate import Generated
from slm.tokens.chat import decode
from slm.tokens.interleave import unweave
from slm.tokens.vocabulary import split_runs, text_to_units, unit_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from slm.speech.vocoder import Vocoder
    from slm.tokens.vocabulary import Vocabulary

_SPELLED = re.compile(r"<\|([0-9]+\|>)")


@dataclass(frozen=True)
class Output:
    """A continuation as text.

    Attributes:
        raw: everything, units written as `<|u|>`; text that a model spelled like a unit is written `<\\|u|>`.
        text: without the units, and without spaces around.
        units: the units, in order; all of them in the model's unit set.
        finished: it ended by itself, not at the limit.
        foreign: tokens beyond the vocabulary, which say nothing, and texts that are spelled like a unit.
        tokens: how many were said.
    """

    raw: str
    text: str
    units: list[int]
    finished: bool
    foreign: int = 0
    tokens: int = 0


def split_output(tokenizer: PreTrainedTokenizerFast, generated: Generated, vocabulary: Vocabulary) -> Output:
    """Decode a continuation and split it into text and units; what is a unit, the ids say."""
    ids = [token for token in generated.ids if token < vocabulary.size]
    raw = decode(tokenizer, ids)
    foreign = len(generated.ids) - len(ids)
    units = vocabulary.to_units(ids)
    if text_to_units(raw) != units:
        raw, spelled = _marked(tokenizer, ids, vocabulary)
        foreign += spelled
    return Output(raw, unweave(raw)[0].strip(), units, generated.finished, foreign, len(generated.ids))


def _marked(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int], vocabulary: Vocabulary) -> tuple[str, int]:
    """The decoded ids with a mark in texts that are spelled like a unit, and the number of such texts."""
    written: list[str] = []
    before: int | None = None
    count = 0
    for is_unit, run in groupby(ids, vocabulary.is_unit):
        tokens = list(run)
        if is_unit:
            written += [unit_token(unit) for unit in vocabulary.to_units(tokens)]
            before = tokens[-1]
            continue
        # With the token before it: some tokenizers drop the space with which a decoded text begins.
        context = [] if before is None else [before]
        text = decode(tokenizer, [*context, *tokens])[len(decode(tokenizer, context)) :]
        text, found = _SPELLED.subn(r"<\\|\1", text)
        written.append(text)
        count += found
    return "".join(written), count


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
