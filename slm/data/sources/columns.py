"""Rows of tables as examples: columns renamed, chosen, and checked value by value."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from slm.config.shards import HfSource, JsonlSource, ParquetSource, ShardsJob
from slm.errors import DataError
from slm.stages import RECIPES
from slm.stages.wordings import ASR_WORDINGS, TTS_WORDINGS, wording
from slm.tokens.vocabulary import UnitSet, split_runs

UNIT_COLUMNS = ("discrete_unit", "input_unit")
"""Columns that hold lists of units of a question."""
WOVEN_COLUMNS = ("interleaf", "output_interleaf")
"""Columns that hold text with the units of an answer woven in."""
INSTRUCTION = "instruction"
WORDINGS = {"asr": ASR_WORDINGS, "tts": TTS_WORDINGS}


def instruction(recipe: str, row: int) -> str:
    """The recipe's own wording for a row."""
    return wording(WORDINGS[recipe], row)


class Columns:
    """Which columns of a table a job reads, and how a row becomes an example.

    Args:
        job: its source is a table.
        units: the unit set of the job, None for text.

    Attributes:
        needed: columns of the table, as the table names them.
    """

    def __init__(self, job: ShardsJob, units: UnitSet | None) -> None:
        assert isinstance(job.source, HfSource | JsonlSource | ParquetSource)
        self.recipe, self.units, self.kind = job.recipe, units, job.source.kind
        self.leave_out = {name: frozenset(values) for name, values in (job.source.leave_out or {}).items()}
        theirs = {ours: name for name, ours in job.source.rename.items()}
        chosen = job.source.wording or ("by_row" if job.recipe == "tts" else "column")
        self._by_row = chosen == "by_row" and job.recipe in WORDINGS
        columns = [name for name in RECIPES[job.recipe].columns if not (self._by_row and name == INSTRUCTION)]
        self._columns = {ours: theirs.get(ours, ours) for ours in columns}
        self.needed = tuple(dict.fromkeys([*self._columns.values(), *self.leave_out]))

    def require(self, there: Collection[str], where: str) -> None:
        """Check the names of a table's columns.

        Raises:
            DataError: one that is needed is missing.
        """
        missing = [name for name in self.needed if name not in there]
        if missing:
            raise DataError(
                f"column {missing[0]!r} is missing; there are: {', '.join(sorted(there))}",
                where=f"{self.kind} source {where}",
                mend=f"recipe {self.recipe} reads {', '.join(self.needed)}; source.rename maps other names to them",
            )

    def example(self, row: Mapping[str, Any], number: int, where: str) -> Mapping[str, Any] | None:
        """A row as an example, None when the job leaves it out.

        Args:
            row: of the table.
            number: of the row in the whole source, which chooses the wording.
            where: source and row, for messages.

        Raises:
            DataError: a column is missing, of another type, or holds units that the job does not declare.
        """
        for name, values in self.leave_out.items():
            if name not in row:
                raise self._bad(name, "is missing", where)
            if row[name] in values:
                return None
        found: dict[str, Any] = {}
        for ours, name in self._columns.items():
            if name not in row:
                raise self._bad(name, "is missing", where)
            value = row[name]
            if value is None:
                found[ours] = value
            elif ours in UNIT_COLUMNS:
                found[ours] = self._unit_list(value, name, where)
            elif not isinstance(value, str):
                raise self._bad(name, f"holds {_type_name(value)}, expected text", where)
            else:
                found[ours] = self._woven(value, name, where) if ours in WOVEN_COLUMNS else value
        if self._by_row:
            found[INSTRUCTION] = instruction(self.recipe, number)
        return found

    def _unit_list(self, value: Any, name: str, where: str) -> list[int]:
        assert self.units is not None
        if not isinstance(value, Sequence | np.ndarray) or isinstance(value, str):
            raise self._bad(name, f"holds {_type_name(value)}, expected a list of units", where)
        units = as_units(value)
        if units is None:
            raise self._bad(name, "holds a list of other things than whole numbers, expected units", where)
        if units.size:
            self._in_range(int(units.min()), int(units.max()), name, where)
        return self.units.for_role(units.tolist(), "input")

    def _woven(self, text: str, name: str, where: str) -> str:
        """The text, its units checked; empty when it holds none, since then nothing is spoken."""
        assert self.units is not None
        runs = [units for _, units in split_runs(text) if units]
        if not runs:
            return ""
        self._in_range(min(map(min, runs)), max(map(max, runs)), name, where)
        if self.units.output == "removed":
            for run in runs:
                repeated = next((a for a, b in pairwise(run) if a == b), None)
                if repeated is not None:
                    raise DataError(
                        f"column {name!r} repeats unit {repeated}, but units.output says that repeats are removed",
                        where=where,
                        mend="declare units.output: kept, or give data whose repeats are removed",
                    )
        return text

    def _in_range(self, lowest: int, highest: int, name: str, where: str) -> None:
        assert self.units is not None
        if lowest < 0 or highest >= self.units.count:
            raise DataError(
                f"column {name!r} has units {lowest}..{highest}, units.count says {self.units.count}",
                where=where,
                mend="declare the units that the data was made with",
            )

    def _bad(self, name: str, what: str, where: str) -> DataError:
        return DataError(
            f"column {name!r} {what}", where=where, mend=f"recipe {self.recipe} reads {', '.join(self.needed)}"
        )


def as_units(value: Any) -> np.ndarray | None:
    """A list of whole numbers as an array, None for any other list."""
    try:
        units = np.asarray(value)
    except ValueError:  # lists of different lengths
        return None
    return units if units.ndim == 1 and (not units.size or units.dtype.kind in "iu") else None


def _type_name(value: Any) -> str:
    return {"dict": "an object", "list": "a list", "ndarray": "a list", "int": "a number", "float": "a number"}.get(
        type(value).__name__, f"a {type(value).__name__}"
    )
