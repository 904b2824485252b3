"""Which word is spoken when: `Word`, what makes a row of words an alignment, and files that hold one.

Reads Praat TextGrids (as the Montreal Forced Aligner writes them), NIST CTM and JSON. Every reader
leaves silences out, checks what it read, and names file and utterance in what it refuses.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slm.artifact import write_atomic
from slm.errors import DataError, from_os_error
from slm.tokens.textgrid import INTERVALS, POINTS, Tier, parse_textgrid
from slm.tokens.vocabulary import text_to_units

SILENCES = frozenset({"", "sil", "sp", "spn", "<eps>", "<sil>", "[sil]", "<p:>", "<silence>", "[silence]"})
"""Labels that are no words, compared without regard to case."""
OVERLAP_S = 0.05
"""Neighbours may overlap by so much: aligners round, and write 10 ms frames twice."""
PAST_END_S = 0.1
"""A word may end so long after the last unit: extractors drop the last, incomplete frames."""


@dataclass(frozen=True)
class Word:
    """A word and when it is spoken, in seconds from the start of the utterance."""

    text: str
    start_s: float
    end_s: float


def check_words(words: Sequence[Word], *, seconds: float | None = None, where: str = "") -> None:
    """Refuse what is no alignment.

    A word of no length passes: it shares the units of its neighbour.

    Args:
        words: in the order they are spoken.
        seconds: length of the audio, if it is known.
        where: file or utterance, for the error.

    Raises:
        DataError: no word; a word that is empty, padded or holds a unit token; times that are
            negative, not finite, run backwards or overlap; a word past the end of the audio.
    """
    if not words:
        raise DataError("the alignment holds no word", where=where)
    before = 0.0
    for i, word in enumerate(words):
        name = f"word {i} ({word.text!r})"
        if not word.text or word.text != word.text.strip() or text_to_units(word.text):
            raise DataError(
                f"word {i} is {word.text!r}: empty, padded with spaces, or holding a unit token", where=where
            )
        if not (math.isfinite(word.start_s) and math.isfinite(word.end_s) and word.start_s >= 0):
            raise DataError(f"{name} lies at {word.start_s} to {word.end_s} s", where=where)
        if word.end_s < word.start_s or (i and word.start_s < words[i - 1].start_s):
            raise DataError(
                f"the times of {name} run backwards: {_span(word)} s", where=where, mend="sort the alignment by start"
            )
        if word.start_s < before - OVERLAP_S:
            raise DataError(
                f"{name}, {_span(word)} s, overlaps the words before it, which end at {before:g} s",
                where=where,
                mend="align one speaker and one channel at a time",
            )
        before = max(before, word.end_s)
    if seconds is not None and before > seconds + PAST_END_S:
        raise DataError(
            f"the words end at {before:g} s, the audio at {seconds:g} s",
            where=where,
            mend="use the alignment of this very recording, and times in seconds from its start",
        )


def read_alignment(
    path: str | Path, *, tier: str = "words", silences: Collection[str] = SILENCES, encoding: str | None = None
) -> list[Word]:
    """The words of a file that holds one utterance; the format goes by the extension.

    Args:
        path: `.TextGrid`, `.ctm`, `.json` or `.jsonl`.
        tier, silences, encoding: see `read_alignments`.

    Raises:
        DataError: as `read_alignments`; or the file holds several utterances.
    """
    found = read_alignments(path, tier=tier, silences=silences, encoding=encoding)
    if len(found) != 1:
        names = ", ".join(list(found)[:3])
        raise DataError(
            f"the file holds {len(found)} utterances ({names}, …)", where=str(path), mend="use read_alignments"
        )
    return next(iter(found.values()))


def read_alignments(
    path: str | Path, *, tier: str = "words", silences: Collection[str] = SILENCES, encoding: str | None = None
) -> dict[str, list[Word]]:
    """Words of every utterance of a file, in the file's order; an utterance of silences alone is left out.

    Forms of JSON: a list of words; an object with `words`; several utterances as `{utterance: words}`
    or as rows with `id` and `words` (a list or JSON lines); the Montreal Forced Aligner's `tiers`. A
    word is an object with `text` or `word`, and `start_s`, `end_s` or `start`, `end`.

    Args:
        path: `.TextGrid`, `.ctm`, `.json` or `.jsonl`. A file of one unnamed utterance names it by its stem.
        tier: name of the words' tier in a TextGrid, in any case; `speaker - words` is found too if there is one such.
        silences: labels that are no words.
        encoding: of the file; null is what its byte order mark says, UTF-8 without one.

    Raises:
        DataError: missing, unreadable, of an unknown format, without such a tier or any word, or
            refused by `check_words`.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"alignments are {', '.join(_READERS)}, not {path.suffix or 'without extension'}", where=str(path)
        )
    labelled = reader(_decode(path, encoding), path, tier)
    quiet = {silence.casefold() for silence in silences}
    found: dict[str, list[Word]] = {}
    for utterance, words in labelled.items():
        spoken = [word for word in words if word.text.casefold() not in quiet]
        if spoken:
            check_words(spoken, where=f"{path}, utterance {utterance}")
            found[utterance] = spoken
    if not found:
        raise DataError("the alignment holds no word", where=str(path))
    return found


