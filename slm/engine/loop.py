"""The step loop."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slm.callbacks.callback import Callback
from slm.config.stage import StageConfig
from slm.data.loader import PackedLoader
from slm.engine.anchor import Anchor
from slm.engine.batch import MicroBatch, to_micro_batch
from slm.engine.distributed import Place, all_counts, all_sum, raise_first, read_back
from slm.engine.figures import Figures
from slm.engine.finite import count_step, require_progress
from slm.engine.held_out import HeldOutEvaluation
from slm.engine.partitions import Partitions
from slm.engine.preemption import INTERRUPT, NONE, PREEMPT, StopRequest
from slm.engine.pulse import Pulse
from slm.engine.schedule import rate_factor
from slm.engine.state import TrainState
from slm.errors import DataError, SlmError


@dataclass
class Run:
    """What the loop works with; everything is built before it starts.

    `save` takes whether the held-out loss is the lowest so far; `last_good` finds the newest checkpoint of
    at most so many steps.
    """

    config: StageConfig
    place: Place
    engine: Any
    loader: PackedLoader
    sources: list[str]
    steps: int
    state: TrainState
    callbacks: Callback
    stop: StopRequest
    save: Callable[[bool], None]
    last_good: Callable[[int], Path | None]
    figures: Figures
    pulse: Pulse
    anchor: Anchor | None = None
    held_out: HeldOutEvaluation | None = None


def train_until_done(run: Run) -> int:
    """Take steps until the last one or until the ranks agree to stop.

    Returns:
        NONE when all steps are done, else what was asked (PREEMPT or INTERRUPT); the state is saved then.

    Raises:
        DivergedError: several steps in a row had a loss or gradient that is no finite number.
        DataError: a step without a single label.
    """
    while run.state.step < run.steps:
        record, asked = take_step(run)
        last = run.state.step == run.steps
        best = _evaluate(run, record, last)
        if run.place.is_main:
            run.callbacks.on_step(record)
        require_progress(run.state, run.config.optim.stop_after_skipped, run.last_good, run.config.out)
        # The last step is saved too: an export that fails (a full disk) must not cost the steps before it.
        if last or asked or best or run.state.step % run.config.checkpoint.every == 0:
            run.pulse.mark("saving")
            run.save(best)
        if asked and not last:
            return asked
    return NONE


def take_step(run: Run) -> tuple[dict[str, Any], int]:
    """One optimizer step.

    The loss is the sum of cross-entropy over the labels of all ranks and micro-batches, divided by
    their number N, which is known before the first backward pass; where sources have weights, both are
    weighted. DeepSpeed averages over ranks, so each micro-batch contributes S * world_size / N.

    Returns:
        The record of metrics.jsonl, and what the ranks agreed on (NONE, PREEMPT, INTERRUPT).
    """
    start = time.perf_counter()
    run.pulse.mark("reading")
    batches, lost, failure = _read(run)
    waited = time.perf_counter() - start
    run.pulse.mark("agreeing")
    counts, tokens, asked = _agree(run, batches, lost, failure)
    labels = sum(counts.values())
    if labels == 0:
        raise DataError(
            "a step without a single supervised token", where=f"step {run.state.step}, {run.config.data.shards}"
        )
    factor = rate_factor(run.state.step, run.steps, run.config.schedule)
    for group in run.engine.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    weights = loss_weights(run.config, run.sources)
    weighted = sum(weights[name] * count for name, count in counts.items())
    sums, penalty = _forward_backward(run, batches, {name: weight / weighted for name, weight in weights.items()})
    loss = sum(weights[name] * value for name, value in sums.items()) / weighted
    if not math.isfinite(loss):
        Partitions(run.engine).spoil_gradients()
    elif run.anchor is not None:
        run.anchor.add_gradients()
    run.pulse.mark("updating")
    run.engine.step()
    if run.place.device.type == "cuda":
        torch.cuda.synchronize()  # the optimizer and its gathers are part of the step whose time is told
    took = time.perf_counter() - start
    run.state.step += 1
    run.pulse.took_step(run.state.step, took)
    count_step(run.state, run.engine.was_step_applied(), tell=run.place.is_main)
    run.state.tokens += tokens
    run.state.supervised_tokens += labels
    run.state.seconds += took
    run.state.loader = run.loader.state_dict()
    record = _record(run, loss, sums, counts, factor, tokens, took, waited)
    if run.anchor is not None:
        record["anchor_penalty"] = penalty
    return record | run.figures.of_step(batches, labels, start=start, waited=waited, took=took), asked


def loss_weights(config: StageConfig, sources: list[str]) -> dict[str, float]:
    """Source -> factor of its tokens in the loss."""
    factors = [config.data.loss_weight, *(source.loss_weight for source in config.replay)]
    return dict(zip(sources, factors, strict=True))


def _evaluate(run: Run, record: dict[str, Any], last: bool) -> bool:
    """Add the held-out losses to the step's record when they are due; whether they are the best so far."""
    if run.held_out is None or run.config.eval is None or not (last or run.state.step % run.config.eval.every == 0):
        return False
    record |= run.held_out.evaluate(run.engine, lambda: run.pulse.mark("evaluating"))
    loss = record["eval_loss"]
    if not math.isfinite(loss) or (run.state.best_loss is not None and loss >= run.state.best_loss):
        return False
    run.state.best_loss, run.state.best_step = loss, run.state.step
    return run.config.checkpoint.keep_best


