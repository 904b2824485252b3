from __future__ import annotations

import pytest

from slm.config.base import Strict
from slm.config.interleave import (
    InterleaveConfig,
    PoissonSchedule,
    Ratio,
    SegmentsSchedule,
    TokensSchedule,
    WordsSchedule,
)
from slm.config.loader import from_mapping, load_config
from slm.errors import ConfigError


class Holder(Strict):
    interleave: InterleaveConfig = WordsSchedule()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", WordsSchedule(count=1, pauses="before")),
        ("interleave: {schedule: words, count: 3}", WordsSchedule(count=3)),
        (
            "interleave: {schedule: tokens, ratios: [{text: 1, units: 10}, {text: 4, units: 10}]}",
            TokensSchedule(schedule="tokens", ratios=[Ratio(text=1, units=10), Ratio(text=4, units=10)]),
        ),
        (
            "interleave: {schedule: poisson, span_words: 5.5, speech_marker: '[Speech]'}",
            PoissonSchedule(schedule="poisson", span_words=5.5, speech_marker="[Speech]"),
        ),
        (
            "interleave: {schedule: segments, pauses: split, continue_marker: null}",
            SegmentsSchedule(schedule="segments", pauses="split", continue_marker=None),
        ),
    ],
)
def test_the_schedule_names_the_member(tmp_path, text, expected):
    path = tmp_path / "a.yaml"
    path.write_text(text or "{}")
    assert load_config(Holder, path).interleave == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "interleave: needs schedule"),
        ({"schedule": "random"}, "needs schedule: one of 'words', 'tokens', 'poisson', 'segments', got 'random'"),
        ({"schedule": "words", "cuont": 2}, "interleave.cuont: unknown key; did you mean 'count'?"),
        (
            {"schedule": "poisson", "speech_shar": 0.1},
            "interleave.speech_shar: unknown key; did you mean 'speech_share'?",
        ),
        ({"schedule": "words", "count": 0}, "interleave.count: expected greater than or equal to 1"),
        ({"schedule": "tokens", "ratios": []}, "interleave.ratios: expected"),
        ({"schedule": "tokens", "ratios": [{"text": 0, "units": 3}]}, "interleave.ratios[0].text: expected"),
        ({"schedule": "poisson", "speech_share": 1.5}, "interleave.speech_share: expected less than or equal to 1"),
        ({"schedule": "poisson", "speech_marker": "<|7|>"}, "<|7|> is a speech unit"),
        ({"schedule": "poisson", "speech_marker": "speech"}, "a marker is one word in <…> or […], not 'speech'"),
        ({"schedule": "poisson", "speech_marker": "<a b>"}, "a marker is one word"),
        ({"schedule": "poisson", "speech_marker": "<a>", "text_marker": "<a>"}, "are both <a>"),
        ({"schedule": "segments", "continue_marker": "<a>", "correspond_marker": "<a>"}, "are both <a>"),
        ({"schedule": "segments", "correspond_marker": None}, "interleave.correspond_marker: expected"),
    ],
)
def test_what_can_not_be_meant_is_refused(values, message):
    with pytest.raises(ConfigError) as failure:
        from_mapping(Holder, {"interleave": values}, "job.yaml")
    assert message in failure.value.what
