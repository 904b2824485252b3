from __future__ import annotations

import numpy as np
from generation.conftest import tone

from slm.demo.talk import AUTOMATIC, replies, reply
from slm.generation.answers import Decoding, Speaker
from slm.generation.generate import Sampling
from slm.speech.audio import write_audio

STRICT = Decoding(80, constrained=True, sampling=Sampling(1.0, 1.0, seed=4))


def ask(speaker, text="", audio=None, task=AUTOMATIC, decoding=STRICT):
    return reply(speaker, text, audio, task=task, instruction="", decoding=decoding)


def test_a_spoken_question_gets_a_sound_and_a_strip(reciting, tmp_path):
    write_audio(tmp_path / "q.wav", tone(1))
    one = ask(reciting("what is it\n\nparis\n\nparis<|4|><|2|>"), audio=str(tmp_path / "q.wav"))
    assert (one.heard, one.text, one.note) == ("what is it", "paris", "")
    rate, wave = one.sound
    assert rate == 16_000 and wave.dtype == np.int16 and len(wave) and np.abs(wave).max() > 1000
    assert one.strip.count("<rect") == 2 and "<title>paris</title>" in one.strip


def test_a_text_is_spoken_by_task(speaker):
    one = ask(speaker, "paris", task="tts")
    assert one.sound is not None and one.strip and not one.heard
    plain = ask(speaker, "paris", task="llm")
    assert plain.sound is None and plain.strip == "" and plain.text


def test_what_is_wrong_is_said_on_the_page(speaker, tmp_path):
    (tmp_path / "q.wav").write_text("not a song")
    assert "not a readable audio file" in ask(speaker, audio=str(tmp_path / "q.wav")).note
    assert "the question is empty" in ask(speaker, " ").note
    assert "task tts takes text" in ask(speaker, audio=str(tmp_path / "q.wav"), task="tts").note
    write_audio(tmp_path / "q.wav", tone(1))
    mute = Speaker(speaker.loaded)
    assert "--speech FOLDER" in ask(mute, audio=str(tmp_path / "q.wav")).note
    assert "nothing can be heard" in ask(mute, "paris", task="tts").note


def test_two_models_answer_side_by_side(speaker):
    found = replies(
        {"a": speaker, "b": Speaker(speaker.loaded)}, "paris", None, task="tts", instruction="", decoding=STRICT
    )
    assert found[0].strip == found[1].strip and found[0].sound is not None and found[1].sound is None
