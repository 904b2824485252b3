"""What a stage's configuration reads: its sources, its number of steps, and what they will hold.

One place for the engine, which trains on it, and for `slm data mix`, which tells it beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slm.config.stage import StageConfig
from slm.data.held_out import hold_out
from slm.data.loader import PackedLoader, SourceSpec
from slm.data.reader import ShardSet
from slm.errors import ConfigError, DataError, SlmError
from slm.tokens.vocabulary import Vocabulary, require_same_vocabulary


def stage_sources(config: StageConfig) -> list[SourceSpec]:
    """The stage's own shards, then what it replays; each under the name of its folder, made unique."""
    parts = [(config.data.shards, 1.0, "rows"), *((source.shards, source.ratio, source.by) for source in config.replay)]
    names = [Path(folder).name for folder, _, _ in parts]
    if len(set(names)) < len(names):
        names = [f"{name}-{i}" if names.count(name) > 1 else name for i, name in enumerate(names)]
    return [SourceSpec(name, *part) for name, part in zip(names, parts, strict=True)]


def with_held_out(specs: Sequence[SourceSpec], config: StageConfig) -> list[SourceSpec]:
    """The sources, each with the samples that it holds out; as they are when the stage evaluates nothing.

    Raises:
        ConfigError: a set is too small for `eval.rows`.
    """
    if config.eval is None:
        return list(specs)
    rows, capacity, damaged = config.eval.rows, config.data.pack.length, config.data.damaged
    return [replace(spec, held_out=hold_out(ShardSet(spec.folder, damaged=damaged), rows, capacity)) for spec in specs]


def stage_loader(
    config: StageConfig, *, rank: int = 0, world_size: int = 1, workers: int = 1, plan_cache: Path | None = None
) -> PackedLoader:
    """The loader of a stage over its sources, without what they hold out.

    Raises:
        ConfigError, DataError, MachineError: see `PackedLoader`.
    """
    return PackedLoader(
        with_held_out(stage_sources(config), config),
        pack_length=config.data.pack.length,
        rows_per_step=config.batch.rows,
        seed=config.seed,
        rank=rank,
        world_size=world_size,
        window=config.data.pack.window,
        lanes=config.data.pack.lanes,
        workers=workers,
        damaged=config.data.damaged,
        max_damaged=config.data.max_damaged,
        overlong=config.data.overlong,
        plan_cache=plan_cache,
    )


def planned_steps(config: StageConfig, loader: PackedLoader) -> int:
    """Optimizer steps of the whole run, from whichever duration the stage sets.

    Raises:
        ConfigError: less than one step.
    """
    duration = config.duration
    if duration.steps is not None:
        return duration.steps
    if duration.epochs is not None:
        epochs = duration.epochs
    else:
        assert duration.tokens is not None
        epochs = duration.tokens / loader.tokens_in_epoch
    steps = loader.rows_for(epochs) // config.batch.rows
    if steps < 1:
        raise ConfigError(
            f"duration gives less than one step of {config.batch.rows} rows",
            where=config.data.shards,
            mend="train longer, or lower batch.rows",
        )
    return steps


def open_sources(
    specs: Sequence[SourceSpec], model: Vocabulary | None = None, *, damaged: str = "error"
) -> list[ShardSet]:
    """The shard sets of a stage, each of which must mean the same by its ids.

    Args:
        specs: the sources.
        model: vocabulary of the model they are for; None compares them with each other.
        damaged: `skip` opens sets whose shards are damaged, too.

    Raises:
        DataError: sets that are missing, damaged, or of different vocabularies: all of them.
    """
    opened: list[ShardSet] = []
    failures: list[SlmError] = []
    for spec in specs:
        try:
            opened.append(ShardSet(spec.folder, damaged=damaged))
        except DataError as error:
            failures.append(error)
    with_units = [shards for shards in opened if shards.vocabulary.units is not None]
    for shards in opened:
        try:
            require_same_vocabulary(shards.vocabulary, model or (with_units or opened)[0].vocabulary, shards.location)
        except DataError as error:
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        told = "\n".join(f"  {error.where}: {error.what}" for error in failures)
        mends = list(dict.fromkeys(error.mend for error in failures if error.mend))
        raise DataError(f"{len(failures)} of the stage's shard sets can't be used:\n{told}", mend="; ".join(mends))
    return opened


def describe_mix(config: StageConfig, model: Vocabulary | None = None) -> dict[str, Any]:
    """What a run of this stage will read, computed from the indexes alone.

    Args:
        config: the stage.
        model: vocabulary of its base, if that is known already.

    Returns:
        Plain values: `steps`, `rows_per_step`, `pack_length`, `block` (rows in which ratios are exact),
        `rows`, `tokens`, `labels` (estimated from each set's share), `seed`, `epoch_steps`, and `sources`:
        for each source `name`, `folder`, `ratio`, `weight`, `rows`, `samples`, `tokens`, `share` (of all
        tokens), `labels`, `epochs`, `wraps`, `fill` (of its rows), `set_samples`, `set_tokens`.

    Raises:
        ConfigError: less than one step.
        DataError: shard sets that are missing, damaged, of different vocabularies, or too long.
    """
    specs = stage_sources(config)
    sets = open_sources(specs, model, damaged=config.data.damaged)
    loader = stage_loader(config, workers=0)
    try:
        steps = planned_steps(config, loader)
        rows = steps * config.batch.rows
        loader.load_state_dict({**loader.state_dict(), "next_row": rows})
        realised = loader.shares()
        weights = loader.mixture.weights
        epoch_steps = loader.steps_per_epoch
    finally:
        loader.close()
    tokens = sum(part["tokens"] for part in realised.values())
    sources = []
    for spec, shards, weight in zip(specs, sets, weights, strict=True):
        part = realised[spec.name]
        capacity = part["rows"] * config.data.pack.length
        sources.append(
            {
                "name": spec.name,
                "folder": spec.folder,
                "ratio": spec.ratio,
                "weight": weight,
                **part,
                "share": part["tokens"] / tokens,
                "labels": round(part["tokens"] * shards.supervised_tokens / shards.tokens),
                "fill": part["tokens"] / capacity if capacity else 0.0,
                "set_samples": shards.samples,
                "set_tokens": shards.tokens,
            }
        )
    return {
        "steps": steps,
        "rows_per_step": config.batch.rows,
        "pack_length": config.data.pack.length,
        "block": loader.mixture.block * loader.lanes,
        "seed": config.seed,
        "rows": rows,
        "tokens": tokens,
        "labels": sum(source["labels"] for source in sources),
        "epoch_steps": epoch_steps,
        "sources": sources,
    }
