"""Spoken question answering: units of a question in; transcript, text answer and spoken answer out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slm.stages.recipe import Recipe
from slm.tokens.vocabulary import units_to_text

SEPARATOR = "\n\n"


@dataclass(frozen=True)
class SpokenAnswer:
    """The three parts of an answer; a part that the text does not reach is empty."""

    transcript: str
    answer: str
    interleaved: str


def split_answer(text: str) -> SpokenAnswer:
    """The parts of an answer of this stage, without spaces around; the spoken part may hold the separator itself."""
    parts = [part.strip() for part in text.split(SEPARATOR, 2)]
    return SpokenAnswer(*(parts + ["", ""])[:3])


def _prompt(example: Mapping[str, Any]) -> str:
    return units_to_text(example["input_unit"])


def _answer(example: Mapping[str, Any]) -> str:
    return SEPARATOR.join((example["input_pseudo"], example["output_pseudo"], example["output_interleaf"]))


SQA = Recipe(
    "sqa",
    ("input_unit",),
    ("input_pseudo", "output_pseudo", "output_interleaf"),
    _prompt,
    _answer,
    form="spoken_answer",
)
