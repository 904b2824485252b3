"""Opening a speech artifact by the names it carries."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm.artifact import read_json
from slm.errors import DataError

if TYPE_CHECKING:
    from slm.speech.extractor import Extractor
    from slm.speech.vocoder import Vocoder
    from slm.tokens.vocabulary import UnitSet

SPEECH_FILE = "speech.json"

EXTRACTORS: dict[str, str] = {
    "mel_kmeans": "slm.speech.mel_kmeans:MelKMeans",
    "xlsr_kmeans": "slm.speech.xlsr:XlsrKMeans",
    "seamless": "slm.speech.seamless:SeamlessExtractor",
}
"""Name -> `module:class` with a classmethod `load(folder)`; imported only when named."""

VOCODERS: dict[str, str] = {
    "codebook_mel": "slm.speech.codebook_vocoder:CodebookVocoder",
    "code_hifigan": "slm.speech.hifigan:CodeHifiGan",
    "seamless": "slm.speech.seamless:SeamlessVocoder",
}
"""Name -> `module:class` with a classmethod `load(folder)`; imported only when named."""


def load_speech(folder: str | Path) -> tuple[Extractor, Vocoder, UnitSet]:
    """Extractor, vocoder and unit set of a speech artifact.

    Args:
        folder: holds `speech.json` {extractor, vocoder, units} and the files those two need.

    Raises:
        DataError: no such folder, an unknown extractor or vocoder, no vocoder, or a codebook that is not the
            one `speech.json` names.
    """
    extractor, units = load_extractor(folder)
    return extractor, load_vocoder(folder), units


def load_extractor(folder: str | Path, device: str = "auto", dtype: str = "float32") -> tuple[Extractor, UnitSet]:
    """Extractor and unit set of a speech artifact, which need not have a vocoder.

    Args:
        folder: see `load_speech`.
        device: where a network runs: `auto`, `cpu`, `cuda` or `cuda:1`; extractors without one pass it over.
        dtype: in which numbers it runs: float32, bfloat16 or float16.

    Raises:
        DataError: see `load_speech`.
    """
    about, units = _read(folder), read_units(folder)
    extractor = _load(EXTRACTORS, "extractor", about["extractor"], folder, device=device, dtype=dtype)
    if extractor.identity != units.codebook:
        raise DataError(
            f"the codebook is {extractor.identity[:12]}, {SPEECH_FILE} says {units.codebook[:12]}",
            where=str(folder),
            mend="build the speech artifact again; its files do not belong together",
        )
    return extractor, units


def load_vocoder(
    folder: str | Path, device: str = "auto", *, language: str | None = None, speaker: int | None = None
) -> Vocoder:
    """Vocoder of a speech artifact.

    Args:
        folder: see `load_speech`.
        device: where a network runs.
        language: code of the language it speaks, for vocoders that have several; None is its default.
        speaker: number of the speaker, for vocoders that have several; None is the language's own.

    Raises:
        DataError: the artifact has none, or one without that choice; see `load_speech`.
    """
    about = _read(folder)
    if about["vocoder"] is None:
        raise DataError(
            "this speech artifact has no vocoder",
            where=str(folder),
            mend="convert one with it: slm speech convert … vocoder=CHECKPOINT",
        )
    chosen = {key: value for key, value in {"language": language, "speaker": speaker}.items() if value is not None}
    return _load(VOCODERS, "vocoder", about["vocoder"], folder, chosen, device=device)


def read_units(folder: str | Path) -> UnitSet:
    """What the units of a speech artifact are, without opening its extractor.

    Raises:
        DataError: no such folder, or no description of units in it.
    """
    from slm.tokens.vocabulary import UnitSet

    about = _read(folder)
    try:
        return UnitSet(**about["units"])
    except TypeError as error:
        raise DataError(f"not a description of speech units: {error}", where=str(Path(folder) / SPEECH_FILE)) from None


def has_vocoder(folder: str | Path) -> bool:
    """Whether a speech artifact can speak.

    Raises:
        DataError: see `load_speech`.
    """
    return _read(folder)["vocoder"] is not None


def _read(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / SPEECH_FILE
    about = read_json(path)
    missing = [key for key in ("units", "extractor", "vocoder") if not isinstance(about, dict) or key not in about]
    if missing:
        raise DataError(f"not a description of speech units: {missing[0]!r} is missing", where=str(path))
    return dict(about)


def _load(
    registry: dict[str, str],
    role: str,
    name: str,
    folder: str | Path,
    chosen: dict[str, Any] | None = None,
    **placed: str,
) -> Any:
    """The class of that name, loaded; it gets of `placed` what it takes, and has to take all of `chosen`."""
    if name not in registry:
        raise DataError(
            f"unknown {role} {name!r}; known: {', '.join(sorted(registry))}", where=str(Path(folder) / SPEECH_FILE)
        )
    module, _, attribute = registry[name].partition(":")
    load = getattr(importlib.import_module(module), attribute).load
    takes = inspect.signature(load).parameters
    refused = [key for key in chosen or {} if key not in takes]
    if refused:
        raise DataError(f"the vocoder {name} has no choice of {refused[0]}", where=str(folder), mend="leave it out")
    return load(Path(folder), **{key: value for key, value in placed.items() if key in takes}, **(chosen or {}))
