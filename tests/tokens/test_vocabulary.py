from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.errors import DataError
from slm.tokens.vocabulary import (
    UnitSet,
    Vocabulary,
    add_units,
    load_tokenizer,
    remove_repeats,
    require_same_vocabulary,
    save_tokenizer,
    split_runs,
    strip_units,
    text_hash,
    text_to_units,
    text_vocabulary,
    units_to_text,
    without_units,
)

UNITS = UnitSet(64, 25.0, "mel_kmeans", "c0de")
TEXTS = ["what is the capital of france", " two  spaces ", "don't, she said.\n\nParis"]


@settings(deadline=None)
@given(st.lists(st.integers(0, 9999)))
def test_units_survive_text(units):
    text = units_to_text(units)
    assert text_to_units(text) == units
    assert strip_units(text) == ""
    assert all(a != b for a, b in zip(remove_repeats(units), remove_repeats(units)[1:], strict=False))


def test_only_units_are_units():
    assert text_to_units("<|01|> <|x|> <|7|> |8| <|eot_id|>") == [7]
    assert strip_units("a<|7|> b<|eot_id|>") == "a b<|eot_id|>"
    assert split_runs("<|1|>a<|2|><|3|> b") == [("", [1]), ("a", [2, 3]), (" b", [])]


def test_units_are_contiguous_and_leave_the_text_part_alone(text_tokenizer):
    before = [text_tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
    plain = text_vocabulary(text_tokenizer)
    vocabulary = add_units(text_tokenizer, UNITS)
    assert [text_tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS] == before
    assert vocabulary.text_sha256 == plain.text_sha256
    assert vocabulary.first_unit == plain.size == vocabulary.text_size
    assert vocabulary.to_ids([0, 63]) == text_tokenizer.convert_tokens_to_ids(["<|0|>", "<|63|>"])
    assert vocabulary.to_units([1, *vocabulary.to_ids([5, 9]), 2]) == [5, 9]
    assert not vocabulary.is_unit(plain.size - 1) and vocabulary.is_unit(vocabulary.size - 1)
    with pytest.raises(DataError, match="already"):
        add_units(text_tokenizer, UNITS)


def test_no_space_is_lost_around_units(tokenizer_and_vocabulary):
    tokenizer, vocabulary = tokenizer_and_vocabulary
    text = "what<|5|><|9|> is<|3|>  the\n\n<|7|>\ncapital <|63|> "
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    words = "what is the capital"
    woven = "what<|1|> is<|2|> the<|3|> capital<|4|>"
    kept = [i for i in tokenizer(woven, add_special_tokens=False).input_ids if not vocabulary.is_unit(i)]
    assert kept == tokenizer(words, add_special_tokens=False).input_ids


@pytest.mark.parametrize("bad", [[64], [-1, 3]])
def test_units_out_of_range(tokenizer_and_vocabulary, bad):
    with pytest.raises(DataError, match="do not fit"):
        tokenizer_and_vocabulary[1].to_ids(bad)


def test_units_need_a_unit_set(text_tokenizer):
    with pytest.raises(DataError, match="no speech units"):
        text_vocabulary(text_tokenizer).to_ids([1])


def test_saved_and_loaded(tmp_path, tokenizer_and_vocabulary):
    tokenizer, vocabulary = tokenizer_and_vocabulary
    save_tokenizer(tmp_path, tokenizer, vocabulary)
    again, same = load_tokenizer(tmp_path)
    assert same == vocabulary and same.fingerprint == vocabulary.fingerprint
    text = "the<|5|> capital<|6|>"
    assert again(text).input_ids == tokenizer(text, add_special_tokens=False).input_ids
    other = dataclasses.replace(vocabulary, text_sha256="0" * 64)
    save_tokenizer(tmp_path, tokenizer, other)
    with pytest.raises(DataError, match="another tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path / "nowhere")


def test_the_text_part_by_itself(tmp_path, tokenizer_and_vocabulary):
    tokenizer, vocabulary = tokenizer_and_vocabulary
    text = without_units(tokenizer)
    assert len(text) == vocabulary.text_size
    assert text_hash(text) == vocabulary.text_sha256
    assert (text.eos_token, text.pad_token) == (tokenizer.eos_token, tokenizer.pad_token)
    save_tokenizer(tmp_path, text, text_vocabulary(text))
    assert load_tokenizer(tmp_path)[1].units is None


def test_vocabularies_are_compared():
    model = Vocabulary("t", 164, 100, UNITS)
    require_same_vocabulary(model, Vocabulary.from_json(model.to_json()), "shards")
    require_same_vocabulary(Vocabulary("t", 100), model, "shards")
    with pytest.raises(DataError, match="another tokenizer"):
        require_same_vocabulary(Vocabulary("u", 100), model, "shards")
    with pytest.raises(DataError, match="the model has none"):
        require_same_vocabulary(model, Vocabulary("t", 100), "shards")
    faster = dataclasses.replace(model, units=dataclasses.replace(UNITS, rate_hz=50.0))
    with pytest.raises(DataError, match=r"rate_hz: data 50\.0, model 25\.0"):
        require_same_vocabulary(faster, model, "shards")
    with pytest.raises(DataError, match="not a vocabulary"):
        Vocabulary.from_json({"size": 3})


def test_repeats_per_role():
    assert UNITS.for_role([3, 3, 1], "input") == [3, 3, 1]
    assert UNITS.for_role([3, 3, 1], "output") == [3, 1]
    with pytest.raises(DataError):
        UnitSet(64, 25.0, "x", "y", input="gone")
