"""A rank of ours: a stage's engine and its step loop, fed with the documents of the benchmark.

Started by benchmarks/engine.py. The clock holds a whole `take_step`: batches, agreement of the ranks, figures.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from engine_data import (
    LORA_ALPHA,
    LORA_TARGETS,
    RATE,
    Job,
    Size,
    memory_mb,
    read_documents,
    report,
    same_adapters,
    work_of,
)
from page import ROOT

Document = tuple[np.ndarray, np.ndarray]


def rows_of_step(size: Size, ranks: int) -> int:
    """Packed rows of a step, the same number for every rank; a tenth of the room is left for the longer steps."""
    wanted = -(-int(1.1 * size.documents * size.mean) // size.row)
    return -(-wanted // ranks) * ranks


def pack_evenly(documents: list[Document], rows: int) -> list[list[Document]]:
    """Documents in `rows` rows of about the same length: the longest first, each into the shortest row."""
    found: list[list[Document]] = [[] for _ in range(rows)]
    tokens = [0] * rows
    for document in sorted(documents, key=lambda one: len(one[0]), reverse=True):
        shortest = tokens.index(min(tokens))
        found[shortest].append(document)
        tokens[shortest] += len(document[0])
    return found


class Feed:
    """What the step loop asks of a loader: this rank's rows of a step."""

    rows_in_epoch = 1

    def __init__(self, documents: list[Document], size: Size, rank: int, ranks: int) -> None:
        self._documents, self._size, self._rank, self._ranks = documents, size, rank, ranks

    def of_step(self, number: int) -> list[Document]:
        """All documents of a step."""
        return self._documents[number * self._size.documents : (number + 1) * self._size.documents]

    def step(self, number: int) -> list[Any]:
        """This rank's rows."""
        from slm.data.loader import Row

        rows = pack_evenly(self.of_step(number), rows_of_step(self._size, self._ranks))
        return [
            Row("all", *(np.concatenate([one[part] for one in row]) for part in (0, 1)), [len(ids) for ids, _ in row])
            for row in rows[self._rank :: self._ranks]
        ]

    def shares(self) -> dict[str, Any]:
        """Nothing is replayed."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing is resumed."""
        return {}


def stage_config(job: Job, folder: Path) -> Any:
    """The stage of a job."""
    from slm.config.loader import from_mapping
    from slm.config.stage import StageConfig

    size = job.dimensions
    lora = {"rank": size.lora_rank, "alpha": LORA_ALPHA, "dropout": 0.0, "targets": LORA_TARGETS}
    values = {
        "out": str(folder / "out"),
        "stage": "asr",
        "model": {"base": job.base, "lora": lora, **job.model},
        "data": {"shards": "unused", "pack": {"length": size.row}},
        "batch": {"rows": rows_of_step(size, job.ranks)},
        "optim": {"lr": RATE, "clip": 0.0},
        "schedule": {"kind": "constant", "warmup": 0.0},
        "duration": {"steps": size.warm + size.timed},
        "zero": str(ROOT / "ds_configs" / "zero" / ("zero3.json" if job.cuda else "cpu.json")),
    }
    return from_mapping(StageConfig, values, "benchmark")


def open_run(job: Job, config: Any, place: Any, documents: list[Document]) -> Any:
    """Everything that `take_step` works with."""
    from slm.callbacks.callback import Callback
    from slm.engine.build import build_engine, use_bf16
    from slm.engine.figures import Figures
    from slm.engine.loop import Run
    from slm.engine.preemption import StopRequest
    from slm.engine.pulse import Pulse
    from slm.engine.state import TrainState

    engine, _ = build_engine(config, place)
    feed: Any = Feed(documents, job.dimensions, place.rank, place.world_size)
    return Run(
        config=config,
        place=place,
        engine=engine,
        loader=feed,
        sources=["all"],
        steps=job.dimensions.warm + job.dimensions.timed,
        state=TrainState(),
        callbacks=Callback(),
        stop=StopRequest(Path(config.out), watch_file=False),
        save=lambda best: None,
        last_good=lambda step: None,
        figures=Figures(config, place, bf16=use_bf16(config, place)),
        pulse=Pulse(),
    )


def timed_steps(run: Any, cuda: bool) -> list[dict[str, float]]:
    """Take all steps."""
    import torch

    from slm.engine.loop import take_step

    steps = []
    for number in range(run.steps):
        begin, used = time.perf_counter(), time.process_time()
        record, _ = take_step(run)
        if cuda:
            torch.cuda.synchronize()
        took = {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - used, "loss": record["loss"]}
        steps.append(took | work_of(run.loader.of_step(number)))
    return steps


def main() -> None:
    """One rank: engine_ours.py FOLDER; FOLDER/job.json says what to do."""
    folder = Path(sys.argv[1])
    job = Job.read(folder)
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch

    from slm.engine.distributed import find_place, prepare_environment, process_group

    prepare_environment()
    import deepspeed  # noqa: F401

    from slm.engine import build, loop  # noqa: F401
    from slm.model import attention

    torch.set_num_threads(job.threads)
    imports = memory_mb("VmRSS")
    same_adapters()
    if job.attention:
        attention.training_backend = lambda *_: job.attention
    place = find_place()
    with process_group(place):
        run = open_run(job, stage_config(job, folder), place, read_documents(folder.parent / "documents.npz"))
        steps = timed_steps(run, job.cuda)
    report(folder, int(os.environ["RANK"]), imports, steps, job.cuda)


if __name__ == "__main__":
    main()
