"""Text to speech: an instruction and text in, the text interleaved with its units out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slm.stages.recipe import Recipe


def _prompt(example: Mapping[str, Any]) -> str:
    return f"{example['instruction']}\n{example['transcription']}"


def _answer(example: Mapping[str, Any]) -> str:
    return str(example["interleaf"])


TTS = Recipe("tts", ("instruction", "transcription"), ("interleaf",), _prompt, _answer)
