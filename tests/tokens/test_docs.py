"""The page on interleaving shows what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from slm.config.base import Strict
from slm.config.interleave import InterleaveConfig
from slm.config.loader import from_mapping
from slm.tokens.alignment import Word
from slm.tokens.interleave import weave

PAGE = Path(__file__).resolve().parents[2] / "docs" / "interleaving.md"
EXAMPLES = re.findall(r"```yaml\n(.*?)```\n```\n(.*?)\n```", PAGE.read_text(), re.DOTALL)
STARTS = {"the": (0.0, 0.08), "cat": (0.08, 0.32), "sat": (0.40, 0.64), "on": (0.64, 0.72)}
WORDS = [*(Word(text, *times) for text, times in STARTS.items()), Word("the", 0.72, 0.8), Word("mat", 0.8, 1.2)]
UNITS = [7, 3, 3, 9, 0, 5, 5, 1, 8, 7, 2, 2, 4, 4, 6]


class Holder(Strict):
    interleave: InterleaveConfig


@pytest.mark.parametrize(("config", "expected"), EXAMPLES)
def test_the_page_shows_what_is_woven(config, expected):
    schedule = from_mapping(Holder, {"interleave": yaml.safe_load(config)}, str(PAGE)).interleave
    by_word = re.compile(r" ?\S+").findall
    assert weave(WORDS, UNITS, 12.5, schedule, repeats="removed", key="utt-1", split=by_word) == expected


def test_every_schedule_is_drawn():
    assert {yaml.safe_load(config)["schedule"] for config, _ in EXAMPLES} == {"words", "tokens", "poisson", "segments"}
