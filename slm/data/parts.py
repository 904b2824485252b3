"""What a finished part of a shard set says of itself, and all parts as one.

A part is a fixed range of examples with shards of its own; shard i of part p of P is number p + i·P, so numbers are
unique and, as long as every part fills one shard, without gaps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from slm.data.build import files_of
from slm.data.cold import ColdShard
from slm.data.samples import Counts
from slm.data.writer import ShardEntry


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


def joined(records: Iterable[Record]) -> Record:
    """All parts as one, in their order: samples lie as they would if one process had built them all."""
    whole = Record(-1, Counts(), [], Counter[int]())
    for record in records:
        whole.counts.add(record.counts)
        whole.entries.extend(record.entries)
        whole.length_counts.update(record.length_counts)
        whole.cold.extend(record.cold)
    return whole