def write_alignments(path: str | Path, alignments: Mapping[str, Iterable[Word]]) -> None:
    """Write JSON lines that `read_alignments` reads: `{"id": …, "words": [{text, start_s, end_s}, …]}`."""
    rows = [{"id": utterance, "words": [asdict(word) for word in words]} for utterance, words in alignments.items()]
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _span(word: Word) -> str:
    return f"{word.start_s:g} to {word.end_s:g}"


def _decode(path: Path, encoding: str | None) -> str:
    if not path.is_file():
        raise DataError("alignment file not found", where=str(path))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise from_os_error(error, f"reading {path}") from error
    if encoding is None:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            encoding = "utf-16"
        elif b"\0" in data[:64] and not data.startswith(b"ooBinaryFile"):
            # UTF-16 without a mark: every label and number begins with ASCII, so the zero byte tells the order.
            encoding = "utf-16-be" if data[0] == 0 else "utf-16-le"
        else:
            encoding = "utf-8-sig"
    if data.startswith(b"ooBinaryFile"):
        encoding = "latin-1"
    try:
        return data.decode(encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise DataError(
            f"not readable as {encoding}: {error}", where=str(path), mend="name its encoding, or convert it to UTF-8"
        ) from None


def _from_textgrid(text: str, path: Path, name: str) -> dict[str, list[Word]]:
    found = _find_tier(parse_textgrid(text, str(path)), name, str(path))
    return {path.stem: [Word(i.text.strip(), i.start_s, i.end_s) for i in found.intervals]}


def _find_tier(tiers: Sequence[Tier], name: str, where: str) -> Tier:
    wanted = name.casefold()
    exact = [tier for tier in tiers if tier.name.casefold() == wanted]
    named = exact or [tier for tier in tiers if tier.name.casefold().endswith(f" - {wanted}")]
    names = ", ".join(repr(tier.name) for tier in tiers) or "none"
    if not named:
        raise DataError(f"no tier {name!r}; the tiers are: {names}", where=where, mend="name the tier of the words")
    if len(named) > 1:
        raise DataError(f"several tiers {name!r}; the tiers are: {names}", where=where, mend="name one of them in full")
    if named[0].kind != INTERVALS:
        raise DataError(f"tier {named[0].name!r} holds points, not intervals", where=where)
    return named[0]


def _from_ctm(text: str, path: Path, _tier: str) -> dict[str, list[Word]]:
    """`utterance channel start duration word [confidence]` lines; `;;` begins a comment."""
    found: dict[str, list[Word]] = {}
    channels: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.startswith(";;"):
            continue
        where = f"{path}:{number}"
        parts = line.split()
        try:
            utterance, channel, start, length = parts[0], parts[1], float(parts[2]), float(parts[3])
        except (IndexError, ValueError):
            raise DataError(
                f"not a CTM line: {line.strip()!r}", where=where, mend="utterance channel start duration word"
            ) from None
        if len(parts) > 6:
            raise DataError(f"{len(parts)} columns in a CTM line, 6 at most", where=where)
        if channels.setdefault(utterance, channel) != channel:
            raise DataError(
                f"utterance {utterance} has words on channels {channels[utterance]} and {channel}",
                where=where,
                mend="give every channel a file of its own",
            )
        # Kaldi writes silences as lines of four columns.
        label = parts[4] if len(parts) > 4 else ""
        found.setdefault(utterance, []).append(Word(label, start, round(start + length, 6)))
    return found


def _from_json(text: str, path: Path, name: str) -> dict[str, list[Word]]:
    where = str(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}", where=where) from None
    if isinstance(value, Mapping) and isinstance(value.get("tiers"), Mapping):
        return {path.stem: _from_json_tiers(value["tiers"], name, where)}
    if isinstance(value, Mapping) and not isinstance(value.get("words"), list):
        return {str(utterance): _words(words, f"{where}, {utterance}") for utterance, words in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], Mapping) and "words" in value[0]:
        return _rows(value, where)
    if isinstance(value, Mapping):
        return {str(value.get("id", path.stem)): _words(value["words"], where)}
    return {path.stem: _words(value, where)}


