from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from slm.errors import DataError, MachineError
from slm.speech.audio import read_audio
from slm.tiny import synthesis
from slm.tiny.espeak import word_times
from slm.tiny.synthesis import Request, synthesise

QUESTION = "what is the capital of france"


def test_it_speaks_with_word_times(tmp_path):
    (spoken,) = synthesise([(Request(QUESTION, "en-us", 175, 50), tmp_path / "a.wav")])
    wave, _ = read_audio(tmp_path / "a.wav")
    assert spoken.seconds == pytest.approx(len(wave) / 16_000)
    assert 1.2 < spoken.seconds < 2.0
    assert 0.02 < np.sqrt((wave**2).mean()) < 0.5
    assert [word.text for word in spoken.words] == QUESTION.split()
    starts = [word.start_s for word in spoken.words]
    assert starts[0] == 0
    assert starts == sorted(starts)
    assert [word.end_s for word in spoken.words[:-1]] == starts[1:]
    assert spoken.words[-1].end_s == pytest.approx(spoken.seconds, abs=1e-3)
    assert 0.9 < starts[4] < 1.1  # "of"


def test_equal_jobs_give_equal_bytes_for_any_number_of_programs(tmp_path, monkeypatch):
    monkeypatch.setattr(synthesis, "BATCH", 2)
    requests = [
        Request(text, voice, rate, pitch)
        for text in (QUESTION, "the cow says moo")
        for voice in ("en-us", "en-us+f2")
        for rate, pitch in ((160, 50), (200, 35))
    ]
    first = synthesise([(request, tmp_path / f"a{i}.wav") for i, request in enumerate(requests)])
    second = synthesise([(request, tmp_path / f"b{i}.wav") for i, request in enumerate(requests)], workers=3)
    assert first == second
    for i in range(len(requests)):
        assert (tmp_path / f"a{i}.wav").read_bytes() == (tmp_path / f"b{i}.wav").read_bytes()


def test_voice_rate_and_pitch_are_heard(tmp_path):
    requests = [
        Request(QUESTION, "en-us", 140, 50),
        Request(QUESTION, "en-us", 220, 50),
        Request(QUESTION, "en-us", 140, 90),
        Request(QUESTION, "en-us+f2", 140, 50),
    ]
    slow, fast, *_ = synthesise([(request, tmp_path / f"{i}.wav") for i, request in enumerate(requests)])
    assert slow.seconds > 1.3 * fast.seconds
    assert len({(tmp_path / f"{i}.wav").read_bytes() for i in range(4)}) == 4


def test_progress_counts_every_utterance(tmp_path):
    seen: list[int] = []
    jobs = [(Request(f"{word} cat", "en-us", 200, 50), tmp_path / f"{word}.wav") for word in ("one", "two", "three")]
    synthesise(jobs, workers=2, on_done=seen.append)
    assert seen == [1, 2, 3]
    assert synthesise([]) == []


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("cat", "xx", 175, 50), "no voice 'xx'"),
        (Request("cat", "en-us+zz", 175, 50), r"no voice 'en-us\+zz'"),
        (Request("...", "en-us", 175, 50), "no speech of '...'"),
    ],
)
def test_unknown_voices_and_silent_texts_are_data_errors(tmp_path, request_, message):
    good = Request("cat", "en-us", 175, 50)
    with pytest.raises(DataError, match=message):
        synthesise([(good, tmp_path / "a.wav"), (request_, tmp_path / "b.wav")], workers=2)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(synthesis.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match="espeakng-loader"):
        synthesise([(Request("cat", "en-us", 175, 50), tmp_path / "a.wav")])


def test_a_program_that_fails_is_a_machine_error(tmp_path):
    with pytest.raises(MachineError, match="stopped after 0 of 1"):
        synthesise([(Request("cat", "en-us", 175, 50), tmp_path / "no folder" / "a.wav")])


def test_the_library_stays_out_of_this_process(tmp_path):
    program = (
        "import sys; from pathlib import Path; from slm.tiny.synthesis import *;"
        f"synthesise([(Request('cat', 'en-us', 175, 50), Path({str(tmp_path / 'a.wav')!r}))]);"
        "print('espeakng_loader' in sys.modules, 'libespeak' in Path('/proc/self/maps').read_text())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_words_without_an_event_share_the_time_of_the_word_before():
    timed = word_times("of the cat", [(0, 0.0), (7, 0.5)], 1.0)
    assert [(w["text"], w["start_s"], w["end_s"]) for w in timed] == [
        ("of", 0.0, 0.2),
        ("the", 0.2, 0.5),
        ("cat", 0.5, 1.0),
    ]


def test_equal_words_side_by_side_keep_their_own_shares():
    timed = word_times("a a a", [(0, 0.0)], 0.9)
    assert [(w["start_s"], w["end_s"]) for w in timed] == [(0.0, 0.3), (0.3, 0.6), (0.6, 0.9)]


def test_a_long_path_to_the_library_s_data_does_no_harm(tmp_path, monkeypatch):

    installed = Path(importlib.util.find_spec("espeakng_loader").origin).parent
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    (deep / "espeakng_loader").symlink_to(installed)
    monkeypatch.setenv("PYTHONPATH", str(deep))
    (spoken,) = synthesise([(Request("cat", "en-us", 175, 50), tmp_path / "a.wav")])
    assert spoken.seconds > 0.2
