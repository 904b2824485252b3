"""Transcripts and the recordings they belong to, in the three ways that corpora lay them out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slm.config.listing import walk
from slm.config.recordings import AUDIO_SUFFIXES
from slm.errors import DataError


@dataclass(frozen=True)
class Utterance:
    """What was said, and where it is recorded.

    Attributes:
        id: names the utterance in alignments and unit files: `84-121123-0000`; in pairs the path without its suffix.
        text: the transcript.
        audio: the recording by its path without suffix; None where transcripts stand alone.
    """

    id: str
    text: str
    audio: Path | None


def read_utterances(folder: str, layout: str, subsets: list[str] | None, case: str = "keep") -> list[Utterance]:
    """All utterances below a folder, in the order of paths and lines.

    Args:
        folder: of the transcripts.
        layout: `librispeech`, `pairs` or `jsonl`.
        subsets: folders below it that are read; None is all.
        case: `keep`, or `lower` for texts in small letters.

    Raises:
        DataError: no transcripts there, one that is malformed, or an id that comes twice.
    """
    reader = {"librispeech": _librispeech, "pairs": _pairs, "jsonl": _jsonl}[layout]
    roots = [Path(folder) / name for name in subsets] if subsets else [Path(folder)]
    found: dict[str, Utterance] = {}
    for root in roots:
        for path in walk(root):
            for utterance in reader(path, Path(folder)):
                if utterance.id in found:
                    raise DataError(f"utterance {utterance.id!r} comes twice", where=str(path))
                text = utterance.text.lower() if case == "lower" else utterance.text
                found[utterance.id] = Utterance(utterance.id, text, utterance.audio)
    if not found:
        wanted = {"librispeech": "*.trans.txt", "pairs": "NAME.txt", "jsonl": "*.jsonl"}[layout]
        raise DataError(f"no transcripts ({wanted}) here", where=", ".join(map(str, roots)), mend="check source.layout")
    return list(found.values())


def recording(utterance: Utterance) -> Path:
    """The utterance's audio file.

    Raises:
        DataError: there is none.
    """
    assert utterance.audio is not None
    if utterance.audio.suffix in AUDIO_SUFFIXES and utterance.audio.is_file():
        return utterance.audio
    for suffix in AUDIO_SUFFIXES:
        path = utterance.audio.with_name(utterance.audio.name + suffix)
        if path.is_file():
            return path
    raise DataError(
        f"no recording of utterance {utterance.id!r}",
        where=f"{utterance.audio}.*",
        mend=f"put it there ({', '.join(AUDIO_SUFFIXES)}), or take its line out of the transcript",
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        yield from enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text: {error.reason} at byte {error.start}", where=str(path)) from None


def _librispeech(path: Path, root: Path) -> Iterator[Utterance]:
    if not path.name.endswith(".trans.txt"):
        return
    for _, line in _lines(path):
        name, _, text = line.strip().partition(" ")
        if name:
            yield Utterance(name, text.strip(), path.with_name(name))


def _pairs(path: Path, root: Path) -> Iterator[Utterance]:
    if path.suffix != ".txt":
        return
    base = path.with_suffix("")
    text = " ".join(line.strip() for _, line in _lines(path)).strip()
    yield Utterance(base.relative_to(root).as_posix(), text, base)


def _jsonl(path: Path, root: Path) -> Iterator[Utterance]:
    if path.suffix != ".jsonl":
        return
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"not valid JSON: {error}", where=where) from None
        if not isinstance(row, dict) or not isinstance(row.get("id"), str) or not isinstance(row.get("text"), str):
            raise DataError("expected an object with id and text", where=where)
        yield Utterance(row["id"], row["text"], path.parent / str(row.get("audio", row["id"])))
