from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.config.interleave import PoissonSchedule, Ratio, SegmentsSchedule, TokensSchedule, WordsSchedule
from slm.errors import ConfigError, DataError
from slm.tokens.alignment import Word
from slm.tokens.interleave import WORD_BY_WORD, pieces, render, unweave, weave
from slm.tokens.vocabulary import remove_repeats, text_to_units, units_to_text

RATE = 25.0
MARKERS = ("<text>", "[Speech]", "<|continue|>", "<|correspond|>")
texts = st.text(st.characters(categories=["L", "P", "N"], include_characters="<>|"), min_size=1, max_size=6).filter(
    lambda text: not text_to_units(text) and not any(marker in text for marker in MARKERS)
)
repeats_policies = st.sampled_from(["kept", "removed"])


@st.composite
def utterances(draw):
    """(words, units): as many units as last to the end of the words at least, few different ones."""
    words, clock = [], 0.0
    for text in draw(st.lists(texts, min_size=1, max_size=20)):
        start = clock + draw(st.sampled_from([0.0, 0.0, 0.03, 0.4]))
        clock = start + draw(st.sampled_from([0.0, 0.01, 0.1, 0.33, 1.0]))
        words.append(Word(text, start, clock))
    count = max(int(clock * RATE) + 1, len(words)) + draw(st.integers(0, 5))
    return words, draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))


pauses = st.sampled_from(["before", "split"])
shares = st.floats(0, 1)
word_schedules = st.builds(WordsSchedule, count=st.integers(1, 4), pauses=pauses)
token_schedules = st.builds(
    TokensSchedule,
    schedule=st.just("tokens"),
    ratios=st.lists(st.builds(Ratio, text=st.integers(1, 6), units=st.integers(1, 9)), min_size=1, max_size=3),
)
poisson_schedules = st.builds(
    PoissonSchedule,
    schedule=st.just("poisson"),
    span_words=st.sampled_from([0.3, 2.0, 10.0]),
    speech_share=shares,
    text_marker=st.sampled_from([None, "<text>"]),
    speech_marker=st.sampled_from([None, "[Speech]"]),
    seed=st.integers(0, 9),
    pauses=pauses,
)
segment_schedules = st.builds(
    SegmentsSchedule,
    schedule=st.just("segments"),
    seconds=st.sampled_from([0.2, 1.0, 10.0]),
    text_share=shares,
    correspond_share=shares,
    continue_marker=st.sampled_from([None, "<|continue|>"]),
    seed=st.integers(0, 9),
    pauses=pauses,
)
schedules = st.one_of(word_schedules, token_schedules, poisson_schedules, segment_schedules)
keys = st.text(max_size=8)


def halves(text: str) -> list[str]:
    """A stand-in for a tokenizer: tokens of two characters."""
    return [text[i : i + 2] for i in range(0, len(text), 2)]


def whole_text(words) -> str:
    return " ".join(word.text for word in words)


@settings(deadline=None, max_examples=200)
@given(utterances(), schedules, repeats_policies, keys)
def test_pieces_hold_every_word_and_every_unit_once_and_in_order(utterance, config, repeats, key):
    words, units = utterance
    found = pieces(words, units, RATE, config, repeats=repeats, key=key, split=halves)
    assert "".join(piece.text for piece in found) == whole_text(words)
    assert [unit for piece in found for unit in piece.units] == (units if repeats == "kept" else remove_repeats(units))
    assert all(piece.sides for piece in found), "nothing is left out on both sides"


@settings(deadline=None, max_examples=200)
@given(utterances(), schedules, repeats_policies, keys)
def test_unweaving_is_the_inverse_of_weaving(utterance, config, repeats, key):
    words, units = utterance
    found = pieces(words, units, RATE, config, repeats=repeats, key=key, split=halves)
    woven = weave(words, units, RATE, config, repeats=repeats, key=key, split=halves)
    assert woven == render(found, config)
    written = "".join(piece.text for piece in found if "text" in piece.sides).removeprefix(" ")
    spoken = [unit for piece in found if "units" in piece.sides for unit in piece.units]
    assert unweave(woven, config) == (written, spoken)


@settings(deadline=None)
@given(utterances(), st.one_of(word_schedules, token_schedules), repeats_policies)
def test_words_and_tokens_lose_nothing(utterance, config, repeats):
    words, units = utterance
    woven = weave(words, units, RATE, config, repeats=repeats, key="", split=halves)
    kept = units if repeats == "kept" else remove_repeats(units)
    assert unweave(woven, config) == (whole_text(words), kept)


@settings(deadline=None)
@given(utterances(), st.integers(0, 9), keys, pauses)
def test_segments_that_all_correspond_lose_nothing(utterance, seed, key, pause):
    words, units = utterance
    config = SegmentsSchedule(schedule="segments", seconds=0.3, correspond_share=1.0, seed=seed, pauses=pause)
    assert unweave(weave(words, units, RATE, config, repeats="kept", key=key), config)[0] == whole_text(words)
    silent = [p for p in pieces(words, units, RATE, config, repeats="kept", key=key) if "units" not in p.sides]
    assert not any(piece.units for piece in silent)


