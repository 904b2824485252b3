"""The loader against others on one corpus, and what it promises about filling, planning, resuming and memory.

    python benchmarks/loader.py --cache runs/loader-benchmark

draws a corpus, writes it once in everybody's format, and reads it by every contender in turn (A B C …,
A B C …) into batches of 8 rows of 4,096 tokens. What counts is tokens per CPU-second of the reading
process, all its threads included: on a machine that others use too, wall time says little. Ratios are
taken within a round. MosaicML Streaming and Hugging Face datasets get an environment of their own
below the cache folder, made when it is missing. The tables go into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from page import PAGE, ROOT, write_section

HERE = Path(__file__).resolve().parent

# torch by itself and first, so that the build is the one that the package index prefers.
PINS: dict[str, list[list[str]]] = {
    "mosaicml": [["torch==2.13.0"], ["mosaicml-streaming==0.13.0"]],
    "huggingface": [["datasets==5.2.0"]],
}


@dataclass(frozen=True)
class Contender:
    """A reader in the table.

    Attributes:
        name: in `loader_contenders.py`.
        label: in the table.
        order: in which order it reads.
        data: whose files it reads.
        environment: in `PINS`; None is the one that runs this.
        at_least: how many times as fast ours has to be; for the memmap the share of it that ours has to reach.
    """

    name: str
    label: str
    order: str
    data: str
    environment: str | None = None
    at_least: float | None = None


CONTENDERS = [
    Contender("memmap", "numpy memmap", "file order, greedy rows", "memmap", None, 0.65),
    Contender("ours", "**slm**, crc checked", "shuffled, best-fit rows", "ours"),
    Contender("stock_groups", "stock webdataset, our shards", "file order, greedy rows", "ours"),
    Contender("webdataset", "stock webdataset, one sample a member", "file order, greedy rows", "webdataset", None, 8),
    Contender("mosaicml", "MosaicML Streaming", "file order, greedy rows", "mosaicml", "mosaicml", 10),
    Contender("huggingface", "HF streaming", "file order, greedy rows", "huggingface", "huggingface", 10),
    Contender(
        "huggingface_batches", "HF streaming, Arrow batches cut by hand", "file order, greedy rows", "huggingface",
        "huggingface",
    ),
]  # fmt: skip


def environ() -> dict[str, str]:
    """One thread for everybody: idle spinning threads of a maths library would count as reading."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    return {**os.environ, **threads, **quiet, "PYTHONPATH": path}


