from __future__ import annotations

import numpy as np
import pytest
from support import make_text_tokenizer

from slm.generation.generate import Generated
from slm.generation.output import interleaving_faults, split_output, to_wave
from slm.tokens.vocabulary import load_tokenizer, text_vocabulary


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("the<|5|><|9|> cat<|3|>", []),
        ("the cat<|3|>", []),
        ("", ["empty"]),
        ("the cat", ["no_units"]),
        ("<|3|>the<|4|>", ["units_first"]),
        ("the<|4|> cat", ["text_last"]),
        ("<|3|>the", ["units_first", "text_last"]),
    ],
)
def test_faults_of_an_interleaving(text, faults):
    assert interleaving_faults(text) == faults


def test_a_wave_from_units():
    class Beep:
        def wave(self, units, durations=None):
            return [0.5] * (2 * len(units))

    assert to_wave([1, 2], Beep()).dtype == np.float32
    assert len(to_wave([1, 2], Beep())) == 4
    assert len(to_wave([], Beep())) == 0


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_an_output_is_taken_apart_by_its_ids(pico_tokenizer):
    tokenizer, vocabulary = load_tokenizer(pico_tokenizer)
    ids = ids_of(tokenizer, "the<|5|><|9|> cat<|3|>")
    output = split_output(tokenizer, Generated(ids, True), vocabulary)
    assert (output.raw, output.text, output.units) == ("the<|5|><|9|> cat<|3|>", "the cat", [5, 9, 3])
    assert (output.finished, output.foreign, output.tokens) == (True, 0, len(ids))


def test_text_that_is_spelled_like_a_unit_is_none(pico_tokenizer):
    """Letter by letter a model can write `<|99|>`, a unit that no codebook has: it stays text."""
    tokenizer, vocabulary = load_tokenizer(pico_tokenizer)
    pieces = ["<", "|", "9", "9", "|", ">"]
    spelled = [token for piece in pieces for token in ids_of(tokenizer, piece)]
    ids = [*ids_of(tokenizer, "the<|5|>"), *spelled, *ids_of(tokenizer, " cat<|3|>")]
    output = split_output(tokenizer, Generated(ids, True), vocabulary)
    assert output.units == [5, 3] and output.foreign == 1
    assert output.raw == "the<|5|><\\|99|> cat<|3|>"
    assert output.text == "the<\\|99|> cat"


def test_ids_of_rows_that_only_pad_the_vocabulary_say_nothing(pico_tokenizer):
    tokenizer, vocabulary = load_tokenizer(pico_tokenizer)
    ids = [*ids_of(tokenizer, "cat"), vocabulary.size, vocabulary.size + 3]
    output = split_output(tokenizer, Generated(ids, False), vocabulary)
    assert (output.raw, output.foreign, output.tokens) == ("cat", 2, len(ids))


def test_a_text_model_has_no_units_whatever_it_spells():
    tokenizer = make_text_tokenizer()
    output = split_output(tokenizer, Generated(ids_of(tokenizer, "a<|1|>"), True), text_vocabulary(tokenizer))
    assert output.units == [] and output.foreign == 1