@settings(deadline=None)
@given(utterances())
def test_units_stand_behind_the_word_that_is_being_spoken(utterance):
    words, units = utterance
    found = pieces(words, units, RATE, WORD_BY_WORD, repeats="kept", key="")
    position, first = 0, 0
    for piece in found:
        last = first + len(piece.text.split()) - 1
        for _ in piece.units:
            centre = (position + 0.5) / RATE
            assert first == 0 or centre >= words[first].start_s
            assert last == len(words) - 1 or centre < words[last + 1].start_s
            position += 1
        first = last + 1


@settings(deadline=None)
@given(utterances(), st.integers(1, 4), repeats_policies)
def test_every_piece_of_words_ends_in_units(utterance, count, repeats):
    words, units = utterance
    found = pieces(words, units, RATE, WordsSchedule(count=count), repeats=repeats, key="")
    assert all(piece.units for piece in found)
    assert all(len(piece.text.split()) >= count for piece in found[:-1])


THE_CAT = [Word("the", 0.1, 0.2), Word("cat", 0.24, 0.4)]
UNITS = [9, 9, 9, 5, 5, 5, 5, 3, 3, 1]


def test_the_form_word_by_word():
    assert weave(THE_CAT, UNITS, RATE, WORD_BY_WORD, repeats="removed", key="a") == "the<|9|><|5|> cat<|3|><|1|>"
    kept = "the<|9|><|9|><|9|><|5|><|5|><|5|> cat<|5|><|3|><|3|><|1|>"
    assert weave(THE_CAT, UNITS, RATE, WORD_BY_WORD, repeats="kept", key="a") == kept


def test_a_pause_is_the_word_befores_or_shared():
    words = [Word("a", 0.0, 0.04), Word("b", 0.2, 0.24)]
    units = [0, 1, 2, 3, 4, 5]
    before, split = WordsSchedule(), WordsSchedule(pauses="split")
    assert weave(words, units, RATE, before, repeats="kept", key="") == "a<|0|><|1|><|2|><|3|><|4|> b<|5|>"
    assert weave(words, units, RATE, split, repeats="kept", key="") == "a<|0|><|1|><|2|> b<|3|><|4|><|5|>"
    overlapping = [Word("a", 0.0, 0.16), Word("b", 0.12, 0.24)]
    assert weave(overlapping, units, RATE, split, repeats="kept", key="") == "a<|0|><|1|><|2|> b<|3|><|4|><|5|>"


def test_words_without_units_share_their_neighbours():
    words = [Word("a", 0.0, 0.0), Word("b", 0.0, 0.04), Word("c", 0.04, 0.12), Word("d", 0.12, 0.12)]
    units = [7, 8, 9, 9]
    assert weave(words[:3], units[:3], RATE, WORD_BY_WORD, repeats="kept", key="") == "a b<|7|> c<|8|><|9|>"
    late = [*words[:3], Word("d", 0.2, 0.2)]
    assert weave(late, units, RATE, WORD_BY_WORD, repeats="kept", key="") == "a b<|7|> c d<|8|><|9|><|9|>"


def eight(seconds: float = 0.08) -> list[Word]:
    return [Word(text, i * seconds, (i + 1) * seconds) for i, text in enumerate("abcdefgh")]


def test_two_words_then_their_units():
    woven = weave(eight()[:3], list(range(6)), RATE, WordsSchedule(count=2), repeats="kept", key="")
    assert woven == "a b<|0|><|1|><|2|><|3|> c<|4|><|5|>"


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (8, "abcd<|0|><|1|>efgh<|2|><|3|><|4|>ij<|5|><|6|><|7|>"),  # the last chunk takes the other units
        (4, "abcd<|0|><|1|>efghij<|2|><|3|>"),  # and the other text: text never comes last
    ],
)
def test_text_tokens_and_units_by_number(count, expected):
    config = TokensSchedule(schedule="tokens", ratios=[Ratio(text=2, units=2), Ratio(text=2, units=3)])
    words, units = [Word("abcdefghij", 0.0, 0.1)], list(range(count))
    woven = weave(words, units, RATE, config, repeats="kept", key="", split=halves)
    assert woven == expected
    with pytest.raises(ConfigError, match="tokenizer"):
        weave(words, units, RATE, config, repeats="kept", key="")
    with pytest.raises(DataError, match="another text"):
        weave(words, units, RATE, config, repeats="kept", key="", split=lambda text: [text[1:]])


def test_spoken_spans_stand_in_place_of_their_words():
    config = PoissonSchedule(
        schedule="poisson", span_words=2, speech_share=0.5, text_marker="[Text]", speech_marker="[Speech]", seed=1
    )
    units = list(range(16))
    woven = weave(eight(), units, RATE, config, repeats="kept", key="x")
    found = pieces(eight(), units, RATE, config, repeats="kept", key="x")
    assert [piece.sides for piece in found] != [("text",)]
    for piece in found:
        if piece.sides == ("units",):
            assert f"[Speech]{units_to_text(piece.units)}" in woven
            assert list(piece.units) == [
                u for w in piece.text.split() for u in (2 * (ord(w) - 97), 2 * (ord(w) - 97) + 1)
            ]
        else:
            assert f"[Text]{piece.text}" in woven
    assert sum(len(p.text.split()) for p in found if p.sides == ("units",)) == 4


