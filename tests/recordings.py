"""Corpora of a few recordings, good and bad, and jobs on them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import soundfile

from slm.artifact import write_manifest
from slm.config.loader import from_mapping
from slm.config.units import UnitsJob
from slm.speech.mel_kmeans import MelKMeans

RATE = 16_000


def save_speech(folder: Path, codebook: MelKMeans) -> Path:
    """A speech artifact."""
    folder.mkdir(parents=True)
    codebook.save(folder)
    write_manifest(folder, "speech", config={})
    return folder


def save_corpus(folder: Path, waves: list[np.ndarray]) -> Path:
    """`u000.flac`, `u001.flac`, … in two folders."""
    for number, wave in enumerate(waves):
        path = folder / f"s{number % 2}" / f"u{number:03d}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave, RATE)
    return folder


def save_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar of members in the order given."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return path


def flac(wave: np.ndarray, rate: int = RATE) -> bytes:
    """A FLAC file's bytes."""
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format="FLAC")
    return file.getvalue()


def units_job(out: Path, speech: Path, source: dict, **changes) -> UnitsJob:
    """A job with parts of five recordings, in this process."""
    values = {"out": str(out), "speech": str(speech), "source": source, "part": 5, "workers": 1, "batch_s": 4.0}
    return from_mapping(UnitsJob, values | changes, "test")


def folder_source(folder: Path, **changes) -> dict:
    return {"kind": "folder", "path": str(folder), **changes}
