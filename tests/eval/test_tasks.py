from __future__ import annotations

import pytest

from slm.config.evaluation import RULES as RULES_OF
from slm.errors import ConfigError, DataError
from slm.eval.sets import Item
from slm.eval.tasks import SCORERS, scorer
from slm.eval.tasks.instructions import RULES
from slm.eval.tasks.tts import Tts
from slm.generation.output import Output
from slm.tiny import world
from slm.tokens.interleave import unweave

VOICED = ("wave_uer@1", "resynthesis_uer@1", "ceiling_uer@1")


def said(raw: str, finished: bool = True) -> Output:
    text, units = unweave(raw)
    return Output(raw, text.strip(), units, finished)


def score(task: str, raw: str, target: dict, finished: bool = True):
    (scored,) = scorer(task).score([Item("i", "llm", {}, target)], [said(raw, finished)], None)
    return {name.split("@")[0]: tuple(ratio) for name, ratio in scored.ratios.items()}, scored.flags


def test_every_scorer_names_a_headline_of_its_own():
    targets = {"answer": "a", "text": "a", "units": [1], "rule": "first", "args": {"words": "a"}}
    for name in SCORERS:
        rules = scorer(name)
        (scored,) = rules.score([Item("i", rules.stage, {}, targets)], [said("a")], None)
        assert rules.headline in scored.ratios
        assert set(RULES_OF[name]) == set(scored.ratios) | (set(VOICED) if name == "tts" else set())
        assert rules.errors <= set(scored.ratios) | set(VOICED)
    with pytest.raises(ConfigError, match="no scorer"):
        scorer("mos")


def test_text_qa():
    assert score("text_qa", " Paris.", {"answer": "paris"})[0] == {"em": (1, 1), "contains": (1, 1)}
    assert score("text_qa", "it is paris", {"answer": ["paris"]})[0] == {"em": (0, 1), "contains": (1, 1)}
    assert score("text_qa", "paris<|3|>", {"answer": "paris"})[1] == ["units_in_text"]
    assert score("text_qa", "", {"answer": "paris"}, finished=False)[1] == ["unfinished", "empty"]
    with pytest.raises(DataError, match="no 'answer'"):
        score("text_qa", "x", {})


def test_instructions_agree_with_the_tiny_world():
    for instruction in world.instructions(test=60, train=60):
        target = {"rule": instruction.rule, "args": instruction.args}
        assert score("instructions", instruction.answer, target)[0] == {"rule": (1, 1)}
        assert score("instructions", instruction.answer + " cat", target)[0] == {"rule": (0, 1)}
        assert score("instructions", "", target)[0] == {"rule": (0, 1)}
    assert {i.rule for i in world.instructions(test=60, train=0)} == set(RULES)


def test_instruction_arguments_may_stand_beside_the_rule():
    target = {"rule": "repeat", "words": "the cat", "times": 2, "answer": "the cat the cat"}
    assert score("instructions", "The cat, the cat.", target)[0] == {"rule": (1, 1)}
    assert score("instructions", "the cat", target)[0] == {"rule": (0, 1)}
    assert score("instructions", "2", {"rule": "count", "words": "red dog"})[0] == {"rule": (1, 1)}
    for bad in ({"rule": "rhyme"}, {"rule": "repeat", "word": "cat"}):
        with pytest.raises(DataError, match="can't be checked"):
            score("instructions", "x", bad)


def test_asr():
    assert score("asr", "The cat sat", {"text": "the cat"})[0] == {"wer": (1, 2), "sentence": (0, 1)}
    assert score("asr", "the<|1|> cat<|2|>", {"text": "the cat"})[0]["wer"] == (0, 2)


def test_sqa():
    target = {"answer": "paris", "text": "what is it"}
    right, flags = score("sqa", " what is it\n\n Paris\n\n Paris<|3|><|4|>", target)
    assert right == {"em": (1, 1), "contains": (1, 1), "transcript_wer": (0, 3), "speech": (1, 1)}
    assert flags == []
    silent, flags = score("sqa", "what is that\n\nparis", target)
    assert silent == {"em": (1, 1), "contains": (1, 1), "transcript_wer": (1, 3), "speech": (0, 1)}
    assert flags == ["empty"]
    # An answer in the wrong place is none: the form is part of the task.
    assert score("sqa", "paris<|3|>", target)[0]["em"] == (0, 1)
    assert scorer("sqa").spoken(said("a<|1|>\n\nb<|2|>\n\nc<|3|><|4|>")) == [3, 4]


class Echo:
    """A voice that hears everything with its last unit missing."""

    def heard(self, units):
        return list(units)[:-1]


def test_tts():
    items = [Item(str(i), "tts", {}, {"text": "the cat", "units": [1, 2, 3, 4]}) for i in range(2)]
    outputs = [said("the<|1|><|2|> cat<|3|><|5|>"), said("<|1|> cat")]
    first, second = Tts(resynthesise=1).score(items, outputs, Echo())
    assert first.ratios["uer@1"] == (1, 4) and first.ratios["text_wer@1"] == (0, 2)
    assert first.ratios["malformed@1"] == (0, 1)
    assert first.ratios["wave_uer@1"] == (1, 4) and "wave_uer@1" in Tts.errors
    assert first.ratios["resynthesis_uer@1"] == (1, 4) and first.ratios["ceiling_uer@1"] == (1, 4)
    assert second.ratios["malformed@1"] == (1, 1) and second.flags == ["units_first", "text_last"]
    assert not set(VOICED) & set(second.ratios)


def test_the_wave_is_compared_with_the_reference_and_silence_misses_all_of_it():
    items = [Item(str(i), "tts", {}, {"text": "the cat", "units": [1, 2, 3, 4]}) for i in range(2)]
    outputs = [said("the<|7|><|8|> cat<|9|><|5|>"), said("the cat")]
    wrong, silent = Tts().score(items, outputs, Echo())
    assert wrong.ratios["wave_uer@1"] == (4, 4) and wrong.ratios["resynthesis_uer@1"] == (1, 4)
    assert silent.ratios["wave_uer@1"] == (4, 4)
