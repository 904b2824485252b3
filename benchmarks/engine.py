"""The engine against TRL's SFTTrainer and the HF Trainer with DeepSpeed ZeRO-3: speed, memory, same loss.

    python benchmarks/engine.py                       # two CPU ranks: the tiny model and the one with 138k rows
    python benchmarks/engine.py --device cuda         # one GPU: Llama 1B and 8B with random weights
    python benchmarks/engine.py --sizes tiny --only ours

Every contender gets the same weights, documents and order, one after the other in processes of its own. Supervised
tokens a second are of the timed steps; peak is the highest resident memory above what the imports took, summed over
ranks. TRL comes into a folder of its own on demand (`pip install --no-deps`), everything else is what
constraints.txt pins. The table goes into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine_data import LORA_TARGETS, SIZES, Size, memory_mb, read_documents, report, same_adapters

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- engine begin -->", "<!-- engine end -->"
TRL = "trl==1.16.0"
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16, the vendors' figures

# (name, what it is): ours take model settings, the others the micro-batch of a rank.
CPU_CONTENDERS: list[tuple[str, dict[str, Any]]] = [
    ("ours, ZeRO-3, head in one piece", {"kind": "ours", "ranks": 2, "model": {"head_chunk": 100_000}}),
    ("ours, ZeRO-3, head in chunks", {"kind": "ours", "ranks": 2, "model": {}}),
    ("ours, vocabulary-parallel", {"kind": "ours", "ranks": 2, "model": {"vocabulary_parallel": True}}),
    *[
        (
            f"HF Trainer + ZeRO-3, micro-batch {micro}",
            {"kind": "hf", "ranks": 2, "micro": micro, "checkpointing": False},
        )
        for micro in (1, 2, 4)
    ],
    *[
        (f"TRL padded, micro-batch {micro}", {"kind": "trl", "ranks": 1, "micro": micro, "checkpointing": True})
        for micro in (1, 4)
    ],
    ("TRL packing", {"kind": "trl", "ranks": 1, "micro": 1, "packing": True, "checkpointing": False}),
]


def cuda_contenders() -> list[tuple[str, dict[str, Any]]]:
    """Settings of ours, and the HF stack with and without checkpointing."""
    from importlib.util import find_spec

    found: list[tuple[str, dict[str, Any]]] = []
    backends = ["sdpa", *(["flash_attention_2"] if find_spec("flash_attn") else [])]
    for backend in backends:
        for checkpointing in ("none", "all"):
            for chunk in (512, 2048, 8192):
                model = {"activation_checkpointing": checkpointing, "head_chunk": chunk}
                name = f"ours, {backend}, checkpointing {checkpointing}, chunk {chunk}"
                found.append((name, {"kind": "ours", "ranks": 1, "model": model, "attention": backend}))
    for checkpointing in (False, True):
        for micro in (1, 4):
            name = f"HF Trainer + ZeRO-3, checkpointing {'all' if checkpointing else 'none'}, micro-batch {micro}"
            found.append((name, {"kind": "hf", "ranks": 1, "micro": micro, "checkpointing": checkpointing}))
    return found


def our_rank(folder: Path) -> None:
    """A rank of ours: the engine of a stage, fed by hand."""
    job = json.loads((folder / "job.json").read_text())
    size, cuda = SIZES[job["size"]], job["device"] == "cuda"
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import torch

    from slm.engine.distributed import find_place, prepare_environment, process_group

    prepare_environment()
    import deepspeed  # noqa: F401

    from slm.config.loader import from_mapping
    from slm.config.stage import StageConfig
    from slm.engine import loop
    from slm.engine.batch import to_micro_batch
    from slm.engine.build import build_engine
    from slm.model import attention

    torch.set_num_threads(job["threads"])
    imports = memory_mb("VmRSS")
    same_adapters()
    if "attention" in job:
        attention.training_backend = lambda device: job["attention"]
    place = find_place()
    documents = read_documents(folder.parent / "documents.npz")
    rows_a_step = len(_rows(documents[: size.documents], size, place.world_size))
    lora = {"rank": size.lora_rank, "alpha": 16, "dropout": 0.0, "targets": LORA_TARGETS}
    config = from_mapping(
        StageConfig,
        {
            "out": str(folder / "out"),
            "stage": "asr",
            "model": {"base": job["base"], "lora": lora, **job["model"]},
            "data": {"shards": "unused"},
            "batch": {"rows": rows_a_step},
            "optim": {"lr": 1e-3, "clip": 0.0},
            "duration": {"steps": size.warm + size.timed},
            "zero": str(ROOT / "ds_configs" / "zero" / ("zero3.json" if cuda else "cpu.json")),
        },
        "benchmark",
    )
    steps = []
    with process_group(place):
        engine, _ = build_engine(config, place)
        run: Any = argparse.Namespace(engine=engine, place=place, sources=["all"])
        for step in range(size.warm + size.timed):
            rows = _rows(documents[step * size.documents : (step + 1) * size.documents], size, place.world_size)
            batches = [to_micro_batch([row]).to(place.device) for row in rows[place.rank :: place.world_size]]
            begin = time.perf_counter()
            labels = sum(int(row.supervised[1:].sum()) for row in rows)
            engine._config.gradient_accumulation_steps, engine.micro_steps = len(batches), 0
            loss = loop._forward_backward(run, batches, {"all": 1 / labels})["all"] / labels
            engine.step()
            if cuda:
                torch.cuda.synchronize()
            tokens = sum(len(row.ids) for row in rows)
            squares = sum(length**2 for row in rows for length in row.lengths)
            took = {"seconds": time.perf_counter() - begin, "loss": loss}
            steps.append(took | {"supervised": labels, "tokens": tokens, "squared_lengths": squares})
    more = {"device_peak_mb": torch.cuda.max_memory_allocated() / 2**20} if cuda else {}
    report(folder, place.rank, imports, steps, **more)


def _rows(documents: list[Any], size: Size, ranks: int) -> list[Any]:
    """A step's documents packed into rows, the same number for every rank."""
    import numpy as np

    from slm.data.loader import Row
    from slm.data.packing import pack

    lengths = np.array([len(ids) for ids, _ in documents])
    capacity = min(size.row, max(int(lengths.max()), -(-int(lengths.sum()) // ranks) + size.mean // 2))
    packed = pack(lengths, capacity)
    bins = [packed.items[a:b].tolist() for a, b in zip(packed.starts, packed.starts[1:], strict=False)]
    while len(bins) % ranks:
        bins.sort(key=len)
        longest = bins.pop()
        bins += [longest[::2], longest[1::2]]
    rows = []
    for items in bins:
        ids, masks = (np.concatenate([documents[i][part] for i in items]) for part in (0, 1))
        rows.append(Row("all", ids, masks, [len(documents[i][0]) for i in items]))
    return rows


def measure(work: Path, size: str, name: str, job: dict[str, Any], device: str, trl: Path) -> dict[str, Any]:
    """Run one contender and put its ranks' reports together.

    Raises:
        RuntimeError: a rank failed; its output's end is in the message.
    """
    folder = work / "contender"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    threads = max(1, (os.cpu_count() or 1) // job["ranks"])
    job = {**job, "size": size, "device": device, "base": str(work / "base"), "threads": threads}
    (folder / "job.json").write_text(json.dumps(job))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = os.environ | {"OMP_NUM_THREADS": str(threads), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    env["PYTHONPATH"] = os.pathsep.join([str(trl), str(ROOT), env.get("PYTHONPATH", "")])
    if device == "cpu":
        env["DS_ACCELERATOR"] = "cpu"
    if job["kind"] == "ours":
        command = [sys.executable, __file__, "--rank", str(folder)]
    else:
        command = [sys.executable, str(Path(__file__).with_name("engine_contenders.py")), str(folder)]
    ranks = []
    for rank in range(job["ranks"]):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job["ranks"])}
        log = (folder / f"log{rank}").open("w")
        ranks.append(subprocess.Popen(command, env=env | place, stdout=log, stderr=subprocess.STDOUT, cwd=folder))
    codes = [rank.wait() for rank in ranks]
    if any(codes):
        raise RuntimeError(f"{name}: exit codes {codes}\n{(folder / 'log0').read_text()[-1500:]}")
    found = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(job["ranks"])]
    warm = SIZES[size].warm
    timed = [step for step in found[0]["steps"] if "loss" in step][warm:]
    if not timed:
        raise RuntimeError(f"{name}: no step was timed")
    rates = [step["supervised"] / step["seconds"] for step in timed]
    return {
        "name": name,
        "supervised_tokens_per_s": sum(s["supervised"] for s in timed) / sum(s["seconds"] for s in timed),
        "spread": statistics.stdev(rates) if len(rates) > 1 else 0.0,
        "tokens_per_s": sum(step["tokens"] for step in timed) / sum(step["seconds"] for step in timed),
        "peak_mb": sum(rank["peak_mb"] for rank in found),
        "device_peak_mb": max((rank.get("device_peak_mb", 0.0) for rank in found), default=0.0),
        "losses": [step["loss"] for step in found[0]["steps"] if "loss" in step],
        "steps": timed,
    }


def utilisation(size: Size, result: dict[str, Any], peak: float) -> tuple[float, float]:
    """Model and hardware FLOPs utilisation of a packed run; frozen weights have no weight gradient.

    Per token a frozen matrix costs 4 FLOPs a weight (forward, gradient of its input), a trained one 6; causal
    attention 2 h l per token forward and twice that backward; the head only supervised positions. HFU adds the
    second forward pass of checkpointed layers.
    """
    head_dim = size.hidden // size.heads
    wide = 2 * size.hidden * size.hidden + 2 * size.hidden * size.kv_heads * head_dim
    layer = wide + 3 * size.hidden * size.mlp
    lora = size.lora_rank * (4 * size.hidden + 2 * size.kv_heads * head_dim)
    tokens, supervised, squares, seconds = (
        sum(step[key] for step in result["steps"]) for key in ("tokens", "supervised", "squared_lengths", "seconds")
    )
    forward = size.layers * (2 * (layer + lora) * tokens + 2 * size.hidden * squares)
    backward = size.layers * ((2 * layer + 4 * lora) * tokens + 4 * size.hidden * squares)
    head = 6 * size.vocabulary * size.hidden * supervised
    again = forward if "checkpointing all" in result["name"] else 0
    model = forward + backward + head
    return model / seconds / peak, (model + again) / seconds / peak


def table(size: str, results: list[dict[str, Any]], peak_flops: float | None) -> str:
    """Markdown; ratios are against the fastest, and the smallest, contender that is not ours."""
    others = [result for result in results if not result["name"].startswith("ours")]
    fastest = max((r["supervised_tokens_per_s"] for r in others), default=None)
    memory = "device_peak_mb" if peak_flops else "peak_mb"
    smallest = min((result[memory] for result in others), default=None)
    at = SIZES[size].warm
    lines = [
        f"| {size} | supervised tokens/s | ± | × | tokens/s | peak MB | × | loss of step 1, {at + 1} | MFU | HFU |",
        "|---|" + "---|" * 9,
    ]
    for r in results:
        speed = f"{r['supervised_tokens_per_s'] / fastest:.2f}" if fastest else "–"
        room = f"{r[memory] / smallest:.2f}" if smallest else "–"
        used = ("–", "–")
        if peak_flops and "squared_lengths" in r["steps"][0]:
            used = tuple(f"{share:.3f}" for share in utilisation(SIZES[size], r, peak_flops))
        losses = f"{r['losses'][0]:.5f}, {r['losses'][at]:.5f}"
        lines.append(
            f"| {r['name']} | {r['supervised_tokens_per_s']:.0f} | {r['spread']:.0f} | {speed} "
            f"| {r['tokens_per_s']:.0f} | {r[memory]:.0f} | {room} | {losses} | {used[0]} | {used[1]} |"
        )
    return "\n".join(lines)


def machine(device: str) -> str:
    """What the figures were measured on."""
    import deepspeed
    import torch
    import transformers

    what = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores ({platform.machine()})"
    versions = f"torch {torch.__version__}, deepspeed {deepspeed.__version__}, transformers {transformers.__version__}"
    return f"{what}; {versions}, {TRL.replace('==', ' ')}"


def write_page(text: str, device: str, sizes: list[str]) -> None:
    """Put the tables between their marks in docs/benchmarks.md."""
    command = f"`python benchmarks/engine.py --device {device} --sizes {' '.join(sizes)}`"
    block = f"{BEGIN}\n{command} on {machine(device)}:\n\n{text}\n{END}"
    page = PAGE.read_text()
    if BEGIN not in page:
        page += f"\n## The engine against TRL and the HF Trainer\n\n{BEGIN}\n{END}\n"
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + block + after)


def main() -> None:
    """Run every contender of every size, print the tables, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), help="default: tiny bigvocab, or 1b 8b on a GPU")
    parser.add_argument("--only", default="", help="only contenders whose name holds this")
    parser.add_argument("--work", type=Path, help="folder for models, data and TRL; default a temporary one")
    parser.add_argument("--no-page", action="store_true", help="print only")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        return our_rank(args.rank)
    sizes = args.sizes or (["tiny", "bigvocab"] if args.device == "cpu" else ["1b", "8b"])
    root = args.work or Path(tempfile.mkdtemp(prefix="engine-benchmark-"))
    trl = root / "trl"
    known = CPU_CONTENDERS if args.device == "cpu" else cuda_contenders()
    contenders = [(name, job) for name, job in known if args.only in name]
    if any(job["kind"] == "trl" for _, job in contenders) and not trl.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", str(trl), TRL], check=True)
    peak = None
    if args.device == "cuda":
        import torch

        named = torch.cuda.get_device_name()
        peak = next((flops for key, flops in PEAK_FLOPS.items() if key in named), None)
    tables = []
    for size in sizes:
        work = root / size
        work.mkdir(parents=True, exist_ok=True)
        maker = [sys.executable, str(Path(__file__).with_name("engine_data.py")), size, str(work), args.device]
        subprocess.run(maker, check=True)
        results = []
        for name, job in contenders:
            try:
                results.append(measure(work, size, name, job, args.device, trl))
            except RuntimeError as error:
                print(f"{size}: left out: {error}", file=sys.stderr)
                continue
            print(f"{size}: {name}: {results[-1]['supervised_tokens_per_s']:.0f} supervised tokens/s", flush=True)
        tables.append(table(size, results, peak))
        print(tables[-1], flush=True)
    if not args.no_page:
        write_page("\n\n".join(tables), args.device, sizes)
    if args.work is None:
        shutil.rmtree(root, ignore_errors=True)
    return None


if __name__ == "__main__":
    main()
