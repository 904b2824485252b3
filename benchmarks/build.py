"""Building shards from JSON Lines: examples and tokens a second with one worker and with more.

    python benchmarks/build.py [--rows 100000] [--workers 1 2]

makes rows with the columns of `ls960_interleaves` (about 430 units and 24 words each, lengths lognormal, seed 0) and a
small byte-level tokenizer with 10,000 units, builds them once per worker count in a temporary folder, checks that the
sets are the same to the byte, and prints a table. Reading, checking, rendering, tokenising, writing, hashing and
joining are all in the time; so is starting the processes.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from slm.artifact import read_manifest
from slm.config.jobs import load_data_job, run_data_job
from slm.log import setup_logging
from slm.tokens.vocabulary import UnitSet, add_units, save_tokenizer

JOB = Path(__file__).resolve().parents[1] / "data_shards" / "jobs" / "librispeech_asr.yaml"
UNITS = UnitSet(10_000, 50.0, "xlsr2_1b_v2", "0" * 63 + "1")
WORDS = ("the", "of", "and", "to", "a", "in", "that", "he", "was", "it", "his", "is", "with", "as", "had", "for", "she")
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_rows(path: Path, count: int) -> None:
    """Random rows."""
    chance = random.Random(0)
    with open(path, "w") as file:
        for _ in range(count):
            units = max(20, int(chance.lognormvariate(6, 0.4)))
            row = {
                "instruction": "Repeat after me.",
                "discrete_unit": [chance.randrange(UNITS.count) for _ in range(units)],
                "transcription": " ".join(chance.choices(WORDS, k=units // 18 + 1)),
            }
            file.write(json.dumps(row) + "\n")


def make_tokenizer(folder: Path) -> None:
    """A byte-level BPE with a chat template and the units."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(WORDS)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    save_tokenizer(folder, tokenizer, add_units(tokenizer, UNITS))


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in spent)


def main() -> int:
    """Build once per worker count and print the rates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    setup_logging()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_rows(folder / "rows.jsonl", options.rows)
        make_tokenizer(folder / "tokenizer")
        lines, fingerprints = [], set()
        for workers in options.workers:
            out = folder / f"set-{workers}"
            source = f"source={{kind: jsonl, path: {folder}/rows.jsonl}}"
            pairs = [source, f"out={out}", f"tokenizer={folder}/tokenizer", f"workers={workers}"]
            job = load_data_job(str(JOB), pairs)
            began, burnt = time.perf_counter(), cpu_seconds()
            run_data_job(job)
            seconds, cpu = time.perf_counter() - began, cpu_seconds() - burnt
            manifest = read_manifest(out)
            fingerprints.add(manifest.fingerprint)
            rates = f"{options.rows / seconds:,.0f} | {manifest.about['tokens'] / seconds / 1e6:.2f}"
            per_cpu = f"{options.rows / cpu:,.0f} | {manifest.about['tokens'] / cpu / 1e6:.2f}"
            lines.append(f"| {workers} | {seconds:.1f} | {rates} | {cpu:.1f} | {per_cpu} |")
    if len(fingerprints) != 1:
        print("the sets differ", file=sys.stderr)
        return 1
    print("| workers | seconds | examples/s | Mtok/s | CPU-s | examples/CPU-s | Mtok/CPU-s |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
