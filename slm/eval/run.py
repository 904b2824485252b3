"""The evaluation job: models shared out to worker processes, then one summary of them all.

Every model's evaluation is an artifact of its own beside the model, so a killed job continues, and a
model that is added later is the only one that is evaluated.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any

from slm.artifact import (
    building,
    digest,
    find_manifest,
    hash_files,
    is_current,
    read_json,
    write_json,
    write_manifest,
)
from slm.config.evaluation import EvalJob
from slm.device import gpu_count, take_own_gpu
from slm.errors import DataError, MachineError
from slm.eval.evaluate import KIND, Load, evaluate_model, evaluation_folder
from slm.eval.stopping import Stopped, held, stopping

if TYPE_CHECKING:
    from rich.table import Table

SUMMARY = "summary.json"
CPU_WORKERS = 2
log = logging.getLogger(__name__)
Todo = Sequence[tuple[str, str, Mapping[str, str]]]
"""(label, folder, fingerprints of the inputs) of the models to evaluate."""


def run_evaluation(job: EvalJob, load: Load) -> dict[str, Any]:
    """Evaluate what is not evaluated yet and write the summary.

    Args:
        load: loads a model; a function that worker processes can import.

    Returns:
        What `summary.json` holds.

    Raises:
        DataError: a model or the data is missing, or they don't fit each other.
        CheckpointError: a model can't be loaded.
        MachineError: a worker process died.
    """
    from slm.eval.summary import summarise

    found = {name: folder_fingerprint(folder) for name, folder in job.inputs().items()}
    todo = []
    for label, ref in job.references().items():
        inputs = {"data": found["data"], "model": found[f"model/{label}"]}
        current, why = is_current(evaluation_folder(ref), KIND, job.model_identity(), inputs)
        if current:
            log.info("%s: up to date", label)
        else:
            log.info("%s: to be evaluated (%s)", label, why)
            todo.append((label, ref, inputs))
    out = Path(job.out)
    current, _ = is_current(out, job.kind, job.identity(), found, format=job.format)
    if current and not todo:
        log.info("%s: up to date", out)
        return _summary(out)
    started = time.monotonic()
    _evaluate_all(job, todo, load)
    with building(out) as folder:
        write_json(folder / SUMMARY, summarise(job, out))
        about = {"seconds": round(time.monotonic() - started, 2), "models": job.references(), "data": job.data}
        write_manifest(folder, job.kind, config=job.identity(), inputs=found, about=about, format=job.format)
    return _summary(out)


def _summary(out: Path) -> dict[str, Any]:
    summary: dict[str, Any] = read_json(out / SUMMARY)
    return summary


def folder_fingerprint(folder: str | Path) -> str:
    """The fingerprint of an artifact, or of what a plain folder holds.

    Raises:
        DataError: no such folder.
    """
    manifest = find_manifest(folder)
    if manifest is not None:
        return manifest.fingerprint
    if not Path(folder).is_dir():
        raise DataError("folder not found", where=str(folder), mend="give a finished step or a model folder")
    own = f"{evaluation_folder(folder).name}/"
    is_model = (Path(folder) / "config.json").is_file() or (Path(folder) / "adapter_config.json").is_file()
    # The evaluation of a plain model folder lies inside it and must not change what it is an evaluation of.
    files = {name: entry for name, entry in hash_files(folder).items() if not (is_model and name.startswith(own))}
    return digest({name: entry["sha256"] for name, entry in files.items()})


def summary_table(summary: Mapping[str, Any]) -> Table:
    """The scores, one model a line; error rates as such, with an arrow that says less is better."""
    from rich.table import Table

    table = Table(title="evaluation")
    table.add_column("model")
    for task in summary["tasks"]:
        cells = [row[task] for row in summary["scores"].values() if row[task]["score"] is not None]
        arrow = " ↓" if cells and cells[0]["less_is_better"] else ""
        metric = cells[0]["metric"].split("@")[0] if cells else "n/a"
        table.add_column(f"{task}\n{metric}{arrow}", justify="right")
    for label in summary["labels"]:
        row = summary["scores"][label]
        shown = ("–" if row[task]["raw"] is None else f"{row[task]['raw']:.3f}" for task in summary["tasks"])
        table.add_row(label, *shown)
    return table


def _evaluate_all(job: EvalJob, todo: Todo, load: Load) -> None:
    if not todo:
        return
    workers = min(job.workers or gpu_count() or CPU_WORKERS, len(todo))
    with _progress(len(todo) * len(job.tasks)) as told:
        if workers == 1:
            for label, ref, inputs in todo:
                _evaluate_here(job, ref, inputs, lambda name, line, label=label: told(label, name, line), load)
            return
        _evaluate_in_workers(job, todo, workers, told, load)


def _evaluate_here(job: EvalJob, ref: str, inputs: Mapping[str, str], report: Any, load: Load) -> None:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        evaluate_model(ref, job, inputs, report, load)
    finally:
        torch.set_num_threads(threads)


def _evaluate_in_workers(job: EvalJob, todo: Todo, workers: int, told: Any, load: Load) -> None:
    context = multiprocessing.get_context("spawn")
    lines, numbers = context.Queue(), context.Value("i", 0)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(lines, numbers))
    try:
        with held() as look:
            todos: set[Future[None]] = {
                pool.submit(_work, job, label, ref, inputs, load) for label, ref, inputs in todo
            }
            while todos:
                done, todos = wait(todos, timeout=0.2)
                look()
                _drain(lines, told)
                for future in done:
                    _require_done(future)
            _drain(lines, told)
    except BaseException:
        # What is finished is kept; a worker in the middle of a model takes its scratch folder away and goes.
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _require_done(future: Future[None]) -> None:
    error = future.exception()
    if isinstance(error, OSError | RuntimeError) and "process" in str(error):
        raise MachineError(
            "an evaluation process died", mend="lower workers or batch_size; it may be short of memory"
        ) from error
    future.result()


_lines: Any = None


def _start_worker(lines: Any, numbers: Any) -> None:
    """Give the worker its way to report, one thread, a GPU, and the manners to go when it is told or left alone."""
    global _lines
    _lines = lines
    with numbers.get_lock():
        number = numbers.value
        numbers.value += 1
    take_own_gpu(number)
    os.environ["OMP_NUM_THREADS"] = "1"

    def leave_with_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which tells its workers
    threading.Thread(target=leave_with_parent, daemon=True).start()


def _work(job: EvalJob, label: str, ref: str, inputs: Mapping[str, str], load: Load) -> None:
    try:
        with stopping():
            _evaluate_here(job, ref, inputs, lambda name, line: _lines.put((label, name, line)), load)
    except Stopped:
        os._exit(128 + signal.SIGTERM)  # no next model


def _drain(lines: Any, told: Any) -> None:
    while True:
        try:
            told(*lines.get_nowait())
        except Empty:
            return


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """Yields told(label, set, line): a bar on a terminal, one line a finished set elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        done = 0

        def plain(label: str, name: str, line: str) -> None:
            nonlocal done
            done += 1
            log.info("[%d/%d] %s: %s %s", done, total, label, name, line)

        yield plain
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("evaluating", total=total)
        yield lambda label, name, line: bar.update(task, advance=1, description=f"{label}: {name} {line}")
