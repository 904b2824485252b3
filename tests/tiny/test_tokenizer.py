from __future__ import annotations

import pytest

from slm.config.tiny import TinyTokenizerConfig
from slm.tiny import world
from slm.tiny.tokenizer import train_tokenizer
from slm.tokens.chat import Turn, decode, render, render_prompt
from slm.tokens.vocabulary import UnitSet, add_units, load_tokenizer, save_tokenizer, text_hash, without_units

TEXT = world.corpus_text(0)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXT, TinyTokenizerConfig(size=600))


def test_equal_text_gives_an_equal_tokenizer(tokenizer):
    assert text_hash(train_tokenizer(TEXT, TinyTokenizerConfig(size=600))) == text_hash(tokenizer)
    assert text_hash(train_tokenizer(TEXT, TinyTokenizerConfig(size=500))) != text_hash(tokenizer)


def test_ids_have_no_gaps_and_every_text_survives(tokenizer):
    assert len(tokenizer) == 600
    assert sorted(tokenizer.get_vocab().values()) == list(range(600))
    for text in ("the capital of france is paris", "ünïcode 漢字 \n\t 42!", "a\n\nb"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert decode(tokenizer, ids) == text


def test_a_word_has_the_same_tokens_everywhere(tokenizer):
    def ids(text):
        return tokenizer(text, add_special_tokens=False).input_ids

    assert ids("paris") == ids("the paris")[len(ids("the")) :]
    assert ids("a\n\nparis\n\nb") == [*ids("a"), *ids("\n\n"), *ids("paris"), *ids("\n\n"), *ids("b")]
    assert len(ids("\n\n")) == 1


def test_turns_end_with_one_supervised_end_token(tokenizer):
    rendered = render(tokenizer, Turn("what color is grass", "green"))
    prompt = render_prompt(tokenizer, "what color is grass")
    assert rendered.ids[: len(prompt)] == prompt
    assert rendered.ids[0] == tokenizer.bos_token_id
    assert rendered.ids[-1] == tokenizer.eos_token_id
    assert rendered.supervised == [False] * len(prompt) + [True] * (len(rendered.ids) - len(prompt))
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3


def test_units_come_after_the_text_and_leave_it_alone(tmp_path):
    tokenizer = train_tokenizer(TEXT, TinyTokenizerConfig(size=500))
    before = text_hash(tokenizer)
    vocabulary = add_units(tokenizer, UnitSet(32, 25.0, "mel_kmeans", "0" * 64))
    assert (vocabulary.first_unit, vocabulary.size, vocabulary.text_sha256) == (500, 532, before)
    save_tokenizer(tmp_path, tokenizer, vocabulary)
    loaded, found = load_tokenizer(tmp_path)
    assert found == vocabulary
    text = "the<|5|><|31|> cow<|0|>"
    assert decode(loaded, loaded(text, add_special_tokens=False).input_ids) == text
    assert len(without_units(loaded)) == 500
