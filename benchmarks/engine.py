"""The engine against TRL's SFTTrainer and the HF Trainer with DeepSpeed ZeRO-3: speed, memory, same loss.

    python benchmarks/engine.py                       # two CPU ranks: the tiny model and the one with 138k rows
    python benchmarks/engine.py --device cuda         # one GPU: Llama 1B and 8B with random weights
    python benchmarks/engine.py --sizes tiny --only ours --no-page

Every contender gets the same weights, documents and order, in processes of its own. The first round measures all of
them, and so finds each one's best micro-batch; the rounds after it measure ours and whoever comes near the best of
the others, in turns. Medians count. Supervised tokens a second are of the timed steps; peak is the highest resident
memory above what the imports took, summed over ranks. Losses after the same documents have to agree.
TRL comes into a folder of its own on demand (`pip install --no-deps`), everything else is what constraints.txt pins.
The tables go into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine_data import SIZES, Job
from engine_table import Result, machine, other_losses, table, to_repeat
from page import ROOT, write_section

HERE = Path(__file__).resolve().parent
TRL = "trl==1.16.0"
ROUNDS = {"cpu": 3, "cuda": 1}
DEFAULT_SIZES = {"cpu": ["tiny", "bigvocab"], "cuda": ["1b", "8b"]}


def cpu_contenders(size: str) -> list[Job]:
    """Two ranks of a thread each, or a process of two threads."""
    micros = SIZES[size].micros
    return [
        Job("ours, ZeRO-3", "ours", 2),
        Job("ours, vocabulary-parallel", "ours", 2, model={"vocabulary_parallel": True}),
        *[Job(f"HF Trainer + ZeRO-3, micro-batch {micro}", "hf", 2, micro) for micro in micros],
        *[Job(f"TRL padded, micro-batch {micro}", "trl", 1, micro) for micro in micros],
        Job(f"TRL padded, micro-batch {micros[0]}, checkpointing", "trl", 1, micros[0], checkpointing=True),
        Job("TRL packing", "trl", 1, packing=True),
    ]


def cuda_contenders(size: str) -> list[Job]:
    """Settings of ours, and the HF stack with and without checkpointing."""
    from importlib.util import find_spec

    from slm.model.attention import KERNEL

    found = []
    for backend in ["sdpa", KERNEL, *(["flash_attention_2"] if find_spec("flash_attn") else [])]:
        for checkpointing in ("none", "all"):
            for chunk in (512, 2048, 8192):
                model = {"activation_checkpointing": checkpointing, "head_chunk": chunk}
                name = f"ours, {backend}, checkpointing {checkpointing}, chunk {chunk}"
                found.append(Job(name, "ours", 1, model=model, attention=backend))
    for again in (False, True):
        how = f"checkpointing {'all' if again else 'none'}"
        for micro in SIZES[size].micros:
            found.append(Job(f"HF Trainer + ZeRO-3, {how}, micro-batch {micro}", "hf", 1, micro, checkpointing=again))
        found.append(Job(f"TRL packing, {how}", "trl", 1, checkpointing=again, packing=True))
    return found


def start_ranks(job: Job, folder: Path, trl: Path) -> list[subprocess.Popen[bytes]]:
    """The ranks of a contender, each writing into a log of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = os.environ | {"OMP_NUM_THREADS": str(job.threads), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    env["PYTHONPATH"] = os.pathsep.join([str(trl), str(ROOT), env.get("PYTHONPATH", "")])
    if not job.cuda:
        env |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    script = HERE / ("engine_ours.py" if job.ours else "engine_contenders.py")
    ranks = []
    for rank in range(job.ranks):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job.ranks)}
        if job.kind == "trl":  # alone: with these variables accelerate would wrap the model in DDP and copy gradients
            place = {}
        with (folder / f"log{rank}").open("w") as log:
            command = [sys.executable, str(script), str(folder)]
            ranks.append(subprocess.Popen(command, env=env | place, stdout=log, stderr=subprocess.STDOUT, cwd=folder))
    return ranks


