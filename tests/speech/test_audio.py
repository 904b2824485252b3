from __future__ import annotations

import numpy as np
import pytest
import soundfile

from slm.errors import DataError
from slm.speech.audio import check_wave, read_audio, resample, write_audio


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
