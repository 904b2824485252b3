"""Instruction wordings for data sets that bring none, and the speaking wordings for those that bring ASR ones."""

from __future__ import annotations

from collections.abc import Sequence

ASR_WORDINGS = (
    "Write down what you hear.",
    "Transcribe the speech.",
    "What is being said here?",
    "Put this recording into words.",
    "Type out the spoken sentence.",
    "Turn the speech into text.",
    "Note down these spoken words.",
    "Give me the transcript.",
    "Which words were spoken?",
    "Listen and write the sentence.",
)
TTS_WORDINGS = (
    "Say this out loud.",
    "Speak the following text.",
    "Read this sentence aloud.",
    "Pronounce these words.",
    "Turn the text into speech.",
    "Let me hear this sentence.",
    "Voice the following words.",
    "Recite this text.",
    "Speak this sentence clearly.",
    "Read the words out.",
)


def wording(wordings: Sequence[str], row: int) -> str:
    """The wording of a row: they take turns, so each is used equally often."""
    return wordings[row % len(wordings)]