def measure(job: Job, work: Path, trl: Path) -> list[dict[str, Any]]:
    """Run one contender once; what its ranks reported.

    Raises:
        RuntimeError: a rank failed; the end of its output is in the message.
    """
    folder = work / "contender"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    job.write(folder)
    codes = [rank.wait() for rank in start_ranks(job, folder, trl)]
    if any(codes):
        failed = next(rank for rank, code in enumerate(codes) if code)
        raise RuntimeError(f"exit codes {codes}\n{(folder / f'log{failed}').read_text()[-1500:]}")
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(job.ranks)]


def compare(size: str, jobs: list[Job], work: Path, trl: Path, rounds: int) -> list[Result]:
    """All contenders in turns, for so many rounds."""
    results = [Result(job) for job in jobs]
    due = results
    for number in range(1, rounds + 1):
        for result in due:
            try:
                result.add(measure(result.job, work, trl))
            except RuntimeError as error:
                text = str(error)
                result.failure = "out of memory" if "out of memory" in text.lower() else "failed"
                print(f"{size}: {result.job.name}: {text}", file=sys.stderr)
                continue
            rate, peak = result.rates[-1], result.peaks[-1]
            name = result.job.name
            print(f"{size}, round {number}: {name}: {rate:,.0f} supervised tokens/s, {peak:,.0f} MB", flush=True)
        due = to_repeat(results)
    return results


def prepare(size: str, device: str, work: Path) -> None:
    """Weights and documents, made in a process of their own."""
    work.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, str(HERE / "engine_data.py"), size, str(work), device], check=True)


def install_trl(folder: Path) -> None:
    """TRL alone, into a folder of its own, if it is not there; without a package index its contenders fail, alone."""
    if not folder.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
        if subprocess.run([*pip, "--target", str(folder), TRL]).returncode:
            print("TRL can't be installed here: its contenders will fail", flush=True)


def peak_flops(device: str) -> float | None:
    """Of the GPU in bf16, from its maker's data sheet; None on a CPU or if it is not known."""
    if device != "cuda":
        return None
    import torch

    from slm.plan.devices import find_device

    found = find_device(torch.cuda.get_device_name())
    return found.peak_tflops * 1e12 if found else None


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--contenders", choices=["cpu", "cuda"], help="whose list; default that of the device")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), help="default: tiny bigvocab, or 1b 8b on a GPU")
    parser.add_argument("--rounds", type=int, help="default: 3, or 1 on a GPU, whose steps are many")
    parser.add_argument("--only", default="", help="only contenders whose name has this regular expression")
    parser.add_argument("--work", type=Path, help="folder for models, data and TRL; default a temporary one")
    parser.add_argument("--no-page", action="store_true", help="print only")
    return parser.parse_args()


def main() -> int:
    """Run every contender of every size, print the tables, write the page."""
    args = arguments()
    sys.path.insert(0, str(ROOT))
    sizes = args.sizes or DEFAULT_SIZES[args.device]
    root = args.work or Path(tempfile.mkdtemp(prefix="engine-benchmark-"))
    listed = {"cpu": cpu_contenders, "cuda": cuda_contenders}[args.contenders or args.device]
    threads = os.cpu_count() or 1
    tables, faults = [], []
    try:
        for size in sizes:
            work = root / size
            same = {"size": size, "device": args.device, "base": str(work / "base")}
            jobs = [replace(job, **same, threads=max(1, threads // job.ranks)) for job in listed(size)]
            jobs = [job for job in jobs if re.search(args.only, job.name)]
            if any(job.kind == "trl" for job in jobs):
                install_trl(root / "trl")
            prepare(size, args.device, work)
            results = compare(size, jobs, work, root / "trl", args.rounds or ROUNDS[args.device])
            tables.append(table(size, results, peak_flops(args.device)))
            faults += [f"{size}: {fault}" for fault in other_losses(results)]
            print(tables[-1], flush=True)
    finally:
        if args.work is None:
            shutil.rmtree(root, ignore_errors=True)
    if not args.no_page:
        command = f"python benchmarks/engine.py --device {args.device} --sizes {' '.join(sizes)}"
        write_section("engine", "\n\n".join([f"`{command}` on {machine(args.device, TRL)}:", *tables]))
    print(*faults, sep="\n", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