def test_a_spoken_word_that_has_no_unit_is_written():
    words = [Word("a", 0.0, 0.08), Word("b", 0.08, 0.12), Word("c", 0.12, 0.2)]
    config = PoissonSchedule(schedule="poisson", span_words=0.1, speech_share=1 / 3)
    for key in map(str, range(20)):
        woven = weave(words, [4, 4, 4, 5, 6], RATE, config, repeats="removed", key=key)
        assert woven in ("<|4|> b c", "a b c", "a b<|5|><|6|>")


def test_segments_continue_and_correspond():
    units = list(range(16))
    every = {"schedule": "segments", "seconds": 0.2, "seed": 3}
    woven = weave(
        eight(), units, RATE, SegmentsSchedule(**every, text_share=1.0, correspond_share=1.0), repeats="kept", key="k"
    )
    found = pieces(eight(), units, RATE, SegmentsSchedule(**every), repeats="kept", key="k")
    assert 2 <= len(found) <= 4
    expected = "<|continue|>".join(f"{p.text}<|correspond|>{units_to_text(p.units)}" for p in found)
    assert woven == expected
    spoken = SegmentsSchedule(**every, text_share=0.0, correspond_share=0.0)
    assert weave(eight(), units, RATE, spoken, repeats="kept", key="k") == units_to_text(units)
    written = SegmentsSchedule(**every, text_share=1.0, correspond_share=0.0)
    assert weave(eight(), units, RATE, written, repeats="kept", key="k") == "a b c d e f g h"


def test_a_short_utterance_is_one_segment():
    config = SegmentsSchedule(schedule="segments", seconds=10.0, text_share=1.0, correspond_share=1.0)
    assert len(pieces(eight(), list(range(16)), RATE, config, repeats="kept", key="")) == 1


def test_choices_depend_on_seed_and_key_alone():
    words, units = [*eight(), *(Word(f"w{i}", 0.7 + i * 0.08, 0.75 + i * 0.08) for i in range(30))], list(range(80))
    for make in (
        lambda seed: PoissonSchedule(schedule="poisson", span_words=3, seed=seed),
        lambda seed: SegmentsSchedule(schedule="segments", seconds=0.5, seed=seed),
    ):
        woven = {
            (seed, key): weave(words, units, RATE, make(seed), repeats="kept", key=key)
            for seed in (0, 1)
            for key in ("a", "b")
        }
        assert len(set(woven.values())) == 4
        assert woven[0, "a"] == weave(words, units, RATE, make(0), repeats="kept", key="a")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no word"),
        ([Word("a", 0.5, 0.6), Word("b", 0.1, 0.2)], "backwards"),
        ([Word("a", 0.5, 0.4)], "backwards"),
        ([Word("a", 0.0, 0.4), Word("b", 0.1, 0.5)], "overlaps"),
        ([Word("a", -0.1, 0.4)], "-0.1"),
        ([Word("a", 0.0, float("nan"))], "nan"),
        ([Word("", 0.0, 0.1)], "empty"),
        ([Word("a ", 0.0, 0.1)], "padded"),
        ([Word("a<|1|>", 0.0, 0.1)], "unit token"),
        ([Word("a", 0.0, 2.0)], "the audio at 0.8 s"),
        ([Word("a", 0.0, 0.01)] * 21, "21 words but 20 units"),
    ],
)
def test_bad_alignments(words, message):
    with pytest.raises(DataError, match=message) as failure:
        weave(words, [1] * 20, RATE, WORD_BY_WORD, repeats="kept", key="utterance-7")
    assert failure.value.where == "utterance-7"


def test_bad_arguments():
    with pytest.raises(DataError, match="sometimes"):
        weave(THE_CAT, UNITS, RATE, WORD_BY_WORD, repeats="sometimes", key="")
    with pytest.raises(DataError, match="negative"):
        weave(THE_CAT, [-1, *UNITS], RATE, WORD_BY_WORD, repeats="kept", key="")
    with pytest.raises(DataError, match="units a second"):
        weave(THE_CAT, UNITS, 0.0, WORD_BY_WORD, repeats="kept", key="")
    config = SegmentsSchedule(schedule="segments", correspond_marker="<same>")
    with pytest.raises(DataError, match="holds the marker <same>"):
        weave([Word("x<same>", 0.0, 0.3)], UNITS, RATE, config, repeats="kept", key="")


def test_a_split_pause_keeps_borders_in_order():
    words = [Word("a", 0.0, 0.3), Word("b", 0.26, 0.28), Word("c", 0.34, 0.4)]
    found = pieces(words, UNITS, RATE, WordsSchedule(pauses="split"), repeats="kept", key="")
    assert [len(piece.units) for piece in found] == [6, 2, 2]