def _read(run: Run) -> tuple[list[MicroBatch], Counter[str], SlmError | None]:
    """This rank's micro-batches and the samples missing from them, or why they can't be read: the others
    have to hear of it."""
    try:
        rows = run.loader.step(run.state.step)
    except SlmError as error:
        return [], Counter(), error
    lost = Counter(f"{row.source}: {group}" for row in rows for group in row.skipped)
    size = run.config.batch.micro_rows
    batches = [to_micro_batch(rows[i : i + size]).to(run.place.device) for i in range(0, len(rows), size)]
    return batches, lost, None


def _agree(
    run: Run, batches: list[MicroBatch], lost: Counter[str], failure: SlmError | None
) -> tuple[dict[str, int], int, int]:
    """Labels per source, tokens, and the stop request, summed over all ranks in one message.

    Samples that were lost on any rank go into the state of all.

    Raises:
        SlmError: on every rank, what kept one of them from reading its rows.
    """
    own = dict.fromkeys(run.sources, 0)
    for batch in batches:
        for source, labels in zip(batch.sources, batch.rows, strict=True):
            own[source] += labels
    asked = run.stop.check(run.pulse.longest_step_s)
    flags = [asked == PREEMPT, asked == INTERRUPT, failure is not None]
    message = [*own.values(), sum(batch.tokens for batch in batches), *flags, lost.total()]
    sums = all_sum([float(value) for value in message], run.place.device)
    *counts, tokens, preempts, interrupts, failures, missing = sums
    if failures:
        raise_first(failure)
    if missing:
        run.state.lost_samples = dict(Counter(run.state.lost_samples) + all_counts(lost))
    agreed = INTERRUPT if interrupts else PREEMPT if preempts else NONE
    return {name: int(count) for name, count in zip(run.sources, counts, strict=True)}, int(tokens), agreed


def _forward_backward(run: Run, batches: list[MicroBatch], shares: dict[str, float]) -> tuple[dict[str, float], float]:
    """Accumulate gradients of all but take no step; loss sums per source, and the anchor's penalty, over all ranks.

    Args:
        shares: source -> part of the step's loss that the cross-entropy of one of its labels makes.
    """
    own = dict.fromkeys(run.sources, 0.0)
    found: list[Tensor] = []
    for i, batch in enumerate(batches):
        if i:
            run.engine.step()  # inside an accumulation this only counts the micro-batch
        weights = [run.place.world_size * shares[source] for source in batch.sources]
        run.pulse.mark("forward")
        loss, losses = run.engine(
            batch.input_ids, batch.position_ids, batch.lengths, batch.where, batch.labels, batch.rows, weights
        )
        run.pulse.mark("backward")
        run.engine.backward(loss, scale_wrt_gas=False)
        found.append(losses)
    for batch, losses in zip(batches, found, strict=True):  # at the end: reading waits for the device
        for source, value in zip(batch.sources, read_back(losses), strict=True):
            own[source] += value
    run.figures.arrive()
    own_penalty = run.anchor.penalty() if run.anchor is not None else 0.0
    *sums, penalty = all_sum([*own.values(), own_penalty], run.place.device)
    return dict(zip(run.sources, sums, strict=True)), penalty


def _record(
    run: Run,
    loss: float,
    sums: dict[str, float],
    counts: dict[str, int],
    factor: float,
    tokens: int,
    took: float,
    waited: float,
) -> dict[str, Any]:
    norm = run.engine.get_global_grad_norm()
    rows = run.config.batch.rows
    shares = run.loader.shares() if run.place.is_main else {}  # the record is the main rank's
    total = sum(share["tokens"] for share in shares.values()) or 1
    return {
        "step": run.state.step,
        "steps": run.steps,
        "epoch": round(run.state.step * rows / max(1, run.loader.rows_in_epoch), 4),
        "tokens": run.state.tokens,
        "supervised_tokens": run.state.supervised_tokens,
        "loss": loss,
        **{f"loss/{name}": sums[name] / counts[name] for name in run.sources if counts[name]},
        "lr": run.config.optim.lr * factor,
        "grad_norm": float(norm) if norm is not None else None,
        "skipped": run.state.skipped,
        "tokens_per_s": tokens / took,
        "data_wait_s": waited,
        "step_s": took,
        **{f"share/{name}": share["tokens"] / total for name, share in shares.items()},
        **({"lost_samples": sum(run.state.lost_samples.values())} if run.state.lost_samples else {}),
        "time": time.time(),
    }
