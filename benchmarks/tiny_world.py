"""The tiny world on several seeds: every figure with its mean and spread.

    python benchmarks/tiny_world.py --seeds 3

runs `ds_configs/pipelines/chains.yaml` once per seed (data, base, both chains, evaluation), each in
a run folder of its own that is continued when the benchmark is started again, prints a table and
writes it into docs/benchmarks.md. A seed changes the corpus (texts drawn, voices, rates), the
codebook, the initial weights and the data order.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from typing import Any

from page import ROOT, write_section

PIPELINE = "ds_configs/pipelines/chains.yaml"
STEPS = ("random", "llm", "base", "naive-asr", "naive-tts", "naive-sqa", "replay-asr", "replay-tts", "replay-sqa")

# (label in the table, model, task, is the raw metric meant)
FIGURES = [
    ("text QA, base", "base", "text_qa", False),
    ("text QA after ASR, naive", "naive-asr", "text_qa", False),
    ("text QA after ASR, replay", "replay-asr", "text_qa", False),
    ("text QA after TTS, naive", "naive-tts", "text_qa", False),
    ("text QA after TTS, replay", "replay-tts", "text_qa", False),
    ("text QA after SQA, naive", "naive-sqa", "text_qa", False),
    ("text QA after SQA, replay", "replay-sqa", "text_qa", False),
    ("instructions, base", "base", "instructions", False),
    ("instructions after SQA, naive", "naive-sqa", "instructions", False),
    ("instructions after SQA, replay", "replay-sqa", "instructions", False),
    ("WER after ASR, naive", "naive-asr", "asr", True),
    ("WER after ASR, replay", "replay-asr", "asr", True),
    ("WER after SQA, naive", "naive-sqa", "asr", True),
    ("WER after SQA, replay", "replay-sqa", "asr", True),
    ("WER of random word strings after ASR, replay", "replay-asr", "asr_random", True),
    ("spoken QA, naive", "naive-sqa", "sqa", False),
    ("spoken QA, replay", "replay-sqa", "sqa", False),
    ("spoken QA, unheard voices, replay", "replay-sqa", "sqa_new_voices", False),
]


def run_seed(seed: int) -> dict[str, Any]:
    """Run the chains with one seed and return the evaluation's summary."""
    name = f"tiny-seed{seed}"
    overrides = [f"name={name}", f"steps.data.set.seed={seed}", *(f"steps.{step}.set.seed={seed}" for step in STEPS)]
    subprocess.run([sys.executable, "launcher/pipeline.py", PIPELINE, *overrides], cwd=ROOT, check=True)
    summary: dict[str, Any] = json.loads((ROOT / "runs" / name / "evaluation" / "summary.json").read_text())
    return summary


def table(summaries: dict[int, dict[str, Any]]) -> str:
    """Markdown: a row per figure, a column per seed, mean and standard deviation."""
    seeds = sorted(summaries)
    lines = [
        f"| figure | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | sd |",
        "|---|" + "---|" * (len(seeds) + 2),
    ]
    for label, model, task, raw in FIGURES:
        values = [summaries[seed]["scores"][model][task]["raw" if raw else "score"] for seed in seeds]
        spread = f"{statistics.stdev(values):.3f}" if len(values) > 1 else "–"
        cells = " | ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {label} | {cells} | {statistics.mean(values):.3f} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    """Run the seeds one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0")
    args = parser.parse_args()
    text = table({seed: run_seed(seed) for seed in range(args.seeds)})
    print(text)
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()}), no GPU"
    write_section("tiny-world", f"`python benchmarks/tiny_world.py --seeds N` on {machine}:\n\n{text}")


if __name__ == "__main__":
    main()
