"""Speech to text: an instruction and units in, their transcription out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slm.stages.recipe import Recipe
from slm.tokens.vocabulary import units_to_text


def _prompt(example: Mapping[str, Any]) -> str:
    return f"{example['instruction']}\n{units_to_text(example['discrete_unit'])}"


def _answer(example: Mapping[str, Any]) -> str:
    return str(example["transcription"])


ASR = Recipe("asr", ("instruction", "discrete_unit"), ("transcription",), _prompt, _answer)
