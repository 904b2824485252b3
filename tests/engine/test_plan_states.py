"""The planner's states are those of the real engine, to the byte, on two ranks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from engine.conftest import free_port, settings_of

from slm.config.loader import load_config
from slm.config.stage import StageConfig
from slm.config.zero import read_zero_json
from slm.errors import MachineError
from slm.plan.estimate import refuse_what_cannot_fit
from slm.plan.memory import setting_of, states
from slm.plan.shapes import stage_weights

HERE = Path(__file__).parent
NAMES = {
    "weights": "weights",
    "gradients, fp32": "gradients",
    "fp32 copy of what trains": "copy",
    "Adam's moments": "moments",
    "small weights kept whole": "whole",
    "vocabulary's own rows": "rows",
    "their gradients, fp32": "gradients",
    "their fp32 copy and moments": "rows' states",
    "anchor: the start of what trains": "start",
    "anchor: the start of the rows": "rows' start",
}
SPLIT = {"vocabulary_parallel": True}


@pytest.mark.parametrize(
    ("zero", "precision", "settings"),
    [
        ("cpu.json", "fp32", {"model": {"also_train": [r"model\.layers\.1\.mlp\.up_proj"]}}),
        ("zero3.json", "bf16", {}),
        ("zero3_offload.json", "bf16", {}),
        ("zero2.json", "fp32", {"mode": "full", "stage": "llm"}),
        ("cpu.json", "fp32", {"model": SPLIT, "anchor": {"weight": 0.1}}),
        ("zero3.json", "bf16", {"model": SPLIT, "anchor": {"weight": 0.1, "weights": {"matrix": 0.0}}}),
        ("zero3_offload.json", "bf16", {"anchor": {"weight": 0.1}}),
        ("zero2.json", "bf16", {"mode": "full", "stage": "llm", "model": SPLIT, "anchor": {"mode": "decoupled"}}),
    ],
)
def test_states_are_exact(zygote, tmp_path, pico_base, shards, zero, precision, settings):
    file = tmp_path / "stage.yaml"
    file.write_text(
        yaml.safe_dump(
            settings_of(tmp_path / "run", pico_base, shards, zero=zero, precision=precision, steps=1, **settings)
        )
    )
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    process = zygote.start([str(HERE / "measure_states.py"), str(file)], 2, env, HERE.parents[1], None)
    text, _ = process.communicate()
    assert process.returncode == 0, text
    config = load_config(StageConfig, file)
    shape, weights = stage_weights(config.model)
    setting = setting_of(config, read_zero_json(config.zero), world=2, hosts=1, gpu=False, layers=shape.layers)
    planned: dict[str, int] = {}
    for item in states(weights, setting):
        assert item.exact
        planned[NAMES[item.name]] = planned.get(NAMES[item.name], 0) + int(item.device + item.host)
    measured = [json.loads((tmp_path / f"run-{rank}.json").read_text()) for rank in (0, 1)]
    # ZeRO-2's gradients and those of split tables live from the first backward pass to the step.
    if "gradients" not in measured[0]:
        planned.pop("gradients")
    elif "rows" in planned:
        planned["gradients"] -= next(int(i.device) for i in states(weights, setting) if i.name.startswith("their grad"))
    found = {name: max(rank[name] for rank in measured) for name in measured[0]}
    assert {name: size for name, size in found.items() if size} == planned


def test_a_launch_that_cannot_fit_is_refused(tmp_path, pico_base, shards):
    file = tmp_path / "stage.yaml"
    file.write_text(yaml.safe_dump(settings_of(tmp_path / "run", pico_base, shards)))
    config = load_config(StageConfig, file)
    refuse_what_cannot_fit(config, world=2, hosts=1, device_bytes=None, host_bytes=1e9)
    refuse_what_cannot_fit(config, world=2, hosts=1, device_bytes=1e9, host_bytes=0.0)  # nothing is offloaded
    with pytest.raises(MachineError, match=r"optimizer states are .* its share of the host's free memory is 0\.0 GB"):
        refuse_what_cannot_fit(config, world=2, hosts=1, device_bytes=None, host_bytes=1e5)
    with pytest.raises(MachineError, match=r"optimizer states are .* GB, it has 0\.0 GB") as failure:
        refuse_what_cannot_fit(config, world=2, hosts=1, device_bytes=1e5, host_bytes=1e9)
    assert "slm plan" in failure.value.mend


def test_offloading_to_a_host_without_room_is_refused(tmp_path, pico_base, shards):
    file = tmp_path / "stage.yaml"
    zero = {"zero": str(HERE.parents[1] / "ds_configs/zero/zero3_offload.json"), "precision": "bf16"}
    file.write_text(yaml.safe_dump({**settings_of(tmp_path / "run", pico_base, shards), **zero}))
    config = load_config(StageConfig, file)
    refuse_what_cannot_fit(config, world=2, hosts=1, device_bytes=1e9, host_bytes=1e9)
    with pytest.raises(MachineError, match="offloaded weights and optimizer states are"):
        refuse_what_cannot_fit(config, world=2, hosts=1, device_bytes=1e9, host_bytes=1e5)