def interpreter(environment: str | None, cache: Path) -> str:
    """The python of an environment, made with the pinned packages when it is not there."""
    if environment is None:
        return sys.executable
    folder, pins = cache / "envs" / environment, PINS[environment]
    ready = folder / "pins.json"
    if not ready.is_file() or json.loads(ready.read_text()) != pins:
        print(f"making {folder} with {', '.join(pin for group in pins for pin in group)}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        for group in pins:
            pip = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            subprocess.run([*pip, *group], check=True)
        ready.write_text(json.dumps(pins))
    return str(folder / "bin" / "python")


def prepared(folder: Path, write: Any) -> Path:
    """A folder that `write` filled, once and whole."""
    if not (folder / ".whole").is_file():
        print(f"writing {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write(folder)
        (folder / ".whole").touch()
    return folder


def prepare(contenders: list[Contender], cache: Path, samples: int) -> dict[str, Path]:
    """The corpus in the format of every contender: name of the format -> folder."""
    from loader_corpus import write_corpus

    base = cache / f"corpus-{samples}"
    folders = {"memmap": prepared(base / "memmap", lambda folder: write_corpus(folder, samples))}
    for contender in contenders:
        python = interpreter(contender.environment, cache)

        def write(folder: Path, data: str = contender.data, python: str = python) -> None:
            script = HERE / "loader_contenders.py"
            subprocess.run([python, script, data, "write", folders["memmap"], folder], check=True, env=environ())

        if contender.data not in folders:
            folders[contender.data] = prepared(base / contender.data, write)
    return folders


class Reader:
    """A contender's process; reads everything once when it is told to."""

    def __init__(self, contender: Contender, folder: Path, cache: Path) -> None:
        self.contender = contender
        command = [interpreter(contender.environment, cache), HERE / "loader_contenders.py", contender.name, "read"]
        self._process = subprocess.Popen(
            [*command, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ(), text=True
        )

    def read(self) -> dict[str, float]:
        """One pass."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print("again", file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            sys.exit(f"{self.contender.name}: the reader ended with code {self._process.wait()}")
        found: dict[str, float] = json.loads(line)
        return found

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def race(contenders: list[Contender], folders: dict[str, Path], cache: Path, rounds: int) -> dict[str, Any]:
    """Rates of every contender in every round, after one pass that only checks that all read the same."""
    readers = [Reader(contender, folders[contender.data], cache) for contender in contenders]
    first = {reader.contender.name: reader.read() for reader in readers}
    seen = {name: tuple(int(found[key]) for key in ("tokens", "ids_sum", "labels")) for name, found in first.items()}
    if len({*seen.values()}) != 1:
        sys.exit(f"not all contenders read the same (tokens, sum of ids, labels): {seen}")
    rates: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    walls: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(rounds):
        turn = number % len(readers)
        for reader in [*readers[turn:], *readers[:turn]]:
            found = reader.read()
            rates[reader.contender.name].append(found["tokens"] / found["cpu_s"] / 1e6)
            walls[reader.contender.name].append(found["tokens"] / found["wall_s"] / 1e6)
        told = "  ".join(f"{name} {values[-1]:.1f}" for name, values in rates.items())
        print(f"round {number + 1}/{rounds}, Mtok per CPU-second: {told}", flush=True)
    for reader in readers:
        reader.close()
    fills = {name: found["tokens"] / (found["rows"] * 4096) for name, found in first.items()}
    return {"rates": rates, "walls": walls, "fills": fills, "tokens": first[contenders[0].name]["tokens"]}


def measured(name: str, *arguments: str | Path) -> dict[str, Any]:
    """One of `loader_measures.py`."""
    print(f"measuring {name} {' '.join(map(str, arguments[1:]))}".rstrip(), flush=True)
    command = [sys.executable, HERE / "loader_measures.py", name, *map(str, arguments)]
    done = subprocess.run(command, check=True, env=environ(), capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measures(cache: Path, shards: Path, samples: int, tenfold: int, resume_step: int) -> dict[str, Any]:
    """Our loader alone, on the corpus and on a set that is `tenfold` times as large."""
    from loader_corpus import drawn_samples, write_shards

    large = prepared(
        cache / f"corpus-{samples}" / f"ours-{tenfold}x",
        lambda folder: write_shards(drawn_samples(samples * tenfold, seed=8), folder),
    )
    plans = cache / f"corpus-{samples}" / "plans"
    shutil.rmtree(plans, ignore_errors=True)
    cold = measured("resume", shards, str(resume_step), plans)
    warm = measured("resume", shards, str(resume_step), plans)
    if cold["first_ids"] != warm["first_ids"]:
        sys.exit("the cache of the order changes the rows")
    return {
        "planning": measured("planning", large),
        "cold": cold,
        "warm": warm,
        "memory": measured("memory", shards),
        "memory_large": measured("memory", large),
    }


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder, caches of its writer left out."""
    files = (path for path in folder.rglob("*") if path.is_file() and "cache" not in path.relative_to(folder).parts)
    return sum(path.stat().st_size for path in files)


def race_table(contenders: list[Contender], found: dict[str, Any], folders: dict[str, Path]) -> str:
    """A row for each contender; ratios are medians of the rounds' own ratios."""
    lines = [
        "| reader | order | million tokens per CPU-second: median (range) | of the memmap | ours is | wanted "
        "| rows filled | bytes a token |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for contender in contenders:
        rates = found["rates"][contender.name]
        own, memmap = found["rates"]["ours"], found["rates"]["memmap"]
        share = statistics.median(a / b for a, b in zip(rates, memmap, strict=True))
        faster = statistics.median(a / b for a, b in zip(own, rates, strict=True))
        wanted = "" if contender.at_least is None else f"≥ {contender.at_least:g} ×"
        lines.append(
            f"| {contender.label} | {contender.order} "
            f"| {statistics.median(rates):.1f} ({min(rates):.1f}–{max(rates):.1f}) | {share:.2f} × "
            f"| {'' if contender.name == 'ours' else f'{faster:.2f} ×'} | {wanted} "
            f"| {100 * found['fills'][contender.name]:.2f} % "
            f"| {size_of(folders[contender.data]) / found['tokens']:.2f} |"
        )
    return "\n".join(lines)


def promise_table(found: dict[str, Any], fill: float, bytes_a_token: float, tenfold: int, resume_step: int) -> str:
    """What was asked of the loader alone."""
    planning, cold, warm = found["planning"], found["cold"], found["warm"]
    small, large = found["memory"], found["memory_large"]
    million = planning["samples"] / 1e6
    mb = 1e6
    rows = [
        ("rows of 4,096 filled, nothing cut or dropped", f"{100 * fill:.2f} %", "≥ 99.5 %"),
        ("bytes a token on the disk", f"{bytes_a_token:.2f}", "≤ 4.2"),
        (
            "planning the order, per million samples: which row lies where",
            f"{planning['order_s'] / million:.2f} s",
            "≤ 1 s",
        ),
        ("  and laying out all rows, done while reading", f"{planning['rows_s'] / million:.2f} s", ""),
        (
            f"resuming at step {resume_step:,} ({cold['epochs']:,.0f} epochs), with the cache of the order",
            f"{warm['seconds']:.2f} s (CPU {warm['cpu_s']:.2f})",
            "≤ 1 s",
        ),
        ("  and without it", f"{cold['seconds']:.1f} s (CPU {cold['cpu_s']:.1f})", "planning speed"),
        (
            "private memory of a worker, largest in an epoch",
            f"{small['private'] / mb:.0f} MB (Python and libraries: {small['private_before'] / mb:.0f})",
            "",
        ),
        (f"  and with {tenfold} × the data", f"{large['private'] / mb:.0f} MB", "the same"),
        (
            f"mapped pages of shards, largest in an epoch; with {tenfold} × the data",
            f"{small['mapped'] / mb:.0f} MB; {large['mapped'] / mb:.0f} MB",
            "",
        ),
    ]
    lines = ["| figure | measured | wanted |", "|---|---|---|"]
    return "\n".join(lines + [f"| {what} | {value} | {wanted} |" for what, value, wanted in rows])


def main() -> None:
    """Prepare, race, measure, write."""
    names = [contender.name for contender in CONTENDERS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=ROOT / "runs" / "loader-benchmark", help="corpus, environments")
    parser.add_argument("--samples", type=int, default=100_000, help="samples of the corpus, 464 tokens each")
    parser.add_argument("--rounds", type=int, default=7, help="measured passes of every contender")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="contenders; memmap and ours always")
    parser.add_argument("--tenfold", type=int, default=10, help="how many times as large the set for memory is")
    parser.add_argument("--resume-step", type=int, default=1_000_000, help="where resuming is measured")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the tables go")
    args = parser.parse_args()
    contenders = [c for c in CONTENDERS if c.name in {*args.only, "memmap", "ours"}]
    cache = args.cache.resolve()
    folders = prepare(contenders, cache, args.samples)
    found = race(contenders, folders, cache, args.rounds)
    alone = measures(cache, folders["ours"], args.samples, args.tenfold, args.resume_step)
    bytes_a_token = size_of(folders["ours"]) / found["tokens"]
    text = (
        f"`python benchmarks/loader.py` on {os.cpu_count()} CPU cores ({platform.machine()}): {args.samples:,} "
        f"samples, {found['tokens']:,} tokens, {args.rounds} rounds; files in the page cache.\n\n"
        f"{race_table(contenders, found, folders)}\n\n"
        f"{promise_table(alone, found['fills']['ours'], bytes_a_token, args.tenfold, args.resume_step)}"
    )
    print(text)
    write_section("loader", text, args.page)


if __name__ == "__main__":
    main()
