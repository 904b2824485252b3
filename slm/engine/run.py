"""The composition root of a training stage: configuration in, a finished step folder out."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from slm.artifact import MANIFEST, find_manifest, is_current, read_status, write_atomic, write_manifest, write_status
from slm.callbacks.callback import Callback, Callbacks
from slm.callbacks.metrics import MetricsFile
from slm.callbacks.progress import ProgressBar
from slm.callbacks.wandb import WandbTracker
from slm.config.base import input_fingerprints
from slm.config.stage import StageConfig
from slm.data.loader import PackedLoader
from slm.data.mix import open_sources, planned_steps, stage_loader, stage_sources
from slm.engine.anchor import Anchor
from slm.engine.build import build_engine, use_bf16
from slm.engine.checkpoint import Checkpoints
from slm.engine.distributed import LONG, Place, device_name, find_place, from_main, process_group, together
from slm.engine.export import export
from slm.engine.figures import Figures
from slm.engine.fit import require_fit
from slm.engine.held_out import HeldOutEvaluation
from slm.engine.loop import Run, train_until_done
from slm.engine.packing_check import require_separate_documents
from slm.engine.preemption import INTERRUPT, NONE, PREEMPT, StopRequest, stop_request
from slm.engine.pulse import Pulse
from slm.engine.state import TrainState
from slm.engine.watch import watching
from slm.errors import InterruptedRunError, LostRankError, PreemptedError, SlmError, from_os_error
from slm.log import FILE_ONLY, setup_logging
from slm.model.reference import resolve
from slm.tokens.vocabulary import load_tokenizer

log = logging.getLogger(__name__)


def train(config: StageConfig, command: str = "", end: float | None = None) -> int:
    """Train a stage, or find that it is done, or continue it where it stopped.

    Args:
        command: what the user typed, for `command.txt`.
        end: when (`time.monotonic`) the job will be ended from outside; it saves and leaves before.

    Returns:
        0; what went wrong is raised.

    Raises:
        SlmError: any of the tree, each with its exit code; `status.json` has been written then.
    """
    out = Path(config.out)
    place = find_place()
    setup_logging(out / "logs")
    try:
        inputs = input_fingerprints(config)
        current, why = is_current(out, config.kind, config.identity(), inputs)
        if current:
            log.info("%s: up to date", out)
            status = read_status(out)
            if place.is_main and status and status["state"] != "done":
                write_status(out, "done", step=status["steps"], steps=status["steps"])
            return 0
        log.info("%s: %s", out, why)
        log.info("%d ranks, this one on %s", place.world_size, device_name(place.device))
        _check_vocabulary(config)
        with (
            process_group(place, stuck=lambda error: _record_failure(out, place, error)),
            stop_request(out, watch_file=place.is_main, end=end) as stop,
            watching(place, out, config.watch) as watch,
        ):
            _train(config, place, inputs, stop, watch.pulse, command)
    except BaseException as error:
        if not isinstance(error, SlmError | SystemExit | KeyboardInterrupt):
            log.error("ended by an error", exc_info=error, extra=FILE_ONLY)
        if not place.is_main and _is_of_all(error) and _told_by_main(out, error):
            raise SystemExit(error.exit_code) from None  # all ranks met it; one message is enough
        _record_failure(out, place, error)
        raise
    return 0


def _is_of_all(error: BaseException) -> TypeGuard[SlmError]:
    """Whether every rank may have met it. Who speaks of a lost rank is settled by the watch."""
    return isinstance(error, SlmError) and not isinstance(error, LostRankError)


def _check_vocabulary(config: StageConfig) -> None:
    """Every shard set must mean by its ids what the model means."""
    _, model = load_tokenizer(resolve(config.model.base).base)
    open_sources(stage_sources(config), model, damaged=config.data.damaged)


def _train(
    config: StageConfig, place: Place, inputs: dict[str, str], stop: StopRequest, pulse: Pulse, command: str
) -> None:
    out = Path(config.out)
    identity = {"stage": config.identity(), "inputs": inputs}
    checkpoints = Checkpoints(out / "checkpoints", place, identity, config.checkpoint.keep)
    together(lambda: checkpoints.settle_others(finished=find_manifest(out) is not None))
    together(lambda: _open_folder(config, place, command))
    started = time.perf_counter()
    together(lambda: require_fit(config, place))
    pulse.mark("building the model")
    engine, ds_config = build_engine(config, place)
    pulse.mark("preparing the data")
    require_separate_documents(engine, place)
    loader = stage_loader(config, rank=place.rank, world_size=place.world_size, plan_cache=out / "order")
    sources = [spec.name for spec in loader.specs]
    weights = ", ".join(f"{name} {weight}" for name, weight in zip(sources, loader.mixture.weights, strict=True))
    log.info("rows in each block of %d: %s", loader.mixture.block * loader.lanes, weights)
    held_out = HeldOutEvaluation.of_stage(config, loader.specs, place)
    steps = planned_steps(config, loader)
    anchor = Anchor(engine, config.anchor) if config.anchor is not None else None  # before weights are resumed
    pulse.mark("resuming")
    state = _resume(checkpoints, engine, loader, config.seed)
    state.lost_samples |= held_out.lost_samples if held_out is not None else {}
    callbacks = build_callbacks(config) if place.is_main else Callback()

    def save(best: bool) -> None:
        begin = time.perf_counter()
        loader.save_plans()
        path = checkpoints.save(engine, state, lora=config.model.train == "lora", best=best)
        stop.save_s = time.perf_counter() - begin
        if place.is_main:
            write_status(out, "running", step=state.step, steps=steps)
            callbacks.on_save({"step": state.step, "path": str(path), "seconds": stop.save_s})

    pulse.step, last_good = state.step, checkpoints.newest_up_to
    figures = Figures(config, place, bf16=use_bf16(config, place))
    run = Run(
        *(config, place, engine, loader, sources, steps, state, callbacks, stop, save, last_good, figures, pulse),
        anchor=anchor,
        held_out=held_out,
    )
    if place.is_main:
        write_atomic(out / "deepspeed.yaml", yaml.safe_dump(ds_config, sort_keys=False))
        write_status(out, "running", step=state.step, steps=steps)
        resolved = config.model_dump(mode="json")
        callbacks.on_start({"out": str(out), "name": out.name, "step": state.step, "steps": steps, "config": resolved})
    try:
        asked = train_until_done(run)
        if asked == NONE:
            _finish(run, inputs, time.perf_counter() - started)
        else:
            stop.clear_file()
            _leave(run, asked)
    except BaseException as error:
        if place.is_main:
            callbacks.on_error(error)
        raise
    finally:
        loader.close()


def _open_folder(config: StageConfig, place: Place, command: str) -> None:
    """Mark the run folder as a run under way. An older manifest goes first: it would seal what comes now."""
    if place.is_main:
        out = Path(config.out)
        (out / MANIFEST).unlink(missing_ok=True)
        write_atomic(out / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        write_atomic(out / "command.txt", command + "\n")
        write_status(out, "running")


def build_callbacks(config: StageConfig) -> Callbacks:
    """metrics.jsonl first: the others are sinks of the same records."""
    found: list[Callback] = [MetricsFile(), ProgressBar()]
    if config.track.wandb:
        found.append(WandbTracker(project=config.track.project))
    return Callbacks(found)


def _resume(checkpoints: Checkpoints, engine: Any, loader: PackedLoader, seed: int) -> TrainState:
    # rank 0 alone: the others would meet what it renames next
    path = from_main(checkpoints.place, checkpoints.newest_valid, within=LONG)
    if path is None:
        return TrainState()
    together(lambda: checkpoints.set_aside_damaged(path))
    state = checkpoints.load(engine, path, seed)
    loader.load_state_dict(state.loader)
    log.info("resumed from %s at step %d", path, state.step)
    return state


def _finish(run: Run, inputs: dict[str, str], seconds: float) -> None:
    """Export, seal the step folder, and tell everybody."""
    run.pulse.mark("exporting")
    entries = export(run.engine, run.config, run.place)
    together(lambda: _seal(run, inputs, entries, seconds))


def _seal(run: Run, inputs: dict[str, str], entries: dict[str, dict[str, Any]], seconds: float) -> None:
    if not run.place.is_main:
        return
    out = Path(run.config.out)
    shares = run.loader.shares()
    for name, share in shares.items():
        log.info("%s: %d rows, %d samples, %.4f epochs", name, share["rows"], share["samples"], share["epochs"])
    about = {
        "base": run.config.model.base,
        "previous": run.config.model.previous,
        "steps": run.state.step,
        "tokens": run.state.tokens,
        "supervised_tokens": run.state.supervised_tokens,
        "seconds": round(seconds, 2),
        "world_size": run.place.world_size,
        "shares": shares,
        "lost_samples": run.state.lost_samples,
        "resolved": run.config.model_dump(mode="json"),
    }
    write_manifest(out, run.config.kind, config=run.config.identity(), inputs=inputs, about=about, files=entries)
    write_status(out, "done", step=run.state.step, steps=run.steps)
    run.callbacks.on_end({"step": run.state.step, "steps": run.steps, "seconds": seconds, "state": "done"})


def _leave(run: Run, asked: int) -> None:
    """Saved by agreement: say so and exit with the code that tells why."""
    done = f"{run.state.step} of {run.steps} steps are saved"
    if asked == INTERRUPT:
        raise InterruptedRunError(
            f"interrupted; {done}", where=run.config.out, mend="start the same command again to continue"
        )
    assert asked == PREEMPT
    raise PreemptedError(
        f"asked to stop; {done}", where=run.config.out, mend="start the same command again to continue"
    )


def _told_by_main(out: Path, error: SlmError, patience_s: float = 10.0) -> bool:
    """Whether rank 0 stopped for the same reason and says so."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        status = read_status(out)
        if status and status["rank"] == 0 and status["exit_code"] and status["reason"] == error.what:
            return True
        time.sleep(0.1)
    return False


def _record_failure(out: Path, place: Place, error: BaseException) -> None:
    """Leave the verdict in status.json. An explanation stays; a bare exception never replaces one."""
    if isinstance(error, OSError):
        error = from_os_error(error, "training")
    if isinstance(error, LostRankError):
        return  # the watch has written it, with the rank that it is about
    known = isinstance(error, SlmError)
    before = read_status(out) if out.is_dir() else None
    if not known and ((before and before["exit_code"]) or find_manifest(out) is not None):
        return  # another rank said why, or the stage is finished and the fault came afterwards
    code = exit_code_of(error)
    state = "preempted" if code in (85, 130) else "failed"
    reason = error.what if isinstance(error, SlmError) else f"{type(error).__name__}: {error}"
    step, steps = (before["step"], before["steps"]) if before else (0, 0)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_status(out, state, exit_code=code, step=step, steps=steps, reason=reason, rank=place.rank)
    except (SlmError, OSError) as second:
        log.error("status.json can't be written: %s", second)


def exit_code_of(error: BaseException) -> int:
    """The exit code that an exception ends the process with."""
    if isinstance(error, SlmError):
        return error.exit_code
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return 130 if isinstance(error, KeyboardInterrupt) else 1
