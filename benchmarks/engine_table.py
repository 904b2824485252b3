"""What benchmarks/engine.py says about its runs: which contender is the best, same losses, a table, the page."""

from __future__ import annotations

import os
import platform
import statistics
from dataclasses import dataclass, field
from typing import Any

from engine_data import SIZES, Job

SAME_LOSS = 1e-5
"""Relative difference that the loss after the same documents may have in fp32."""
REPEAT = 0.5
"""Share of the best rate below which a contender is not measured again: its place is clear."""


@dataclass
class Result:
    """One contender's processes, one a round.

    Attributes:
        rates: supervised tokens a second of the timed steps, per round.
        thrifts: the same a second of processor time, of all threads and ranks.
        peaks: MB above the imports, summed over ranks; on a GPU the allocator's peak.
        losses: of each step, the first round's.
        steps: the last round's timed steps of rank 0.
        failure: why there is nothing.
    """

    job: Job
    rates: list[float] = field(default_factory=list)
    thrifts: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    steps: list[dict[str, float]] = field(default_factory=list)
    failure: str = ""

    def add(self, ranks: list[dict[str, Any]]) -> None:
        """Take in what the ranks of one round reported."""
        warm = SIZES[self.job.size].warm
        kept = [[step for step in rank["steps"] if "loss" in step] for rank in ranks]
        self.steps = kept[0][warm:]
        if not self.steps:
            raise RuntimeError(f"{self.job.name}: no step was timed")
        labels = sum(step["supervised"] for step in self.steps)
        self.rates.append(labels / sum(step["seconds"] for step in self.steps))
        self.thrifts.append(labels / sum(step["cpu"] for steps in kept for step in steps[warm:]))
        self.peaks.append(sum(rank["peak_mb"] for rank in ranks))
        if not self.losses:  # ranks that report the loss of their own share are averaged, others agree anyway
            self.losses = [statistics.fmean(step["loss"] for step in steps) for steps in zip(*kept, strict=True)]

    @property
    def rate(self) -> float:
        """Median supervised tokens a second."""
        return statistics.median(self.rates)

    @property
    def thrift(self) -> float:
        """Median supervised tokens a second of processor time: says more than `rate` where others compute too."""
        return statistics.median(self.thrifts)

    @property
    def peak_mb(self) -> float:
        """Median peak."""
        return statistics.median(self.peaks)

    @property
    def tokens_rate(self) -> float:
        """Median tokens a second, padding not counted."""
        return self.rate * sum(step["tokens"] for step in self.steps) / sum(step["supervised"] for step in self.steps)


def best_other(results: list[Result], ranks: int = 1) -> Result | None:
    """The fastest contender that is not ours and has so many ranks at least."""
    others = [result for result in results if not result.job.ours and result.rates and result.job.ranks >= ranks]
    return max(others, key=lambda result: result.rate, default=None)


def to_repeat(results: list[Result]) -> list[Result]:
    """Who is measured again after the first round: ours, and what comes near the best of the others."""
    best = best_other(results)
    return [
        result
        for result in results
        if result.rates and (result.job.ours or best is None or result.rate >= REPEAT * best.rate)
    ]


def deviation(result: Result, reference: Result) -> float | None:
    """Largest relative difference of a loss after the same documents; None where the documents differ."""
    if result.job.packing:
        return None
    pairs = zip(result.losses, reference.losses, strict=True)
    return max(abs(loss - wanted) / wanted for loss, wanted in pairs)


def other_losses(results: list[Result]) -> list[str]:
    """Contenders whose losses are not those of the first of ours; only told in fp32."""
    measured = [result for result in results if result.rates]
    reference = next((result for result in measured if result.job.ours), None)
    if reference is None or reference.job.cuda:
        return []
    far = {result.job.name: deviation(result, reference) for result in measured}
    return [f"{name}: losses differ by {off:.1e}" for name, off in far.items() if off is not None and off > SAME_LOSS]


def table(size: str, results: list[Result], peak_flops: float | None) -> str:
    """Markdown. Ratios are against the fastest contender that is not ours; of speed also against that of many ranks."""
    best, many = best_other(results), max(result.job.ranks for result in results)
    best_many = best_other(results, many)
    reference = next((result for result in results if result.job.ours and result.rates), None)
    speeds = ["supervised tokens/s", "range", "×", *([f"× of {many} ranks"] if many > 1 else [])]
    heads = [size, "n", *speeds, "per CPU-s", "×", "tokens/s", "peak MB", "×", "loss, first and last", "off by"]
    heads += ["MFU", "HFU"] if peak_flops else []
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for result in results:
        if not result.rates:
            lines.append(f"| {result.job.name} | 0 | {result.failure} |" + " |" * (len(heads) - 3))
            continue
        off = deviation(result, reference) if reference else None
        cells = [
            result.job.name + (" **(best other)**" if result is best else ""),
            f"{len(result.rates)}",
            f"{result.rate:,.0f}",
            f"{min(result.rates):,.0f}–{max(result.rates):,.0f}",
            _ratio(result.rate, best and best.rate),
            *([_ratio(result.rate, best_many and best_many.rate)] if many > 1 else []),
            f"{result.thrift:,.0f}",
            _ratio(result.thrift, best and best.thrift),
            f"{result.tokens_rate:,.0f}",
            f"{result.peak_mb:,.0f}",
            _ratio(result.peak_mb, best and best.peak_mb),
            f"{result.losses[0]:.5f}, {result.losses[-1]:.5f}",
            "other rows" if result.job.packing else f"{off:.0e}" if off is not None else "–",
        ]
        if peak_flops:
            cells += [f"{share:.3f}" for share in utilisation(result, peak_flops)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ratio(value: float, of: float | None) -> str:
    return f"{value / of:.2f}" if of else "–"


def utilisation(result: Result, peak_flops: float) -> tuple[float, float]:
    """Model and hardware FLOPs utilisation; padding is no work that counts, recomputation counts for the latter."""
    from slm.config.stage import LoraConfig, ModelConfig
    from slm.plan.flops import cost_of
    from slm.plan.shapes import stage_weights

    job = result.job
    again = job.checkpointing or job.model.get("activation_checkpointing") == "all"
    lora = LoraConfig(rank=job.dimensions.lora_rank)
    shape, weights = stage_weights(ModelConfig(base=job.base, lora=lora))
    cost = cost_of(weights, shape, float(again))
    keys = ("tokens", "supervised", "pairs", "seconds")
    tokens, labels, pairs, seconds = (sum(step[key] for step in result.steps) for key in keys)
    available = peak_flops * job.ranks * seconds
    return cost.model(tokens, labels, pairs) / available, cost.hardware(tokens, labels, pairs) / available


def machine(device: str, trl: str) -> str:
    """What the figures were measured on."""
    import accelerate
    import deepspeed
    import torch
    import transformers

    what = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores ({platform.machine()})"
    modules = {"torch": torch, "deepspeed": deepspeed, "transformers": transformers, "accelerate": accelerate}
    versions = ", ".join(f"{name} {module.__version__}" for name, module in modules.items())
    return f"{what}; {versions}, {trl.replace('==', ' ')}"
