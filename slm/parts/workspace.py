"""Where the parts of a job come to be: a hidden folder beside its result, `.NAME.parts-DIGEST`.

It is named after everything that decides the bytes. A part counts as done when its record is there, which is written
last. Joining checks the records, writes the manifest and renames the folder.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from slm.artifact import digest, read_json, remove, write_json
from slm.errors import ConfigError, DataError
from slm.parts.plan import Plan

log = logging.getLogger(__name__)

RECORDS = ".records"
PLAN = "plan.json"
SHOWN = 12
"""Numbers of missing parts that a message lists."""


class PartRecord(Protocol):
    """What a finished part says of itself."""

    @property
    def part(self) -> int:
        """Its number."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        ...

    def files(self) -> Mapping[str, Mapping[str, Any]]:
        """Name -> size and sha256 of every file of the part, as a manifest has them."""
        ...


R = TypeVar("R", bound=PartRecord)


class Workspace(Generic[R]):
    """The hidden folder of one job.

    Args:
        out: folder of the result.
        decides: everything that decides its bytes, as JSON.
        read: the inverse of a record's `to_json`.
        stem: a part's files are named `STEM` and six digits, a number that is the part's modulo the number of parts.
    """

    def __init__(self, out: str | Path, decides: Any, read: Callable[[dict[str, Any]], R], *, stem: str) -> None:
        self.out = Path(out)
        self.folder = self.out.with_name(f".{self.out.name}.parts-{digest(decides)[:16]}")
        self.records = self.folder / RECORDS
        self._read, self._stem = read, stem

    def others(self) -> list[Path]:
        """Folders that jobs of the same result with other settings left."""
        return [path for path in self.out.parent.glob(f".{self.out.name}.parts-*") if path != self.folder]

    def plan(self) -> Plan | None:
        """The plan that was made before, None when this is the beginning."""
        path = self.records / PLAN
        return Plan.from_json(read_json(path)) if path.is_file() else None

    def save_plan(self, plan: Plan) -> None:
        """Write the plan; several tasks that start together write the same one."""
        self.records.mkdir(parents=True, exist_ok=True)
        write_json(self.records / PLAN, plan.to_json())

    def save(self, record: R) -> None:
        """Say that a part is done; its files must be on the disk."""
        write_json(self._record_path(record.part), record.to_json())

    def done(self, part: int) -> R | None:
        """The record of a part, None when it is not done or one of its files is not as the record says."""
        path = self._record_path(part)
        if not path.is_file():
            return None
        record = self._read(read_json(path))
        for name, facts in record.files().items():
            file = self.folder / name
            if not file.is_file() or file.stat().st_size != facts["size"]:
                log.warning("%s: part %d is built again: %s is missing or cut", self.out, part, name)
                return None
        return record

    def all_done(self, plan: Plan) -> list[R]:
        """The records of all parts, in order.

        Raises:
            DataError: a part is not built; names which.
        """
        found = [self.done(part.number) for part in plan.parts]
        missing = [number for number, record in enumerate(found) if record is None]
        if missing:
            numbers = ", ".join(map(str, missing[:SHOWN])) + (", …" if len(missing) > SHOWN else "")
            raise DataError(
                f"{len(missing)} of {len(plan.parts)} parts are not built: {numbers}",
                where=str(self.out),
                mend="run their tasks again (part p is of task p mod n), or the job without --task: it builds the rest",
            )
        return [record for record in found if record is not None]

    def clear(self, parts: Collection[int], of: int) -> None:
        """Remove what attempts that were killed left of some parts, `of` in all."""
        for part in parts:
            self._record_path(part).unlink(missing_ok=True)
        for path in self.folder.glob(f"*{self._stem}*"):
            digits = path.name.partition(self._stem)[2][:6]
            if digits.isdigit() and int(digits) % of in parts:
                path.unlink(missing_ok=True)

    def put_in_place(self) -> None:
        """The folder becomes the result, in place of an older one: under its name stands one of them, or nothing."""
        for path in self.folder.glob(".*.part"):
            path.unlink(missing_ok=True)
        aside = self.out.with_name(f".{self.out.name}.replaced-{os.getpid()}")
        if self.out.exists():
            os.replace(self.out, aside)
        os.replace(self.folder, self.out)
        _discard([aside, *self.out.parent.glob(f".{self.out.name}.replaced-*"), records_left(self.out)])

    def _record_path(self, part: int) -> Path:
        return self.records / f"part-{part:06d}.json"


def check_share(task: tuple[int, int] | None, join: bool) -> None:
    """Refuse a share that is none.

    Args:
        task: (i, n): build the parts i, i + n, i + 2n, …
        join: join the parts that tasks built, build none.

    Raises:
        ConfigError: task and join together, or a task that is not one of n.
    """
    if task is not None and (join or not 0 <= task[0] < task[1]):
        raise ConfigError(
            f"--task {task[0]}/{task[1]}" + (" and --join exclude each other" if join else ": i/n needs 0 ≤ i < n"),
            mend="build with --task 0/n … --task n-1/n, then --join once",
        )


def records_left(out: str | Path) -> Path:
    """What a join that was killed at its very end left inside the finished result."""
    return Path(out) / RECORDS


def _discard(folders: Iterable[Path]) -> None:
    for folder in folders:
        remove(folder)
