from __future__ import annotations

import re
from collections import Counter

import pytest

from slm.tiny import world


def test_world_is_a_hundred_distinct_questions_with_short_answers():
    asked = world.questions()
    assert len(asked) >= 100
    assert len({q.text for q in asked}) == len(asked)
    assert len({q.answer for q in asked}) > 60  # no answer can be guessed by its frequency
    assert max(Counter(q.answer for q in asked).values()) <= 5
    for q in asked:
        assert 1 <= len(q.answer.split()) <= 2
        assert set(q.answer.split()) <= set(q.sentence.split())


def test_all_text_is_in_spoken_form():
    for text in (*world.ASR_WORDINGS, *world.TTS_WORDINGS, *(s.text for s in world.sentences(300, seed=1))):
        assert re.fullmatch(r"[a-z ]+", text) and text == world.spoken(text)
    assert world.spoken("What is 42 + 7?") == "what is forty two plus seven"


def test_sums_are_right():
    value = {world.number_words(n): n for n in range(100)}
    assert len(value) == 100
    for q in world.questions():
        if q.topic == "sums":
            left, right = q.text.removeprefix("what is ").split(" plus ")
            assert value[left] + value[right] == value[q.answer]
    with pytest.raises(ValueError, match="100"):
        world.number_words(100)


@pytest.mark.parametrize(
    ("rule", "args", "answer"),
    [
        ("repeat", {"words": "red dog", "times": 2}, "red dog red dog"),
        ("backwards", {"words": "red dog sun"}, "sun dog red"),
        ("first", {"words": "red dog"}, "red"),
        ("last", {"words": "red dog"}, "dog"),
        ("count", {"words": "red dog sun"}, "three"),
    ],
)
def test_rules(rule, args, answer):
    assert world.expected(rule, **args) == answer


def test_instructions_follow_their_rule_and_test_unseen_arguments():
    made = world.instructions(3, train=600, test=60)
    assert made == world.instructions(3, train=600, test=60)
    assert made != world.instructions(4, train=600, test=60)
    assert Counter(i.split for i in made) == {"train": 600, "test": 60}
    for i in made:
        assert world.expected(i.rule, **i.args) == i.answer
        assert i.text.endswith(f": {i.args['words']}")
    train = {i.args["words"] for i in made if i.split == "train"}
    test = {i.args["words"] for i in made if i.split == "test"}
    assert not train & test
    assert {i.rule for i in made if i.split == "test"} == {"repeat", "backwards", "first", "last", "count"}


def test_sentences_keep_their_shares_and_take_turns():
    made = world.sentences(1000, seed=5, questions_share=0.4, statements_share=0.3, answers_share=0.1)
    assert made == world.sentences(1000, seed=5, questions_share=0.4, statements_share=0.3, answers_share=0.1)
    assert Counter(s.kind for s in made) == {"question": 400, "statement": 300, "answer": 100, "random": 200}
    often = Counter(s.text for s in made if s.kind == "question").values()
    assert len(often) == len(world.questions()) and max(often) - min(often) <= 1
    known = set(world.words())
    assert all(set(s.text.split()) <= known for s in made)


def test_random_strings_can_be_kept_apart():
    train = [s.text for s in world.sentences(200, seed=1, questions_share=0.0, statements_share=0.0)]
    assert not set(train) & set(world.random_strings(200, seed=1, exclude=train))
    with pytest.raises(ValueError, match="whole"):
        world.sentences(10, seed=0, questions_share=0.8, statements_share=0.4)


def test_wordings_are_ten_each_and_distinct():
    assert len(set(world.ASR_WORDINGS)) == len(set(world.TTS_WORDINGS)) == 10
    assert not set(world.ASR_WORDINGS) & set(world.TTS_WORDINGS)
