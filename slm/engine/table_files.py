"""The vocabulary tables in a checkpoint: a safetensors file a rank, read back at any number of ranks."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from slm.artifact import read_json, write_json
from slm.engine.swapped import require_same_tensors
from slm.engine.table_optimizer import TableOptimizer
from slm.engine.tables import Table
from slm.errors import CheckpointError, DataError
from slm.model.adapter import check_tensors, save_tensors

INDEX = "vocabulary.json"
FORMAT = 1
STATES = ("weight", "exp_avg", "exp_avg_sq")


def rank_file(folder: Path, rank: int) -> Path:
    """Where a rank's rows are."""
    return folder / f"vocabulary_rank{rank}.safetensors"


def save_tables(tables: TableOptimizer, folder: Path) -> None:
    """Write this rank's rows and their optimizer states; rank 0 also what the files are. Not collective.

    Raises:
        CheckpointError: what was written reads back differently, or is not finite.
        MachineError: no space or no permission.
    """
    place = tables.tables[0].place
    found: dict[str, Tensor] = {}
    steps = 0
    for table in tables.tables:
        state = tables.adam.state.get(table.master, {})  # empty before the first step that was taken
        steps = int(state.get("step", 0))
        moments = (state[key] if key in state else torch.zeros_like(table.master) for key in STATES[1:])
        states = (table.master.detach(), *(moment.detach() for moment in moments))
        found |= {f"{table.name}:{key}": value.cpu() for key, value in zip(STATES, states, strict=True)}
    file = rank_file(folder, place.rank)
    check_tensors(found, str(file))
    save_tensors(found, file)
    require_same_tensors(found, file)
    if place.is_main:
        bounds = {table.name: table.bounds for table in tables.tables}
        write_json(folder / INDEX, {"format": FORMAT, "steps": steps, "bounds": bounds})


def load_tables(tables: TableOptimizer | None, folder: Path) -> None:
    """Read this rank's rows, whoever held them when they were saved. Not collective.

    Raises:
        CheckpointError: a newer format, other matrices, a damaged file, or the vocabulary was split in only one
            of the two runs.
    """
    saved = (folder / INDEX).is_file()
    if saved != (tables is not None):
        raise CheckpointError(
            f"the checkpoint was saved {'with' if saved else 'without'} the vocabulary split over the ranks",
            where=str(folder),
            mend=f"set model.vocabulary_parallel={str(saved).lower()} to continue it",
        )
    if tables is None:
        return
    try:
        index = read_json(folder / INDEX)
    except DataError as error:
        raise CheckpointError(error.what, where=error.where) from error
    if index["format"] > FORMAT:
        raise CheckpointError(f"format {index['format']} is newer than this program's {FORMAT}", where=str(folder))
    for table in tables.tables:
        bounds = index["bounds"].get(table.name)
        if bounds is None or bounds[-1] != table.bounds[-1]:
            rows = f"{bounds[-1]} rows of" if bounds else "no"
            raise CheckpointError(
                f"the checkpoint has {rows} {table.name}, the model {table.bounds[-1]}", where=str(folder / INDEX)
            )
        _load_table(tables, table, bounds, index["steps"], folder)


def _load_table(tables: TableOptimizer, table: Table, bounds: list[int], steps: int, folder: Path) -> None:
    first, end = table.first, table.bounds[table.place.rank + 1]
    parts: dict[str, list[Tensor]] = {key: [] for key in STATES}
    for rank, (start, stop) in enumerate(pairwise(bounds)):
        low, high = max(first, start), min(end, stop)
        if low < high:
            try:
                with safe_open(rank_file(folder, rank), framework="pt") as file:
                    for key in STATES:
                        parts[key].append(file.get_slice(f"{table.name}:{key}")[low - start : high - start])
            except (OSError, SafetensorError) as error:
                raise CheckpointError(
                    f"vocabulary rows can't be read: {error}", where=str(rank_file(folder, rank))
                ) from error
    device = table.master.device
    weight, *moments = (torch.cat(parts[key]).to(device) for key in STATES)
    state: dict[str, Any] = {"step": torch.tensor(float(steps), device=device)}
    state |= dict(zip(STATES[1:], moments, strict=True))
    tables.adam.state[table.master] = state
    with torch.no_grad():
        table.master.copy_(weight)
        table.weight.copy_(weight)
