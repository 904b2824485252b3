"""How a shard set is cut into parts that are built apart: by whom, in which order and how often changes no byte.

A part is a fixed range of examples with shards of its own; shard i of part p of P is number p + i·P, so numbers are
unique and, as long as every part fills one shard, without gaps. Parts come to be in a hidden folder beside the set,
`.NAME.parts-DIGEST`, named after everything that decides the bytes. A part counts as done when its record is there,
which is written last. Joining checks the records, writes the manifest and renames the folder.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slm.artifact import digest, read_json, remove, write_json
from slm.data.build import files_of
from slm.data.cold import ColdShard
from slm.data.samples import Counts
from slm.data.sources import Piece
from slm.data.writer import ShardEntry
from slm.errors import DataError

log = logging.getLogger(__name__)

RECORDS = ".records"
PLAN = "plan.json"


@dataclass(frozen=True)
class Span:
    """Rows [start, stop) of a piece; `first` is the number of row `start` in the source. `stop` None is its end."""

    piece: int
    start: int
    stop: int | None
    first: int


@dataclass(frozen=True)
class Part:
    """Examples that are built together."""

    number: int
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Plan:
    """All parts of a set, and how many examples they hold (None: not known before they are read)."""

    parts: tuple[Part, ...]
    examples: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"examples": self.examples, "parts": [[list(asdict(s).values()) for s in p.spans] for p in self.parts]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        """The inverse of `to_json`."""
        spans = [tuple(Span(*span) for span in part) for part in value["parts"]]
        return cls(tuple(Part(number, part) for number, part in enumerate(spans)), value["examples"])


def make_plan(pieces: Sequence[Piece], *, size: int, limit: int | None = None) -> Plan:
    """Cut pieces into parts of `size` examples; a piece of unknown length is a part by itself.

    Args:
        pieces: of the source.
        size: examples of a part.
        limit: examples in all at most.

    Raises:
        DataError: there is nothing to read.
    """
    parts: list[tuple[Span, ...]] = []
    spans: list[Span] = []
    room, first = size, 0
    for number, piece in enumerate(pieces):
        if piece.rows is None:
            if spans:
                parts.append(tuple(spans))
                spans, room = [], size
            parts.append((Span(number, 0, None, 0),))
            continue
        at = 0
        rows = piece.rows if limit is None else min(piece.rows, limit - first)
        while at < rows:
            stop = min(rows, at + room)
            spans.append(Span(number, at, stop, first))
            first, room, at = first + stop - at, room - (stop - at), stop
            if not room:
                parts.append(tuple(spans))
                spans, room = [], size
    if spans:
        parts.append(tuple(spans))
    if not parts:
        raise DataError(
            "the source holds no row", where=", ".join(piece.name for piece in pieces[:3]), mend="check path and split"
        )
    known = all(piece.rows is not None for piece in pieces)
    return Plan(tuple(Part(number, part) for number, part in enumerate(parts)), first if known else None)


@dataclass(frozen=True)
class Record:
    """What a finished part says of itself.

    Attributes:
        part: its number.
        counts: what became of its examples.
        entries: its shards.
        length_counts: tokens of a sample -> samples.
        cold: file, bytes and sha256 of each shard's compressed form; empty in a set that is not compressed.
    """

    part: int
    counts: Counts
    entries: list[ShardEntry]
    length_counts: Counter[int]
    cold: list[ColdShard] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Of all its samples."""
        return sum(entry.tokens for entry in self.entries)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "part": self.part,
            "counts": self.counts.to_json(),
            "entries": [entry.to_json() for entry in self.entries],
            "length_counts": sorted(self.length_counts.items()),
            "cold": [asdict(shard) for shard in self.cold],
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Record:
        """The inverse of `to_json`."""
        entries = [ShardEntry(**entry) for entry in value["entries"]]
        lengths = Counter(dict(value["length_counts"]))
        cold = [ColdShard(**shard) for shard in value["cold"]]
        return cls(value["part"], Counts(**value["counts"]), entries, lengths, cold)

    def files(self) -> dict[str, dict[str, Any]]:
        """Name -> size and sha256 of every file, as a manifest has them."""
        found = files_of(self.entries)
        for entry, shard in zip(self.entries, self.cold, strict=False):
            del found[entry.file]
            found[shard.file] = {"size": shard.bytes, "sha256": shard.sha256}
        return found


class Workspace:
    """The hidden folder in which the parts of one set come to be.

    Args:
        out: folder of the set.
        decides: everything that decides its bytes, as JSON.
    """

    def __init__(self, out: str | Path, decides: Any) -> None:
        self.out = Path(out)
        self.folder = self.out.with_name(f".{self.out.name}.parts-{digest(decides)[:16]}")
        self.records = self.folder / RECORDS

    def others(self) -> list[Path]:
        """Folders that builds of the same set with other settings left."""
        return [path for path in self.out.parent.glob(f".{self.out.name}.parts-*") if path != self.folder]

    def plan(self) -> Plan | None:
        """The plan that was made before, None when this is the beginning."""
        path = self.records / PLAN
        return Plan.from_json(read_json(path)) if path.is_file() else None

    def save_plan(self, plan: Plan) -> None:
        """Write the plan; several tasks that start together write the same one."""
        self.records.mkdir(parents=True, exist_ok=True)
        write_json(self.records / PLAN, plan.to_json())

    def save(self, record: Record) -> None:
        """Say that a part is done; its shards must be on the disk."""
        write_json(self._record_path(record.part), record.to_json())

    def done(self, part: int) -> Record | None:
        """The record of a part, None when it is not done or one of its files is not as the record says."""
        path = self._record_path(part)
        if not path.is_file():
            return None
        record = Record.from_json(read_json(path))
        for name, facts in record.files().items():
            file = self.folder / name
            if not file.is_file() or file.stat().st_size != facts["size"]:
                log.warning("%s: part %d is built again: %s is missing or cut", self.out, part, name)
                return None
        return record

    def clear(self, parts: Collection[int], of: int) -> None:
        """Remove what attempts that were killed left of some parts, `of` in all."""
        for part in parts:
            self._record_path(part).unlink(missing_ok=True)
        for path in self.folder.glob("*shard-*"):
            digits = path.name.partition("shard-")[2][:6]
            if digits.isdigit() and int(digits) % of in parts:
                path.unlink(missing_ok=True)

    def put_in_place(self) -> None:
        """The folder becomes the set, in place of an older one: under its name stands one of them, or nothing."""
        for path in self.folder.glob(".*.part"):
            path.unlink(missing_ok=True)
        aside = self.out.with_name(f".{self.out.name}.replaced-{os.getpid()}")
        if self.out.exists():
            os.replace(self.out, aside)
        os.replace(self.folder, self.out)
        discard_quietly([aside, *self.out.parent.glob(f".{self.out.name}.replaced-*"), self.out / RECORDS])

    def _record_path(self, part: int) -> Path:
        return self.records / f"part-{part:06d}.json"


def joined(records: Iterable[Record]) -> Record:
    """All parts as one, in their order: samples lie as they would if one process had built them all."""
    whole = Record(-1, Counts(), [], Counter[int]())
    for record in records:
        whole.counts.add(record.counts)
        whole.entries.extend(record.entries)
        whole.length_counts.update(record.length_counts)
        whole.cold.extend(record.cold)
    return whole


def discard_quietly(folders: Iterable[Path]) -> None:
    """Remove folders that may not be there."""
    for folder in folders:
        remove(folder)
