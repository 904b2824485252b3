from __future__ import annotations

import numpy as np
import pytest
import soundfile

from slm.errors import DataError
from slm.speech.audio import (
    as_wave,
    check_heard,
    check_wave,
    decode_audio,
    read_audio,
    read_question,
    resample,
    write_audio,
)


def tone(rate: int, seconds: float = 0.5) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def test_a_wave_survives_its_file(tmp_path):
    wave = tone(16_000)
    write_audio(tmp_path / "a.wav", wave)
    read, rate = read_audio(tmp_path / "a.wav")
    assert rate == 16_000
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, wave, atol=1 / 32_000)


def test_reading_mixes_channels_and_resamples(tmp_path):
    stereo = np.stack([tone(44_100), np.zeros(22_050, np.float32)], axis=1)
    soundfile.write(tmp_path / "a.flac", stereo, 44_100)
    read, rate = read_audio(tmp_path / "a.flac")
    assert (rate, len(read)) == (16_000, 8_000)
    spectrum = np.abs(np.fft.rfft(read))
    assert np.argmax(spectrum) == 220  # 440 Hz in bins of 2 Hz
    assert np.abs(read[1000:7000]).max() == pytest.approx(0.25, abs=0.01)


def test_writing_clips_what_is_too_loud(tmp_path):
    write_audio(tmp_path / "a.wav", np.array([2.0, -2.0, 0.0], np.float32))
    read, _ = read_audio(tmp_path / "a.wav")
    np.testing.assert_allclose(read, [1, -1, 0], atol=1e-4)


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (np.zeros(0, np.float32), "empty"),
        (np.array([0.1, np.nan], np.float32), "NaN"),
        (np.array([np.inf], np.float32), "infinite"),
        (np.zeros((2, 5), np.float32), "one channel"),
        (np.zeros(5, np.int16), "floating point"),
    ],
)
def test_unusable_waves_are_refused(wave, message):
    with pytest.raises(DataError, match=message) as caught:
        check_wave(wave, where="a.wav")
    assert caught.value.where == "a.wav"


def test_another_sample_rate_is_refused():
    with pytest.raises(DataError, match="8000 Hz, need 16000"):
        check_wave(tone(8_000), 8_000)


def test_unreadable_files_are_data_errors(tmp_path):
    with pytest.raises(DataError, match="not found"):
        read_audio(tmp_path / "none.wav")
    (tmp_path / "text.wav").write_text("no audio")
    with pytest.raises(DataError, match="not a readable audio file"):
        read_audio(tmp_path / "text.wav")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16_000)
    with pytest.raises(DataError, match="empty"):
        read_audio(tmp_path / "empty.wav")


def test_resampling_to_the_same_rate_changes_nothing():
    wave = tone(16_000)
    assert resample(wave, 16_000) is wave


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 192_000])
def test_decoding_in_blocks_is_decoding_at_once(tmp_path, rate, monkeypatch):
    wave = np.random.default_rng(0).normal(size=(rate + 7, 3)).astype(np.float32) * 0.2
    soundfile.write(tmp_path / "a.wav", wave, rate, subtype="FLOAT")
    whole = resample(wave.mean(axis=1), rate)
    for block in (1 << 20, 3_000, 3):
        monkeypatch.setattr("slm.speech.audio.BLOCK_SAMPLES", max(block, rate // 10))
        np.testing.assert_array_equal(read_audio(tmp_path / "a.wav")[0], whole)


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3", "WAV"])
@pytest.mark.parametrize("suffix", [".wav", ".raw", ".txt", ""])
def test_the_content_tells_the_format_not_the_name(tmp_path, kind, suffix):
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, tone(16_000), 16_000, format=kind)
    assert len(read_audio(path)[0]) == len(decode_audio(path.read_bytes(), where="bytes")) == 8_000


def test_files_that_are_cut_are_told_from_short_ones(tmp_path):
    for kind, message in [("FLAC", "not a readable audio file"), ("WAV", "is cut"), ("MP3", "is cut")]:
        path = tmp_path / f"a.{kind.lower()}"
        soundfile.write(path, tone(16_000, 8.0), 16_000, format=kind)
        data = path.read_bytes()
        with pytest.raises(DataError, match=message):
            decode_audio(data[: len(data) // 2], where="cut")
        assert len(decode_audio(data, where="whole")) == 128_000


def test_bounds_of_the_duration_are_kept_before_anything_is_decoded(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", tone(16_000, 2.0), 16_000)
    with pytest.raises(DataError, match=r"too short: 2\.000 s, shortest_s is 3"):
        decode_audio(tmp_path / "a.wav", where="a.wav", shortest_s=3.0)
    monkeypatch.setattr("slm.speech.audio._decoded", None)
    with pytest.raises(DataError, match=r"too long: 2 s, longest_s is 1\.5"):
        decode_audio(tmp_path / "a.wav", where="a.wav", longest_s=1.5)


def test_silence_and_rates_without_speech_are_refused(tmp_path):
    check_heard(np.full(100, 2e-4, np.float32))
    for wave in (np.zeros(100), np.full(100, 5e-5), np.zeros(0)):
        with pytest.raises(DataError, match="silent"):
            check_heard(wave.astype(np.float32), where="a.wav")
    soundfile.write(tmp_path / "a.wav", tone(1_000), 1_000)
    with pytest.raises(DataError, match="too low for speech: 1000 Hz"):
        read_audio(tmp_path / "a.wav")
    with pytest.raises(DataError, match="too low for speech: 1 Hz"):
        as_wave(tone(16_000), 1, where="row 0")
    assert len(as_wave(np.stack([tone(8_000)] * 8), 8_000, where="row 0")) == 8_000


def test_a_question_is_a_file_or_its_bytes_and_neither_silent_nor_hours_long(tmp_path):
    write_audio(tmp_path / "a.wav", tone(16_000))
    wave = read_question(tmp_path / "a.wav")
    np.testing.assert_array_equal(wave, read_question((tmp_path / "a.wav").read_bytes(), where="row 3"))
    write_audio(tmp_path / "silent.wav", np.zeros(16_000, np.float32))
    with pytest.raises(DataError, match="silent"):
        read_question(tmp_path / "silent.wav")
    soundfile.write(tmp_path / "long.flac", np.zeros(8_000 * 3_700, np.int16), 8_000)
    with pytest.raises(DataError, match="3,700 s"):
        read_question(tmp_path / "long.flac")
    with pytest.raises(DataError, match="not found"):
        read_question(tmp_path / "gone.wav")