def _from_json_tiers(value: Mapping[str, Any], name: str, where: str) -> list[Word]:
    """The Montreal Forced Aligner's JSON: `{tier: {type: interval, entries: [[start, end, label], …]}}`."""
    tiers = []
    for key, about in value.items():
        points = isinstance(about, Mapping) and about.get("type") == "point"
        tiers.append(Tier(str(key), POINTS if points else INTERVALS, ()))
    tier = _find_tier(tiers, name, where)
    try:
        return [Word(str(label).strip(), float(start), float(end)) for start, end, label in value[tier.name]["entries"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"tier {tier.name!r} can't be read: {error}", where=where) from None


def _from_json_lines(text: str, path: Path, _tier: str) -> dict[str, list[Word]]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise DataError(f"not valid JSON: {error}", where=f"{path}:{number}") from None
    return _rows(rows, str(path))


def _rows(rows: Sequence[Any], where: str) -> dict[str, list[Word]]:
    found: dict[str, list[Word]] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or "id" not in row or "words" not in row:
            raise DataError(f"row {number} is no object with 'id' and 'words'", where=where)
        utterance = str(row["id"])
        if utterance in found:
            raise DataError(f"utterance {utterance} occurs twice", where=where)
        found[utterance] = _words(row["words"], f"{where}, {utterance}")
    return found


def _words(value: Any, where: str) -> list[Word]:
    if not isinstance(value, list):
        raise DataError(f"words are a list, not {type(value).__name__}", where=where)
    words = []
    for i, word in enumerate(value):
        try:
            text = word["text"] if "text" in word else word["word"]
            start = word["start_s"] if "start_s" in word else word["start"]
            end = word["end_s"] if "end_s" in word else word["end"]
            if not isinstance(text, str):
                raise TypeError
            words.append(Word(text.strip(), float(start), float(end)))
        except (KeyError, TypeError, ValueError, OverflowError):
            raise DataError(
                f"word {i} is {word!r}", where=where, mend="a word is {text, start_s, end_s} or {word, start, end}"
            ) from None
    return words


_READERS: dict[str, Callable[[str, Path, str], dict[str, list[Word]]]] = {
    ".textgrid": _from_textgrid,
    ".ctm": _from_ctm,
    ".json": _from_json,
    ".jsonl": _from_json_lines,
}
