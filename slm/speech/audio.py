"""Audio files and waves: mono float32 in [-1, 1] at 16 kHz everywhere inside the program."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slm.errors import DataError, MachineError

SAMPLE_RATE = 16_000


def check_wave(wave: np.ndarray, rate: int = SAMPLE_RATE, *, where: str = "") -> np.ndarray:
    """The wave as float32 [samples], if it can be used at all.

    Raises:
        DataError: empty, not one channel, not finite, not floating point, or not at 16 kHz.
    """
    if rate != SAMPLE_RATE:
        raise DataError(
            f"sample rate is {rate} Hz, need {SAMPLE_RATE} Hz",
            where=where,
            mend="resample it, or read it by read_audio",
        )
    wave = np.asarray(wave)
    if wave.ndim != 1:
        raise DataError(f"audio has shape {wave.shape}, need one channel [samples]", where=where)
    if wave.size == 0:
        raise DataError("audio is empty", where=where)
    if not np.issubdtype(wave.dtype, np.floating):
        raise DataError(f"audio is {wave.dtype}, need floating point in [-1, 1]", where=where)
    if not np.isfinite(wave).all():
        raise DataError("audio holds NaN or infinite samples", where=where)
    return wave.astype(np.float32, copy=False)


def resample(wave: np.ndarray, rate: int, target: int = SAMPLE_RATE) -> np.ndarray:
    """Resample [samples] from `rate` to `target` Hz (soxr, high quality)."""
    import soxr

    return wave if rate == target else soxr.resample(wave, rate, target).astype(np.float32, copy=False)


def read_audio(path: str | Path) -> tuple[np.ndarray, int]:
    """Read any format libsndfile knows, average its channels, resample to 16 kHz.

    Returns:
        (float32 [samples], 16000).

    Raises:
        DataError: missing, unreadable, empty, or with non-finite samples.
    """
    import soundfile

    if not Path(path).is_file():
        raise DataError("audio file not found", where=str(path))
    try:
        frames, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise DataError(f"not a readable audio file: {error.error_string}", where=str(path)) from None
    wave = check_wave(frames.mean(axis=1), where=str(path))
    return resample(wave, rate), SAMPLE_RATE


def write_audio(path: str | Path, wave: np.ndarray, rate: int = SAMPLE_RATE) -> None:
    """Write a WAV file, mono PCM16; samples beyond ±1 are clipped.

    Raises:
        DataError: the wave is not finite or not one channel.
        MachineError: the file can't be written.
    """
    import soundfile

    wave = np.asarray(wave, dtype=np.float32)
    if wave.ndim != 1 or not np.isfinite(wave).all():
        raise DataError("only finite waves of one channel can be written", where=str(path))
    try:
        soundfile.write(str(path), np.clip(wave, -1.0, 1.0), rate, subtype="PCM_16", format="WAV")
    except soundfile.LibsndfileError as error:
        raise MachineError(f"can't write audio: {error.error_string}", where=str(path)) from None
