"""Text to text: the base model's own abilities, trained first and replayed later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slm.stages.recipe import Recipe


def _prompt(example: Mapping[str, Any]) -> str:
    return str(example["input"])


def _answer(example: Mapping[str, Any]) -> str:
    return str(example["output"])


LLM = Recipe("llm", ("input",), ("output",), _prompt, _answer)
