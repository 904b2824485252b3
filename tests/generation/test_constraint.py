"""Whatever a model prefers, under the constraint it says nothing malformed."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from support import make_text_tokenizer

from slm.errors import DataError
from slm.generation.constraint import Constraint
from slm.generation.generate import Generated
from slm.generation.output import interleaving_faults, split_output
from slm.stages.sqa import split_answer
from slm.tokens.vocabulary import UnitSet, add_units, text_to_units, text_vocabulary


@pytest.fixture(scope="module")
def words():
    """A tokenizer whose texts have line feeds in tokens of their own and with others, and its vocabulary."""
    tokenizer = make_text_tokenizer()
    tokenizer.add_tokens(["\n\n", "\n\n\n\n", ".\n", " \n\n x"])
    vocabulary = add_units(tokenizer, UnitSet(16, 25.0, "mel_kmeans", "0" * 64))
    return tokenizer, vocabulary, {tokenizer.convert_tokens_to_ids("<|end|>")}


def said(constraint: Constraint, preferences: torch.Tensor, stop: set[int], limit: int) -> Generated:
    """What greedy decoding says when token t of step i has the logit preferences[i, t]."""
    state, ids = constraint.start, []
    for step in range(limit):
        allowed = constraint.allowed([state], [limit - step], torch.device("cpu"))[0]
        assert bool(allowed.any())
        token = int(preferences[step].masked_fill(~allowed, -torch.inf).argmax())
        if token in stop:
            return Generated(ids, True)
        ids.append(token)
        state = constraint.after(state, token)
    return Generated(ids, False)


def preferred(seed: int, limit: int, vocabulary, stop: set[int], words) -> torch.Tensor:
    """Random preferences with a bias for units, ends and line feeds, so that all forms come about."""
    logits = torch.randn(limit, vocabulary.size, generator=torch.Generator().manual_seed(seed))
    logits[:, vocabulary.first_unit :] += 1.0
    logits[:, [*stop, *(words.convert_tokens_to_ids(t) for t in ("\n\n", ".\n", " \n\n x"))]] += 2.0
    return logits


@hypothesis.given(seed=st.integers(0, 10**6), limit=st.integers(2, 40))
def test_interleaved_answers_are_well_formed_at_every_length(words, seed, limit):
    tokenizer, vocabulary, stop = words
    constraint = Constraint("interleaved", tokenizer, vocabulary, stop)
    logits = preferred(seed, limit, vocabulary, stop, tokenizer)
    generated = said(constraint, logits, stop, limit)
    output = split_output(tokenizer, generated, vocabulary)
    assert interleaving_faults(output.raw) == []
    assert "<|end|>" not in output.raw and "<|user|>" not in output.raw
    units = [u for t, u in zip(generated.ids, generated.ids[1:], strict=False) if t == u and vocabulary.is_unit(t)]
    assert units == [], "a unit twice in a row, where repeats are removed"


@hypothesis.given(seed=st.integers(0, 10**6))
def test_spoken_answers_have_three_parts_and_units_in_the_last(words, seed):
    tokenizer, vocabulary, stop = words
    constraint = Constraint("spoken_answer", tokenizer, vocabulary, stop)
    generated = said(constraint, preferred(seed, 60, vocabulary, stop, tokenizer), stop, 60)
    output = split_output(tokenizer, generated, vocabulary)
    parts = split_answer(output.raw)
    assert not text_to_units(parts.transcript) and not text_to_units(parts.answer)
    if generated.finished:
        assert parts.transcript and parts.answer and interleaving_faults(parts.interleaved) == []


@hypothesis.given(seed=st.integers(0, 10**6))
def test_answers_in_text_hold_no_units_and_are_not_empty(words, seed):
    tokenizer, vocabulary, stop = words
    constraint = Constraint("text", tokenizer, vocabulary, stop)
    generated = said(constraint, preferred(seed, 12, vocabulary, stop, tokenizer), stop, 12)
    output = split_output(tokenizer, generated, vocabulary)
    assert output.text and not output.units


def test_what_is_well_formed_already_is_not_changed(words):
    """A model that prefers a right answer gives it, token for token."""
    tokenizer, vocabulary, stop = words
    for form, text in (
        ("interleaved", "the cat<|3|><|5|> says<|5|> meow<|1|>"),
        ("spoken_answer", "what is it\n\nparis\n\nparis<|4|><|2|>"),
        ("text", "two and three\n\n\n\nmake five"),
    ):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        logits = torch.zeros(len(ids) + 1, vocabulary.size)
        logits[torch.arange(len(ids) + 1), torch.tensor([*ids, *stop])] = 1.0
        constraint = Constraint(form, tokenizer, vocabulary, stop)
        assert said(constraint, logits, stop, len(ids) + 1) == Generated(ids, True)


def test_repeats_are_kept_where_the_unit_set_keeps_them(words):
    tokenizer = make_text_tokenizer()
    vocabulary = add_units(tokenizer, UnitSet(4, 25.0, "mel_kmeans", "0" * 64, output="kept"))
    constraint = Constraint("interleaved", tokenizer, vocabulary, {1})
    unit = vocabulary.first_unit
    state = constraint.after(constraint.after(constraint.start, tokenizer.convert_tokens_to_ids("a")), unit)
    assert bool(constraint.allowed([state], [9], torch.device("cpu"))[0, unit])


def test_a_text_model_can_be_held_to_text_alone():
    tokenizer = make_text_tokenizer()
    vocabulary = text_vocabulary(tokenizer)
    assert Constraint("text", tokenizer, vocabulary, {1}).size == vocabulary.size
    with pytest.raises(DataError, match="no speech units"):
        Constraint("interleaved", tokenizer, vocabulary, {1})
