"""What launching costs: the command line, a dry run, the pipeline beside its steps, and a rank that is killed.

    python benchmarks/launch.py

Start-up times are medians of whole processes. The pipeline's overhead is the wall time of the pico pipeline, one step
after another, less that of the same commands typed one after another, shared out among its steps. What a kill costs is
the wall time of a stage one of whose ranks is killed (-9) just before its next checkpoint, less that of the same stage
left alone; where the pipeline does not start the stage again by itself, the same command is given again. The table goes
into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from page import PAGE, ROOT, write_section

PICO = "ds_configs/pipelines/pico.yaml"
PAPER = "ds_configs/pipelines/paper.yaml"
SITE = "ds_configs/sites/example.yaml"
STAGE = "llm"
STEPS, EVERY = 400, 100
MEASURES = ("start", "overhead", "kill")
Row = tuple[str, str, str]


def run(argv: Sequence[str], log: Path | None = None) -> tuple[float, int]:
    """Seconds and exit code of a command at the top of the checkout."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    began = time.perf_counter()
    with open(log or os.devnull, "a") as output:
        done = subprocess.run(
            argv,
            cwd=ROOT,
            env={**os.environ, "PATH": path, "PYTHONPATH": python_path},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return time.perf_counter() - began, done.returncode


def must(argv: Sequence[str], log: Path) -> float:
    """Seconds of a command that has to work.

    Raises:
        RuntimeError: it did not; the end of its output is in the message.
    """
    seconds, code = run(argv, log)
    if code:
        raise RuntimeError(f"{shlex.join(argv)}: exit code {code}\n{log.read_text()[-2000:]}")
    return seconds


def pipeline(path: str, runs: Path, *more: str) -> list[str]:
    """A pipeline's command."""
    return [sys.executable, "launcher/pipeline.py", path, f"runs={runs}", *more]


def starts(work: Path, times: int) -> list[Row]:
    """How long a person waits for the first words."""
    commands = {
        "`slm --help`": ([sys.executable, "-m", "slm", "--help"], "≤ 0.5 s"),
        "`--dry-run` of the paper's pipeline": (pipeline(PAPER, work, "--dry-run"), "≤ 1 s"),
        "the same with `--where slurm`": (
            pipeline(PAPER, work, "--where", "slurm", "--site", SITE, "--dry-run"),
            "≤ 1 s",
        ),
    }
    rows = []
    for what, (argv, wanted) in commands.items():
        must(argv, work / "start.log")  # compiles what is not compiled yet
        seconds = [must(argv, work / "start.log") for _ in range(times)]
        rows.append((what, f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})", wanted))
    return rows


def overhead(work: Path) -> list[Row]:
    """The pico pipeline against its commands typed by hand."""
    dry = subprocess.run(
        pipeline(PICO, work / "typed", "slots=1", "--dry-run"), cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [line for line in dry.stdout.splitlines() if not line.startswith("#")]
    made = must(pipeline(PICO, work / "made", "slots=1"), work / "made.log")
    record = (work / "made" / "pico" / "pipeline.json").read_text()  # the report reads it
    (work / "typed" / "pico").mkdir(parents=True)
    (work / "typed" / "pico" / "pipeline.json").write_text(record.replace(str(work / "made"), str(work / "typed")))
    typed = 0.0
    for i, line in enumerate(lines):
        command = line.replace("--master_port PORT", f"--master_port {29000 + i}")
        typed += must(["bash", "-c", command], work / "typed.log")
    figure = (made - typed) / len(lines)
    return [
        (
            f"the pipeline's overhead, a step (pico, {len(lines)} steps: {made:.0f} s, typed by hand {typed:.0f} s)",
            f"{figure:.2f} s",
            "≤ 2 s",
        )
    ]


def kill(work: Path, times: int) -> list[Row]:
    """A stage with a rank killed in the worst moment, against the stage left alone."""
    more = [f"steps.{STAGE}.set={{duration.steps: {STEPS}, checkpoint.every: {EVERY}}}", "--only"]
    first = work / "alone"
    for step in ("data", "random"):
        must(pipeline(PICO, first, *more, step), work / "alone.log")
    for number in range(times):
        shutil.copytree(first / "pico", work / f"killed-{number}" / "pico")
    alone = must(pipeline(PICO, first, *more, STAGE), work / "alone.log")
    step_s = statistics.median(record["step_s"] for record in _records(first / "pico" / STAGE)[1:])
    lost = []
    for number in range(times):
        runs = work / f"killed-{number}"
        argv, log = pipeline(PICO, runs, *more, STAGE), runs / "log"
        began = time.perf_counter()
        with open(log, "w") as output:
            env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
            process = subprocess.Popen(argv, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT)
        try:
            _kill_a_rank(runs / "pico" / STAGE, after=(number % 2 + 2) * EVERY - 5, process=process)
        except RuntimeError as error:
            process.terminate()
            raise RuntimeError(f"{error}\n{log.read_text()[-2000:]}") from None
        if process.wait():
            must(argv, log)
        lost.append(time.perf_counter() - began - alone)
        print(f"kill {number + 1} of {times}: {lost[-1]:.1f} s lost", flush=True)
    interval = EVERY * step_s
    return [
        (
            f"lost by a rank killed just before a checkpoint, the worst of {times} (interval {interval:.1f} s)",
            f"{max(lost):.1f} s",
            f"≤ {interval + 60:.0f} s (interval + 60 s)",
        )
    ]


def _records(stage: Path) -> list[dict[str, float]]:
    path = stage / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _kill_a_rank(stage: Path, *, after: int, process: subprocess.Popen[bytes]) -> None:
    """Kill rank 1 as soon as the stage has taken so many steps."""
    while not any(record["step"] >= after for record in _records(stage)):
        if process.poll() is not None:
            raise RuntimeError(f"{stage} ended before a rank was killed")
        time.sleep(0.02)
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has ended
        if "--local_rank=1" in words and f"out={stage}" in words:
            os.kill(int(path.name), signal.SIGKILL)
            return
    raise RuntimeError(f"no rank 1 of {stage} was found")


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    return "\n".join(["| figure | measured | wanted |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=MEASURES, help="the page wants all of them")
    parser.add_argument("--times", type=int, default=11, help="starts of each command")
    parser.add_argument("--kills", type=int, default=3, help="stages that lose a rank")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the table goes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="launch-benchmark-") as name:
        work = Path(name)
        rows = starts(work, args.times) if "start" in args.only else []
        rows += overhead(work) if "overhead" in args.only else []
        rows += kill(work, args.kills) if "kill" in args.only else []
    cores = len(os.sched_getaffinity(0))
    text = f"`python benchmarks/launch.py` on {cores} CPU cores ({platform.machine()}):\n\n{table(rows)}"
    print(text)
    if set(args.only) == set(MEASURES):
        write_section("launch", text, args.page)


if __name__ == "__main__":
    main()
