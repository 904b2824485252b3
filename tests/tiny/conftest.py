"""A corpus of a few utterances and the data made of it, built once for all tests of the room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from slm.config.tiny import TinyDataJob

PICO = {
    "seed": 3,
    "workers": 2,
    "corpus": {
        "voices": ["en-us", "en-us+f2"],
        "held_out_voices": ["en-us+m7"],
        "rates": [185, 215],
        "pitches": [50],
        "questions": 8,
        "asr": {"count": 24},
        "tts": {"count": 24},
        "sqa_variants": 1,
        "question_copies": 2,
        "instructions": 12,
        "test_asr": 6,
        "test_asr_random": 4,
        "test_tts": 4,
        "test_questions": 6,
        "test_instructions": 6,
    },
    "speech": {"count": 24, "fit_tries": 1, "griffin_lim_steps": 8},
    "tokenizer": {"size": 400},
    "shards": {"group_size": 8},
}


def pico_job(out: Path, **changes) -> TinyDataJob:
    """The pico job; a section among the changes is laid over the section."""
    values: dict = {**PICO, "out": str(out)}
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    return TinyDataJob.model_validate(values)


@pytest.fixture(scope="session")
def make_job() -> Callable[..., TinyDataJob]:
    return pico_job


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    from slm.tiny.build import build_tiny

    out = tmp_path_factory.mktemp("tiny") / "data"
    assert build_tiny(pico_job(out)) is True
    return out
