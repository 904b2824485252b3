"""The talking pico model of the generation room."""

from generation.conftest import reciting, speaker, talking

__all__ = ["reciting", "speaker", "talking"]
