"""What `benchmarks/loader.py` measures of our loader alone; each in a process of its own, answered in JSON.

python benchmarks/loader_measures.py planning SHARDS
python benchmarks/loader_measures.py resume SHARDS STEP CACHE
python benchmarks/loader_measures.py memory SHARDS
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from loader_contenders import LENGTH, ROWS

from slm.data.loader import PackedLoader, SourceSpec
from slm.data.packing import pack
from slm.data.reader import ShardSet

WINDOW_SAMPLES = 64 * 256
LOOK_EVERY = 20


def open_loader(folder: str, plan_cache: str | None = None) -> PackedLoader:
    """The loader of the benchmark, reading in the caller."""
    specs = [SourceSpec("all", folder)]
    return PackedLoader(specs, pack_length=LENGTH, rows_per_step=ROWS, seed=0, workers=0, plan_cache=plan_cache)


def planning(folder: str) -> dict[str, float]:
    """CPU-seconds to know an epoch's order: which windows, how many rows each; and to lay out all of its rows."""
    loader = open_loader(folder)
    cpu = time.process_time()
    rows = loader.rows_in_epoch
    counted = time.process_time() - cpu
    lengths = ShardSet(folder).lengths
    cpu = time.process_time()
    for at in range(0, len(lengths), WINDOW_SAMPLES):
        pack(lengths[at : at + WINDOW_SAMPLES], LENGTH)
    laid_out = time.process_time() - cpu
    tokens = int(lengths.sum(dtype=np.int64))
    return {
        "samples": len(lengths),
        "order_s": counted,
        "rows_s": laid_out,
        "fill": tokens / (rows * LENGTH),
        "rows": rows,
    }


def resume(folder: str, step: int, cache: str) -> dict[str, float]:
    """Wall and CPU seconds from nothing but the state to the batch of a step far into a run."""
    began, cpu = time.perf_counter(), time.process_time()
    loader = open_loader(folder, cache)
    loader.load_state_dict({**loader.state_dict(), "next_row": step * ROWS})
    rows = next(iter(loader))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    epochs = loader.shares()["all"]["epochs"]
    loader.save_plans()
    return {"seconds": seconds, "cpu_s": cpu, "epochs": epochs, "first_ids": [int(row.ids[:64].sum()) for row in rows]}


def memory(folder: str) -> dict[str, float]:
    """Largest memory while an epoch is read, in bytes: private (anonymous), and mapped pages of the shards."""
    before = _status()
    loader = open_loader(folder)
    most = dict.fromkeys(before, 0)
    steps = loader.rows_in_epoch // ROWS
    for step in range(steps):
        loader.step(step)
        if step % LOOK_EVERY == 0:
            most = {name: max(size, most[name]) for name, size in _status().items()}
    return {"steps": steps, "private": most["RssAnon"], "private_before": before["RssAnon"], "mapped": most["RssFile"]}


def _status() -> dict[str, int]:
    """Resident bytes of this process, by kind (Linux)."""
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
    return {parts[0].rstrip(":"): int(parts[1]) * 1024 for parts in lines if parts[0] in ("RssAnon:", "RssFile:")}


def main() -> None:
    """One measure."""
    name, folder, *rest = sys.argv[1:]
    if name == "planning":
        found = planning(folder)
    elif name == "resume":
        found = resume(folder, int(rest[0]), rest[1])
    else:
        found = memory(folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
