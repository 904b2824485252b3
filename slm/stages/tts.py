"""Text to speech: an instruction and text in, the text interleaved with its units out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slm.stages.recipe import Recipe
from slm.tokens.vocabulary import split_runs, units_to_text


def _prompt(example: Mapping[str, Any]) -> str:
    return f"{example['instruction']}\n{example['transcription']}"


def _answer(example: Mapping[str, Any]) -> str:
    return str(example["interleaf"])


def halves(example: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """Cut an example between two segments (a text and the units that speak it), where its units are halved best.

    Each half asks for the words that it speaks. So the words of the transcription and those of the interleaved
    text have to correspond one by one, else there is no telling where to cut the one for the other.

    Returns:
        Both halves, with all other columns as they were; None when there is one segment only, or the words differ.
    """
    segments = split_runs(example["interleaf"])
    words = str(example["transcription"]).split()
    counts = [len(text.split()) for text, _ in segments]
    if len(words) != sum(counts):
        return None
    lengths = [len(units) for _, units in segments]
    cuts = [at for at in range(1, len(segments)) if sum(counts[:at]) and sum(counts[at:]) and sum(lengths[at:])]
    if not cuts:
        return None
    cut = min(cuts, key=lambda at: abs(sum(lengths[:at]) - sum(lengths[at:])))
    said, woven = (
        sum(counts[:cut]),
        ["".join(text + units_to_text(units) for text, units in part) for part in (segments[:cut], segments[cut:])],
    )
    first = {"transcription": " ".join(words[:said]), "interleaf": woven[0]}
    second = {"transcription": " ".join(words[said:]), "interleaf": woven[1].lstrip()}
    return {**example, **first}, {**example, **second}


TTS = Recipe("tts", ("instruction", "transcription"), ("interleaf",), _prompt, _answer, halves, "interleaved")
