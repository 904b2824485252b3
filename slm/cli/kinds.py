"""Which kind of configuration a YAML is, by the keys it has."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from slm.config.loader import dotted, load_config, read_layers
from slm.errors import ConfigError

SITE_KEYS = {"partition", "account", "qos", "nodes", "gpus_per_node", "setup", "env_file", "signal_s"}


def load_any(path: str, overrides: Sequence[str], overlays: Sequence[str]) -> tuple[str, list[str]]:
    """Validate a YAML of any kind.

    Returns:
        Its kind, and one line for each value: `key: value   # origin`.

    Raises:
        ConfigError: every problem; or no kind of configuration has such keys.
    """
    from slm.config.evaluation import EvalJob
    from slm.config.jobs import load_data_job
    from slm.config.site import SiteConfig
    from slm.config.stage import StageConfig
    from slm.config.zero import read_zero_json
    from slm.pipeline.planner import load_pipeline, make_plan

    layer = read_layers(path, overrides, overlays)
    needed = {"out": "runs/…"}
    if SITE_KEYS & set(layer.values):
        load_config(SiteConfig, path, overrides, overlays)
        kind = "site"
    elif "steps" in layer.values:
        make_plan(load_pipeline(path, overrides))
        kind = "pipeline"
    elif "stage" in layer.values:
        for key in ("model.base", "data.shards"):
            section, _, name = key.partition(".")
            if name not in (layer.values.get(section) or {}):
                needed[key] = "runs/…"
        stage = load_config(StageConfig, path, [*_missing(layer.values, needed), *overrides], overlays)
        read_zero_json(stage.zero)
        kind = "stage"
    elif "tasks" in layer.values:
        needed.update({"data": "runs/…", "model": "runs/…"})
        load_config(EvalJob, path, [*_missing(layer.values, needed), *overrides], overlays)
        kind = "evaluation"
    elif "job" in layer.values:
        load_data_job(path, [*_missing(layer.values, needed), *overrides], overlays)
        kind = "data job"
    else:
        raise ConfigError(
            "no kind of configuration has these keys",
            where=path,
            mend="a stage has stage:, a pipeline steps:, an evaluation tasks:, a data job job:",
        )
    return kind, [f"{dotted(key)}: {json.dumps(value)}   # {layer.where(key)}" for key, value in _leaves(layer.values)]


def _leaves(values: Any, key: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every value that is no mapping, with its key path."""
    if isinstance(values, dict) and (values or not key):
        for name, value in values.items():
            yield from _leaves(value, (*key, name))
    else:
        yield key, values


def _missing(values: dict, needed: dict[str, str]) -> list[str]:
    """Stand-ins for the folders that a run fills in."""
    return [f"{key}={value}" for key, value in needed.items() if key not in values]
