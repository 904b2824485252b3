"""The talking pico model of the generation room."""

from generation.conftest import speaker, talking

__all__ = ["speaker", "talking"]
