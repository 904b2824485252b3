"""Opening a speech artifact by the names it carries."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm.artifact import read_json
from slm.errors import DataError

if TYPE_CHECKING:
    from slm.speech.extractor import Extractor
    from slm.speech.vocoder import Vocoder
    from slm.tokens.vocabulary import UnitSet

SPEECH_FILE = "speech.json"

EXTRACTORS: dict[str, str] = {"mel_kmeans": "slm.speech.mel_kmeans:MelKMeans"}
"""Name -> `module:class` with a classmethod `load(folder)`; imported only when named."""

VOCODERS: dict[str, str] = {"codebook_mel": "slm.speech.codebook_vocoder:CodebookVocoder"}
"""Name -> `module:class` with a classmethod `load(folder)`; imported only when named."""


def load_speech(folder: str | Path) -> tuple[Extractor, Vocoder, UnitSet]:
    """Extractor, vocoder and unit set of a speech artifact.

    Args:
        folder: holds `speech.json` {extractor, vocoder, units} and the files those two need.

    Raises:
        DataError: no such folder, an unknown extractor or vocoder, or a codebook that is not the
            one `speech.json` names.
    """
    path = Path(folder) / SPEECH_FILE
    units, about = read_units(folder), read_json(path)
    try:
        names = about["extractor"], about["vocoder"]
    except KeyError as error:
        raise DataError(f"not a description of speech units: {error}", where=str(path)) from None
    extractor = _load(EXTRACTORS, "extractor", names[0], path)
    vocoder = _load(VOCODERS, "vocoder", names[1], path)
    if extractor.identity != units.codebook:
        raise DataError(
            f"the codebook is {extractor.identity[:12]}, {SPEECH_FILE} says {units.codebook[:12]}",
            where=str(folder),
            mend="build the speech artifact again; its files do not belong together",
        )
    return extractor, vocoder, units


def read_units(folder: str | Path) -> UnitSet:
    """What the units of a speech artifact are, without opening its extractor.

    Raises:
        DataError: no such folder, or no description of units in it.
    """
    from slm.tokens.vocabulary import UnitSet

    path = Path(folder) / SPEECH_FILE
    about = read_json(path)
    try:
        return UnitSet(**about["units"])
    except (KeyError, TypeError) as error:
        raise DataError(f"not a description of speech units: {error}", where=str(path)) from None


def _load(registry: dict[str, str], role: str, name: str, path: Path) -> Any:
    if name not in registry:
        raise DataError(f"unknown {role} {name!r}; known: {', '.join(sorted(registry))}", where=str(path))
    module, _, attribute = registry[name].partition(":")
    return getattr(importlib.import_module(module), attribute).load(path.parent)
