from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.errors import DataError
from slm.tokens.interleave import Word, interleave_words, split_interleaved
from slm.tokens.vocabulary import remove_repeats, text_to_units

texts = st.text(st.characters(categories=["L", "P", "N"]), min_size=1).filter(lambda t: not text_to_units(t))


@st.composite
def alignments(draw):
    words, clock = [], 0.0
    for text in draw(st.lists(texts, max_size=8)):
        start = clock + draw(st.floats(0, 0.5))
        clock = start + draw(st.floats(0, 0.5))
        words.append(Word(text, start, clock))
    return words


@settings(deadline=None)
@given(alignments(), st.lists(st.integers(0, 3), max_size=60), st.sampled_from(["kept", "removed"]))
def test_weaving_keeps_every_word_and_every_unit(words, units, repeats):
    woven = interleave_words(words, units, 25.0, repeats)
    text, again = split_interleaved(woven)
    assert text == " ".join(word.text for word in words)
    assert again == (units if repeats == "kept" else remove_repeats(units))


@settings(deadline=None)
@given(alignments().filter(bool), st.lists(st.integers(0, 3), max_size=60))
def test_units_stand_behind_the_word_that_is_being_spoken(words, units):
    woven = interleave_words(words, units, 25.0, "kept")
    shares = [text_to_units(piece) for piece in woven.split(" ")]
    position = 0
    for i, share in enumerate(shares):
        for _ in share:
            centre = (position + 0.5) / 25.0
            assert i == 0 or centre >= words[i].start_s
            assert i == len(words) - 1 or centre < words[i + 1].start_s
            position += 1


def test_the_form():
    words = [Word("the", 0.1, 0.2), Word("cat", 0.24, 0.4)]
    units = [9, 9, 9, 5, 5, 5, 5, 3, 3, 1]
    assert interleave_words(words, units, 25.0) == "the<|9|><|5|> cat<|3|><|1|>"
    assert interleave_words(words, units, 25.0, "kept") == ("the<|9|><|9|><|9|><|5|><|5|><|5|> cat<|5|><|3|><|3|><|1|>")
    assert interleave_words([], [1, 1], 25.0) == "<|1|>"


@pytest.mark.parametrize(
    "words",
    [
        [Word("a", 0.5, 0.6), Word("b", 0.1, 0.2)],
        [Word("a", 0.5, 0.4)],
        [Word("", 0.0, 0.1)],
        [Word("a ", 0.0, 0.1)],
        [Word("a<|1|>", 0.0, 0.1)],
    ],
)
def test_bad_alignments(words):
    with pytest.raises(DataError):
        interleave_words(words, [1], 25.0)
    with pytest.raises(DataError):
        interleave_words([], [1], 25.0, "sometimes")
