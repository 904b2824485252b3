"""Generation on the tiny world: tokens a second against answering one by one, and what is heard of what is spoken.

    python benchmarks/generation.py --run runs/quickstart

takes a finished quickstart and answers its evaluation sets by every contender in turn (A B C …, B C … A),
greedily, with the same limits. All have to say the same tokens, or nothing is written. Ratios are taken
within a round. Then the answers of the TTS set are spoken by the vocoder and heard again by the extractor:
edits between the units that were said and those that were heard, beside the same figure for the units of
real recordings, which is what vocoder and extractor lose by themselves. The tables go into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from page import PAGE, ROOT, write_section

from slm.eval.metrics import Ratio, unit_errors
from slm.eval.sets import Item, choose, read_set, set_path
from slm.eval.voice import Voice, load_voice
from slm.generation.constraint import Constraint
from slm.generation.generate import Generated, generate
from slm.generation.output import Output, interleaving_faults, split_output
from slm.model.load import Loaded, load_model
from slm.stages import RECIPES
from slm.tokens.chat import end_of_answer, render_prompts

BATCH = 64
WANTED = 5.0
"""How many times the tokens a second of answering one by one batches have to reach."""


@dataclass(frozen=True)
class Work:
    """A model and the prompts of one evaluation set."""

    name: str
    loaded: Loaded
    prompts: list[list[int]]
    stop: set[int]
    limit: int


def by_transformers(work: Work, batch: int) -> list[Generated]:
    """transformers' own `generate`, left-padded, prompts in order of length."""
    order = sorted(range(len(work.prompts)), key=lambda i: len(work.prompts[i]))
    found: dict[int, Generated] = {}
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        width = max(len(work.prompts[i]) for i in chosen)
        ids = torch.tensor([[0] * (width - len(work.prompts[i])) + work.prompts[i] for i in chosen])
        mask = torch.tensor([[0] * (width - len(work.prompts[i])) + [1] * len(work.prompts[i]) for i in chosen])
        said = work.loaded.model.generate(
            ids, attention_mask=mask, max_new_tokens=work.limit, do_sample=False, eos_token_id=sorted(work.stop),
            pad_token_id=0,
        )[:, width:]  # fmt: skip
        for i, row in zip(chosen, said.tolist(), strict=True):
            end = next((place for place, token in enumerate(row) if token in work.stop), None)
            found[i] = Generated(row[:end] if end is not None else row, end is not None)
    return [found[i] for i in range(len(order))]


def by_slm(work: Work, batch: int, constraint: Constraint | None = None) -> list[Generated]:
    """The program's own."""
    return generate(
        work.loaded.model, work.prompts, stop=work.stop, max_new_tokens=work.limit, batch_size=batch,
        size=work.loaded.vocabulary.size, constraint=constraint,
    )  # fmt: skip


CONTENDERS: dict[str, tuple[str, Callable[[Work], list[Generated]]]] = {
    "one": ("transformers `generate`, one by one", lambda work: by_transformers(work, 1)),
    "ours_one": ("slm, one by one", lambda work: by_slm(work, 1)),
    "batched": (f"transformers `generate`, batches of {BATCH}", lambda work: by_transformers(work, BATCH)),
    "ours": (f"**slm, batches of {BATCH}**", lambda work: by_slm(work, BATCH)),
}


