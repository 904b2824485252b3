from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slm.config.interleave import Ratio, TokensSchedule
from slm.errors import ConfigError
from slm.tokens.alignment import Word
from slm.tokens.draws import Draws
from slm.tokens.interleave import unweave, weave
from slm.tokens.schedules import Spoken, poisson_spans, segment_borders, token_splitter


def runs(marks: list[bool]) -> list[int]:
    return [len(run) for run in "".join("x" if mark else " " for mark in marks).split()]


@settings(deadline=None)
@given(st.integers(0, 60), st.floats(0.1, 40), st.floats(0, 1), st.integers(0, 99))
def test_spans_cover_the_share_that_is_asked_for(count, mean, share, seed):
    spoken = poisson_spans(count, mean, share, Draws(seed, "k"))
    wanted = math.ceil(share * count)
    assert len(spoken) == count and sum(spoken) <= wanted
    if sum(spoken) < wanted:  # only when every free word has a spoken neighbour
        assert all(spoken[max(i - 1, 0)] or spoken[min(i + 1, count - 1)] for i in range(count) if not spoken[i])


def test_span_lengths_have_the_mean_that_is_asked_for():
    lengths = [run for seed in range(300) for run in runs(poisson_spans(400, 6.0, 0.2, Draws(seed, "long")))]
    # The last span of each is cut to what is missing, so the mean lies a little below.
    assert 5.4 < sum(lengths) / len(lengths) < 6.1
    assert max(lengths) > 10 and min(lengths) >= 1


def test_spans_lie_anywhere():
    starts = {poisson_spans(20, 4.0, 0.2, Draws(seed, "k")).index(True) for seed in range(400)}
    assert starts == set(range(17))


def test_segment_borders_are_starts_of_words_near_equal_parts():
    words = [Spoken(f" w{i}", (i,), 10.0 * i) for i in range(100)]
    counts = []
    for seed in range(200):
        borders = segment_borders(words, 1000, 100.0, Draws(seed, "k"))
        assert borders == sorted(set(borders)) and 0 not in borders
        counts.append(len(borders))
    assert max(counts) == 10 and min(counts) >= 6, "11 segments; two borders may fall on one word"
    first = [(segment_borders(words, 1000, 600.0, Draws(seed, "k")) or [0])[0] for seed in range(500)]
    mean = sum(first) / 500
    deviation = math.sqrt(sum((b - mean) ** 2 for b in first) / 500)
    # Two segments: mean N/2; deviation N/4, of which the cut at two deviations leaves 0.88 (truncnorm(-2, 2).std()).
    assert abs(mean - 50) < 3 and abs(deviation - 0.88 * 25) < 2


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(min_size=1).map(str.strip).filter(bool))
def test_a_tokenizer_cuts_text_into_its_tokens(text_splitter, text):
    assert "".join(text_splitter(text)) == text


@pytest.fixture
def text_splitter(text_tokenizer):
    return token_splitter(text_tokenizer)


def test_cut_text_keeps_its_tokens(tokenizer_and_vocabulary):
    tokenizer, vocabulary = tokenizer_and_vocabulary
    text = "what is the capital of france, she said."
    words = [Word(word, i * 0.1, i * 0.1 + 0.1) for i, word in enumerate(text.split())]
    config = TokensSchedule(schedule="tokens", ratios=[Ratio(text=3, units=2)])
    units = [i % 64 for i in range(30)]
    woven = weave(words, units, 25.0, config, repeats="kept", key="", split=token_splitter(tokenizer))
    assert unweave(woven, config) == (text, units)
    ids = tokenizer(woven, add_special_tokens=False).input_ids
    assert [i for i in ids if not vocabulary.is_unit(i)] == tokenizer(text, add_special_tokens=False).input_ids
    kinds = "".join("u" if vocabulary.is_unit(i) else "t" for i in ids)
    assert kinds.startswith("tttuutttuutttuu")


def test_a_tokenizer_that_adds_spaces_can_not_cut_words(text_tokenizer):
    from tokenizers import pre_tokenizers

    text_tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(ConfigError, match="space before"):
        token_splitter(text_tokenizer)
