"""Cutting a spoken answer in two: each half asks for the words that it speaks, and nothing is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slm.stages.tts import TTS, halves
from slm.tokens.vocabulary import strip_units, text_to_units, units_to_text

WORD = st.text(alphabet="abcdef'", min_size=1, max_size=5)
SEGMENTS = st.lists(
    st.tuples(st.lists(WORD, min_size=1, max_size=3), st.lists(st.integers(0, 99), max_size=6)), max_size=8
)


@given(SEGMENTS)
def test_halves_are_turns_and_hold_the_whole(segments):
    woven = " ".join(" ".join(words) + units_to_text(units) for words, units in segments)
    text = " ".join(word.upper() for words, _ in segments for word in words)
    found = halves({"instruction": "Say it.", "transcription": text, "interleaf": woven})
    if found is None:
        spoken = [units for _, units in segments if units]
        assert len(spoken) < 2
        return
    for half in found:
        assert TTS.turn(half).prompt.startswith("Say it.\n")
        assert half["interleaf"] == half["interleaf"].strip()
        assert strip_units(half["interleaf"]).upper().split() == half["transcription"].split() != []
        assert text_to_units(half["interleaf"])
    assert " ".join(half["transcription"] for half in found) == text
    assert [unit for half in found for unit in text_to_units(half["interleaf"])] == text_to_units(woven)


def test_the_cut_halves_the_units():
    woven = "a<|1|><|2|><|3|><|4|> b<|5|> c<|6|> d<|7|>"
    first, second = halves({"instruction": "i", "transcription": "A b, c d.", "interleaf": woven})
    assert (first["transcription"], first["interleaf"]) == ("A", "a<|1|><|2|><|3|><|4|>")
    assert (second["transcription"], second["interleaf"]) == ("b, c d.", "b<|5|> c<|6|> d<|7|>")


def test_words_that_do_not_correspond_are_not_cut():
    woven = "a<|1|> b<|2|>"
    assert halves({"transcription": "a b c", "interleaf": woven}) is None
    assert halves({"transcription": "a b", "interleaf": "a b<|1|>"}) is None