def work_of(name: str, model: Path, data: Path, limit: int) -> tuple[Work, list[Item]]:
    """The prompts of an evaluation set as the model is asked them; the longest right answer is the limit."""
    loaded = load_model(model)
    items = choose(read_set(set_path(data, name)), limit, 0)
    prompts = render_prompts(loaded.tokenizer, [RECIPES[item.stage].prompt(item.example) for item in items])
    answers = [RECIPES[item.stage].answer(item.example) for item in items]
    longest = max(len(loaded.tokenizer(answer, add_special_tokens=False)["input_ids"]) for answer in answers)
    stop = {end_of_answer(loaded.tokenizer)}
    return Work(name, loaded, prompts, stop, longest + longest // 4), items


def race(work: Work, rounds: int) -> dict[str, list[float]]:
    """Tokens a second of every contender in every round, after one that only compares what they say."""
    first = {name: answer(work) for name, (_, answer) in CONTENDERS.items()}
    for name, said in first.items():
        same = sum(a == b for a, b in zip(said, first["one"], strict=True))
        if same < 0.98 * len(said):  # padding moves the last bits of logits; a tie may then fall otherwise
            sys.exit(f"{work.name}: {name} says something else than one by one in {len(said) - same} of {len(said)}")
    rates: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    names = list(CONTENDERS)
    for number in range(rounds):
        turn = number % len(names)
        for name in [*names[turn:], *names[:turn]]:
            began = time.perf_counter()
            said = CONTENDERS[name][1](work)
            # The token that ends an answer is computed too.
            rates[name].append(sum(len(one.ids) + one.finished for one in said) / (time.perf_counter() - began))
        told = "  ".join(f"{name} {values[-1]:.0f}" for name, values in rates.items())
        print(f"{work.name}, round {number + 1}/{rounds}, tokens/s: {told}", flush=True)
    return rates


def race_table(found: Sequence[tuple[Work, dict[str, list[float]]]]) -> str:
    """A row for each set and contender; ratios are medians of the rounds' own."""
    lines = [
        "| set | contender | tokens/s: median (range) | times one by one | wanted |",
        "|---|---|---|---|---|",
    ]
    for work, rates in found:
        for name, (label, _) in CONTENDERS.items():
            ratio = statistics.median(a / b for a, b in zip(rates[name], rates["one"], strict=True))
            lines.append(
                f"| {work.name}, {len(work.prompts)} prompts | {label} | {statistics.median(rates[name]):,.0f} "
                f"({min(rates[name]):,.0f}–{max(rates[name]):,.0f}) | {ratio:.2f} × "
                f"| {f'≥ {WANTED:g} ×' if name == 'ours' else ''} |"
            )
    return "\n".join(lines)


@dataclass(frozen=True)
class RoundTrip:
    """Unit edit rates of one way of decoding; see `trip_table`."""

    label: str
    again: float
    ceiling: float
    wave: float
    malformed: float
    unfinished: float


def rate(ratios: Sequence[Ratio]) -> float:
    """A corpus figure: the ratio of the sums."""
    return sum(one.value for one in ratios) / max(sum(one.weight for one in ratios), 1.0)


def round_trip(label: str, outputs: Sequence[Output], items: Sequence[Item], voice: Voice) -> RoundTrip:
    """Speak every answer and hear it again."""
    references = [[int(unit) for unit in item.target["units"]] for item in items]
    heard = [voice.heard(output.units) for output in outputs]
    malformed = [one for one in outputs if interleaving_faults(one.raw)]
    return RoundTrip(
        label,
        rate([unit_errors(now, output.units) for now, output in zip(heard, outputs, strict=True)]),
        rate([unit_errors(voice.heard(reference), reference) for reference in references]),
        rate([unit_errors(now, reference) for now, reference in zip(heard, references, strict=True)]),
        len(malformed) / len(outputs),
        sum(not one.finished for one in outputs) / len(outputs),
    )


def trips(work: Work, items: Sequence[Item], voice: Voice) -> list[RoundTrip]:
    """Free and constrained decoding."""
    loaded = work.loaded
    grammar = Constraint("interleaved", loaded.tokenizer, loaded.vocabulary, work.stop)
    found = []
    for label, constraint in (("free", None), ("constrained", grammar)):
        said = by_slm(work, BATCH, constraint)
        outputs = [split_output(loaded.tokenizer, one, loaded.vocabulary) for one in said]
        found.append(round_trip(label, outputs, items, voice))
    return found


def trip_table(found: Sequence[tuple[str, RoundTrip]]) -> str:
    """A row for each model and way of decoding."""
    lines = [
        "| model | decoding | heard again against said | ceiling: the same for recordings' units "
        "| heard against a recording's units | malformed | cut at the limit |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, one in found:
        lines.append(
            f"| {model} | {one.label} | {one.again:.3f} | {one.ceiling:.3f} | {one.wave:.3f} | {one.malformed:.3f} "
            f"| {one.unfinished:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Race, speak, hear, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "quickstart", help="a finished quickstart")
    parser.add_argument("--model", default="replay-sqa", help="the step that is raced")
    parser.add_argument("--speakers", nargs="+", default=["replay-tts", "replay-sqa"], help="steps that speak")
    parser.add_argument("--sets", nargs="+", default=["tts", "sqa"], help="evaluation sets that are raced")
    parser.add_argument("--limit", type=int, default=128, help="prompts of a set at most")
    parser.add_argument("--rounds", type=int, default=5, help="measured passes of every contender")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the tables go")
    args = parser.parse_args()
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    torch.set_num_threads(threads)
    data = args.run / "data"
    voice = load_voice(str(data.resolve()))
    if voice is None:
        sys.exit(f"{data}: no speech here; give a finished quickstart by --run")
    raced = []
    for name in args.sets:
        work, _ = work_of(name, args.run / args.model, data, args.limit)
        raced.append((work, race(work, args.rounds)))
    spoken: list[tuple[str, Any]] = []
    for model in args.speakers:
        work, items = work_of("tts", args.run / model, data, args.limit)
        spoken += [(model, one) for one in trips(work, items, voice)]
    seed = json.loads((data / "MANIFEST.json").read_text())["config"].get("seed")
    text = (
        f"`python benchmarks/generation.py` on {os.cpu_count()} CPU cores ({platform.machine()}), {threads} threads, "
        f"the quickstart's `{args.model}` (seed {seed}), greedy, {args.rounds} rounds:\n\n"
        f"{race_table(raced)}\n\nUnit edit rates over the TTS set, spoken by the vocoder, heard by the extractor:\n\n"
        f"{trip_table(spoken)}"
    )
    print(text)
    write_section("generation", text, args.page)


if __name__ == "__main__":
    main()
