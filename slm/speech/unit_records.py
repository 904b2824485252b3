"""What a finished part of a unit set says of itself, and all parts as one."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from slm.errors import DataError


@dataclass
class Skipped:
    """A recording that gave no units: its id, and why."""

    id: str
    reason: str

    @property
    def fault(self) -> str:
        """The kind of fault: the reason up to its details."""
        return self.reason.partition(":")[0]


@dataclass
class UnitCounts:
    """What became of the recordings.

    Attributes:
        recordings: seen.
        milliseconds: of audio that was turned into units.
        units: in all, repeats kept.
        skipped: those that gave no units, in order.
    """

    recordings: int = 0
    milliseconds: int = 0
    units: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    def add(self, other: UnitCounts) -> None:
        """Count the other's too."""
        self.recordings += other.recordings
        self.milliseconds += other.milliseconds
        self.units += other.units
        self.skipped = [*self.skipped, *other.skipped]

    @property
    def faults(self) -> dict[str, int]:
        """Kind of fault -> recordings, the most frequent first."""
        return dict(Counter(skipped.fault for skipped in self.skipped).most_common())

    def described(self) -> str:
        """`7 audio is silent, 2 not a readable audio file`."""
        return ", ".join(f"{count:,} {fault}" for fault, count in self.faults.items())


@dataclass(frozen=True)
class UnitRecord:
    """A finished part.

    Attributes:
        part: its number.
        counts: what became of its recordings.
        file: of its units; empty when none of its recordings gave any.
        size, sha256: of the file.
    """

    part: int
    counts: UnitCounts
    file: str
    size: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> UnitRecord:
        """The inverse of `to_json`."""
        counts = dict(value["counts"])
        counts["skipped"] = [Skipped(**each) for each in counts["skipped"]]
        return cls(**{**value, "counts": UnitCounts(**counts)})

    def files(self) -> dict[str, dict[str, Any]]:
        """Name -> size and sha256, as a manifest has them."""
        return {self.file: {"size": self.size, "sha256": self.sha256}} if self.file else {}


def joined_counts(records: Iterable[UnitRecord]) -> UnitCounts:
    """Of all parts."""
    whole = UnitCounts()
    for record in records:
        whole.add(record.counts)
    return whole


def skipped_table(skipped: Iterable[Skipped]) -> bytes:
    """CSV with a row for each recording that was skipped."""
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["id", "reason"])
    writer.writerows((each.id, each.reason) for each in skipped)
    return table.getvalue().encode()


def check_skipped(counts: UnitCounts, *, of: int | None, at_most: float, where: str) -> None:
    """Refuse to lose more recordings than the job allows.

    Args:
        counts: so far.
        of: recordings there are in all; None takes those seen so far, which then are all.
        at_most: share of them that may be skipped.

    Raises:
        DataError: more were skipped, or all of them.
    """
    total = counts.recordings if of is None else of
    lost = len(counts.skipped)
    if lost > at_most * total or (total and lost == total):
        first = counts.skipped[0]
        raise DataError(
            f"{lost:,} of {total:,} recordings can't be used: {counts.described()}",
            where=f"{where}, first {first.id!r}: {first.reason}",
            mend="mend or remove them, or allow more: hearing.skipped_at_most; finished parts are kept",
        )
