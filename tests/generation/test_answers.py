from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from generation.conftest import tone

from slm.artifact import read_json, write_json
from slm.errors import DataError
from slm.generation.answers import Answer, Decoding, Refused, Speaker, find_speech, open_speaker, taken_apart
from slm.generation.generate import Sampling
from slm.generation.output import Output, interleaving_faults
from slm.generation.questions import Question
from slm.model.load import load_model
from slm.stages.sqa import split_answer
from slm.tokens.vocabulary import text_to_units


def test_a_spoken_question_gets_a_spoken_answer(reciting):
    speaker = reciting("what is it\n\na cat\n\na<|1|> cat<|2|><|5|>")
    questions = [Question(f"q{i}", i, units=speaker.hear([tone(i)])[0]) for i in range(3)]
    for question, answer in zip(questions, speaker.answer("sqa", questions, Decoding(60, 2)), strict=True):
        assert isinstance(answer, Answer) and answer.question is question
        assert answer.prompt == "".join(f"<|{unit}|>" for unit in question.units)
        assert (answer.transcript, answer.text, answer.units) == ("what is it", "a cat", [1, 2, 5])
        assert answer.faults == [] and answer.output.finished
        wave = speaker.wave(answer)
        np.testing.assert_array_equal(wave, speaker.vocoder.wave([1, 2, 5]))


def test_constrained_answers_to_spoken_questions_keep_units_for_the_last_part(speaker):
    questions = [Question(f"q{i}", i, units=speaker.hear([tone(i)])[0]) for i in range(8)]
    decoding = Decoding(60, 8, Sampling(1.0, 1.0, seed=1), constrained=True)
    free = speaker.answer("sqa", questions, replace(decoding, constrained=False))
    strict = speaker.answer("sqa", questions, decoding)
    assert any(text_to_units(split_answer(one.output.raw).transcript) for one in free)
    assert not any(text_to_units(split_answer(one.output.raw).transcript) for one in strict)


def test_each_question_has_its_answer_whatever_its_neighbours(speaker):
    questions = [Question(f"q{i}", i, text="repeat twice red dog"[: 3 + 2 * i]) for i in range(6)]
    decoding = Decoding(20, 4, Sampling(1.0, 0.95, seed=2), constrained=True)
    together = speaker.answer("tts", questions, decoding)
    apart = [speaker.answer("tts", [question], decoding)[0] for question in questions]
    assert together == apart
    assert all(interleaving_faults(answer.output.raw) == [] for answer in together)


def test_what_can_not_be_asked_is_refused_and_the_others_are_answered(speaker):
    positions = speaker.loaded.model.config.max_position_embeddings
    questions = [
        Question("good", 0, units=[1, 2]),
        Question("unknown", 1, units=[1, 99]),
        Question("empty", 2),
        Question("long", 3, units=[1, 2] * positions),
        Question("good too", 4, units=[3]),
    ]
    found = speaker.answer("sqa", questions, Decoding(4))
    assert [isinstance(one, Answer) for one in found] == [True, False, False, False, True]
    why = [one.why for one in found if isinstance(one, Refused)]
    assert "outside the model's 12" in why[0] and "empty" in why[1] and f"the model {positions} positions" in why[2]


def test_an_answer_ends_where_the_positions_of_the_model_end(speaker):
    positions = speaker.loaded.model.config.max_position_embeddings
    question = Question("q", text="a" * 480)
    answer = speaker.answer("tts", [question], Decoding(10_000, constrained=True))[0]
    assert isinstance(answer, Answer) and answer.output.tokens < positions - 400


def test_a_recording_of_hours_is_refused_before_it_is_listened_to(speaker, monkeypatch):
    monkeypatch.setattr(type(speaker.extractor), "units", lambda *_: pytest.fail("it was listened to"))
    with pytest.raises(DataError, match=r"a recording of 3600 s is 90000 units, the model has 512 positions"):
        speaker.hear([np.zeros(3600 * 16_000, np.float32)])


def output(raw: str, finished: bool = True) -> Output:
    return Output(raw, raw, text_to_units(raw), finished)


def test_a_spoken_answer_in_its_parts():
    answer = taken_apart("sqa", Question("q"), "p", output("what is it\n\na cat\n\na<|1|> cat<|2|>"))
    assert (answer.transcript, answer.text, answer.units, answer.faults) == ("what is it", "a cat", [1, 2], [])
    cut = taken_apart("sqa", Question("q"), "p", output("what is<|3|> it\n\na", finished=False))
    assert (cut.transcript, cut.text, cut.units) == ("what is it", "a", [])
    assert cut.faults == ["unfinished", "empty"]


def test_faults_follow_the_form_of_the_task():
    assert taken_apart("tts", Question("q"), "p", output("<|1|>a")).faults == ["units_first", "text_last"]
    assert taken_apart("llm", Question("q"), "p", output("a<|1|>")).faults == ["units_in_text"]
    assert taken_apart("asr", Question("q"), "p", output("")).faults == ["empty"]


def test_without_extractor_or_vocoder(speaker):
    mute = Speaker(speaker.loaded)
    with pytest.raises(DataError, match="need the extractor"):
        mute.hear([tone(0)])
    answer = taken_apart("tts", Question("q"), "p", output("a<|1|>"))
    assert len(mute.wave(answer)) == 0 and len(speaker.wave(answer)) > 0


def test_speech_of_other_units_is_refused(talking, pico_base):
    with pytest.raises(DataError, match="other speech units"):
        open_speaker(load_model(pico_base), talking.speech)


def test_a_speech_folder_without_a_vocoder_hears_only(speaker, talking, tmp_path):
    folder = shutil.copytree(talking.speech, tmp_path / "speech")
    about = read_json(folder / "speech.json")
    write_json(folder / "speech.json", about | {"vocoder": None})
    listener = open_speaker(speaker.loaded, folder)
    assert listener.vocoder is None and len(listener.hear([tone(0)])[0]) > 0
    with pytest.raises(DataError, match="no vocoder"):
        open_speaker(speaker.loaded, folder, language="eng")


def test_a_voice_is_chosen_where_there_is_a_choice(speaker, talking):
    with pytest.raises(DataError, match="no choice of language"):
        open_speaker(speaker.loaded, talking.speech, language="eng")
    with pytest.raises(DataError, match="there is no vocoder"):
        open_speaker(speaker.loaded, None, speaker=3)


def test_the_speech_folder_of_a_run_is_found(talking, units):
    own = talking.codebook.unit_set
    assert find_speech(talking.base, own) == talking.speech
    assert find_speech(talking.base / "checkpoints" / "step_000001", own) == talking.speech
    assert find_speech(talking.base, units) is None and find_speech(talking.base, None) is None
