"""Speech in and out of units: audio files, extractors, vocoders, forced alignment.

Owns the codebooks and the two Protocols every other room speaks to; knows no corpus, no model and
no training data. `load_speech(folder)` opens a speech artifact by the names in its `speech.json`;
`load_extractor` and `load_vocoder` one of the two.
"""

from __future__ import annotations

from slm.speech.load import EXTRACTORS, VOCODERS, load_extractor, load_speech, load_vocoder

__all__ = ["EXTRACTORS", "VOCODERS", "load_extractor", "load_speech", "load_vocoder"]
