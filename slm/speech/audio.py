"""Audio files and waves: mono float32 in [-1, 1] at 16 kHz everywhere inside the program.

Recordings are decoded, mixed down and resampled a block at a time: however long one is and however many channels it
has, only its 16 kHz wave is ever held. What can't be used raises a `DataError` whose text up to the colon names the
fault, so that jobs can count kinds of faults.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from slm.errors import DataError, MachineError

if TYPE_CHECKING:
    import soundfile

SAMPLE_RATE = 16_000
LOWEST_RATE = 4_000
"""Below it there is no speech to be had."""
SILENT_PEAK = 1e-4
"""-80 dB below full scale: the noise of 16-bit conversion stays under it, the quietest speech does not."""
WHOLE = 0.99
"""Share of the samples that a header announces which have to be there; compressed formats round."""
BLOCK_SAMPLES = 1 << 20
"""Samples of all channels that are decoded at a time."""


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


LONGEST_QUESTION_S = 3600.0
"""No model has positions for an hour of speech, and ten hours would fill the memory before anything is said."""


def check_heard(wave: np.ndarray, *, where: str = "") -> None:
    """Refuse a wave [samples] in which there is nothing to hear.

    Raises:
        DataError: no sample reaches `SILENT_PEAK`.
    """
    peak = float(np.abs(wave).max(initial=0.0))
    if peak < SILENT_PEAK:
        raise DataError(f"audio is silent: its peak is {peak:.1g} of full scale", where=where)


def resample(wave: np.ndarray, rate: int, target: int = SAMPLE_RATE) -> np.ndarray:
    """Resample [samples] from `rate` to `target` Hz (soxr, high quality)."""
    import soxr

    return wave if rate == target else soxr.resample(wave, rate, target).astype(np.float32, copy=False)


def read_audio(path: str | Path) -> tuple[np.ndarray, int]:
    """Read any format libsndfile knows, average its channels, resample to 16 kHz.

    Returns:
        (float32 [samples], 16000).

    Raises:
        DataError: missing, unreadable, cut short, empty, or with non-finite samples.
    """
    if not Path(path).is_file():
        raise DataError("audio file not found", where=str(path))
    return decode_audio(path, where=str(path)), SAMPLE_RATE


def read_question(source: str | Path | bytes, *, where: str = "") -> np.ndarray:
    """A recording that a model is asked, float32 [samples] at 16 kHz: a file, or a file's bytes.

    Raises:
        DataError: see `decode_audio`; longer than `LONGEST_QUESTION_S`, by its header already; or silent.
    """
    where = where or str(source)
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise DataError("audio file not found", where=where)
    wave = decode_audio(source, where=where, longest_s=LONGEST_QUESTION_S)
    check_heard(wave, where=where)
    return wave


def decode_audio(
    source: str | Path | bytes, *, where: str, shortest_s: float = 0.0, longest_s: float = float("inf")
) -> np.ndarray:
    """The wave of a file, or of a file's bytes; the format is told by the content, not by a name.

    Args:
        source: path of a file, or all of its bytes.
        where: for messages.
        shortest_s, longest_s: bounds of the duration; a recording that its header says is too long is not decoded.

    Returns:
        float32 [samples], 16 kHz, the mean of all channels.

    Raises:
        DataError: unreadable, cut, empty, not finite, no rate that speech has, or outside the bounds.
    """
    import soundfile

    try:
        with _opened(source) as file:
            _check_whole(file, where)
            # By number or bytes: a name would be asked for the format, and `.raw` says that there is no header.
            with soundfile.SoundFile(file if isinstance(file, io.BytesIO) else file.fileno(), closefd=False) as sound:
                if sound.samplerate < LOWEST_RATE:
                    raise DataError(f"sample rate is too low for speech: {sound.samplerate} Hz", where=where)
                _check_duration(sound.frames / sound.samplerate, shortest_s, longest_s, where)
                wave = _decoded(sound, longest_s, where)
    except soundfile.LibsndfileError as error:
        raise DataError(f"not a readable audio file: {error.error_string.strip().rstrip('.')}", where=where) from None
    except OSError as error:
        raise DataError(f"audio file can't be read: {error.strerror or error}", where=where) from None
    wave = check_wave(wave, where=where)
    _check_duration(len(wave) / SAMPLE_RATE, shortest_s, longest_s, where)
    return wave


def as_wave(samples: np.ndarray, rate: int, *, where: str) -> np.ndarray:
    """Decoded samples, [samples] or [channels, samples], as a 16 kHz wave.

    Raises:
        DataError: empty, not finite, not floating point, or no rate that speech has.
    """
    if rate < LOWEST_RATE:
        raise DataError(f"sample rate is too low for speech: {rate} Hz", where=where)
    samples = np.asarray(samples)
    mono = samples.mean(axis=0) if samples.ndim == 2 else samples
    return check_wave(resample(check_wave(mono, where=where), rate), where=where)


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


def _decoded(file: soundfile.SoundFile, longest_s: float, where: str) -> np.ndarray:
    """All of a file's frames, mixed down and at 16 kHz."""
    import soxr

    rate, frames, pieces = file.samplerate, 0, []
    stream: Any = None
    if rate != SAMPLE_RATE:
        stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
    while True:
        block = file.read(max(1, BLOCK_SAMPLES // file.channels), dtype="float32", always_2d=True)
        if len(block) == 0:
            break
        frames += len(block)
        _check_duration(frames / rate, 0.0, longest_s, where)
        mono = np.ascontiguousarray(block.mean(axis=1))
        pieces.append(mono if stream is None else stream.resample_chunk(mono))
    if frames < file.frames * WHOLE:
        raise DataError(f"audio file is cut: it has {frames:,} of {file.frames:,} samples", where=where)
    if stream is not None and frames:
        pieces.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


def _check_duration(seconds: float, shortest_s: float, longest_s: float, where: str) -> None:
    if seconds > longest_s:
        raise DataError(f"audio is too long: {seconds:,.0f} s, longest_s is {longest_s:g}", where=where)
    if 0 < seconds < shortest_s:
        raise DataError(f"audio is too short: {seconds:.3f} s, shortest_s is {shortest_s:g}", where=where)


def _opened(source: str | Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb", buffering=0)


def _check_whole(file: BinaryIO, where: str) -> None:
    """A WAV must not announce more bytes than there are: libsndfile reads what is left and says nothing."""
    head = file.read(8)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if size == 0:
        raise DataError("audio is empty", where=where)
    announced = int.from_bytes(head[4:8], "little") + 8
    streamed = announced >= 0x7FFFFFFF  # written to a pipe, whose writer could not go back to say
    if head[:4] == b"RIFF" and size < announced and not streamed:
        raise DataError(f"audio file is cut: it has {size:,} of {announced:,} bytes", where=where)
