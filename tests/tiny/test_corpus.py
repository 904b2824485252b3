from __future__ import annotations

import pytest
from pydantic import ValidationError

from slm.artifact import read_manifest
from slm.config.tiny import TinyCorpusConfig, TinyTextsConfig
from slm.errors import ConfigError, DataError
from slm.speech.audio import read_audio
from slm.tiny import world
from slm.tiny.corpus import Plan, plan, read_rows, read_words, world_questions
from slm.tokens.alignment import read_alignments

SMALL = TinyCorpusConfig(
    asr=TinyTextsConfig(count=300),
    tts=TinyTextsConfig(count=200),
    sqa_variants=3,
    test_asr=60,
    test_asr_random=30,
    test_tts=20,
)


@pytest.fixture(scope="module")
def small() -> Plan:
    return plan(SMALL, 0)


def requests(plan: Plan, *names: str) -> set:
    spoken = [u for name in names for u in plan.spoken.get(name, [])]
    return {u.request for u in [*spoken, *(s.asked for name in names for s in plan.asked.get(name, []))]}


def test_the_plan_follows_from_configuration_and_seed(small):
    assert plan(SMALL, 0).utterances == small.utterances
    assert plan(SMALL, 1).utterances != small.utterances


def test_numbers_are_those_asked_for(small):
    sizes = {name: len(rows) for name, rows in {**small.spoken, **small.asked}.items()}
    assert sizes == {
        "asr": 300,
        "tts": 200,
        "sqa": 3 * 120,
        "test_asr": 60,
        "test_asr_random": 30,
        "test_tts": 20,
        "test_sqa": 120,
        "test_sqa_new_voices": 120,
    }


def test_no_test_input_is_a_training_input(small):
    train = requests(small, "asr", "sqa", "tts")
    test = requests(small, "test_asr", "test_asr_random", "test_sqa", "test_sqa_new_voices", "test_tts")
    assert train & test == set()
    strings = {request.text for request in requests(small, "test_asr_random")}
    assert strings & {request.text for request in train} == set()
    said = {u.request.text for u in small.spoken["test_tts"]}
    assert said & {u.request.text for u in small.spoken["tts"]} == set()


def test_splits_of_utterances_are_those_of_their_uses(small):
    for utterance in small.utterances:
        tests = [use.startswith("test") for use in utterance.uses]
        assert all(tests) if utterance.split != "train" else not any(tests)


def test_held_out_voices_never_train_and_known_voices_are_tested(small):
    held_out = set(SMALL.held_out_voices)
    assert {request.voice for request in requests(small, "test_sqa_new_voices")} == held_out
    for name in ("asr", "sqa", "tts", "test_asr", "test_asr_random", "test_sqa", "test_tts"):
        assert {request.voice for request in requests(small, name)} & held_out == set()


def test_the_answer_speaker_gives_all_answers_and_asks_nothing(small):
    key = SMALL.answer_speaker.key
    inputs = requests(small, "asr", "sqa", "test_asr", "test_asr_random", "test_sqa")
    assert key not in {request.speaker for request in inputs}
    assert {u.request.speaker for u in [*small.spoken["tts"], *small.spoken["test_tts"]]} == {key}
    for spoken in small.asked["sqa"]:
        assert spoken.answered.request.speaker == key
        assert spoken.answered.request.text == spoken.question.answer
        assert spoken.asked.request.text == spoken.question.text


def test_each_recording_is_made_once(small):
    assert len({u.request for u in small.utterances}) == len(small.utterances)
    assert len({u.id for u in small.utterances}) == len(small.utterances)
    by_use = {}
    for spoken in small.asked["sqa"]:
        by_use.setdefault(spoken.question.text, set()).add(spoken.asked.request.speaker)
    assert {len(speakers) for speakers in by_use.values()} == {3}


def test_sqa_uses_the_recordings_of_asr_first(small):
    heard = [u for u in small.spoken["asr"] if u.kind == "question"]
    asked = {s.asked.id for s in small.asked["sqa"]}
    assert {u.id for u in heard} <= asked
    assert len(asked) == 360


def test_answers_can_be_whole_sentences_that_are_no_tts_test():
    found = plan(SMALL.model_copy(update={"spoken_answer": "sentence"}), 0)
    assert found.asked["sqa"][0].answered.request.text == found.asked["sqa"][0].question.sentence
    answers = {s.answered.request.text for rows in found.asked.values() for s in rows}
    assert answers & {u.request.text for u in found.spoken["test_tts"]} == set()


def test_fewer_questions_are_of_every_topic():
    topics = {question.topic for question in world.questions()}
    assert {question.topic for question in world_questions(len(topics))} == topics
    assert sorted(q.text for q in world_questions(None)) == sorted(q.text for q in world.questions())


def test_too_few_speakers_are_an_error_that_names_the_text():
    with pytest.raises(ConfigError, match="all 1 speakers have said"):
        plan(SMALL.model_copy(update={"voices": ["en"], "rates": [180], "pitches": [50]}), 0)


@pytest.mark.parametrize(
    "change",
    [
        {"held_out_voices": ["en-us"]},
        {"asr": {"count": 10, "questions": 0.9, "statements": 0.2}},
        {"rates": [10]},
        {"pitches": [100]},
        {"voices": []},
    ],
)
def test_settings_that_contradict_are_refused(change):
    with pytest.raises(ValidationError):
        TinyCorpusConfig(**change)


def test_recordings_and_their_rows_agree(tiny_data):
    rows = read_rows(tiny_data / "corpus" / "utterances.jsonl")
    words = read_words(tiny_data / "corpus")
    assert len(list((tiny_data / "corpus" / "wav").iterdir())) == len(rows)
    for row in rows[:20]:
        wave, _ = read_audio(tiny_data / "corpus" / row["audio"])
        assert len(wave) / 16_000 == pytest.approx(row["seconds"])
        assert " ".join(word.text for word in words[row["id"]]) == row["text"]
        assert row["split"] in ("train", "test", "new_voices")
    about = read_manifest(tiny_data / "corpus").about
    assert about["utterances"] == len(rows)


def test_the_rows_are_an_alignment_file(tiny_data):
    found = read_alignments(tiny_data / "corpus" / "utterances.jsonl")
    assert found == {name: list(words) for name, words in read_words(tiny_data / "corpus").items()}


def test_rows_that_are_no_json_name_their_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\nnot json\n')
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path / "a.jsonl")
    assert caught.value.where.endswith("a.jsonl:2")
    (tmp_path / "a.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match="not a JSON object"):
        read_rows(tmp_path / "a.jsonl")
