"""The plan: what it says of known models, its advice, its table, the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from slm.cli.app import main
from slm.config.loader import from_mapping
from slm.config.stage import StageConfig
from slm.errors import CheckpointError, ConfigError
from slm.model.load import load_base
from slm.plan.devices import parse_gpus
from slm.plan.estimate import Machine, make_plan
from slm.plan.memory import Setting, activations, part, trained_part
from slm.plan.shapes import ModelShape, Weight
from slm.plan.table import duration, show, size

ROOT = Path(__file__).resolve().parents[2]
LLAMA_8B = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 138256,
}


@pytest.fixture
def base(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    return tmp_path


def stage(base, **changes):
    plain = {
        "out": "o",
        "stage": "asr",
        "model": {"base": str(base), "activation_checkpointing": "all", **changes.pop("model", {})},
        "data": {"shards": "s", "pack": {"length": 4096}},
        "batch": {"rows": 48},
        "duration": {"steps": 1000},
        "zero": str(ROOT / "ds_configs" / "zero" / changes.pop("zero", "zero3.json")),
    }
    return from_mapping(StageConfig, plain | changes, "test")


def plan(base, gpus="8x80GB", hosts=1, **changes):
    host_gb = changes.pop("host_gb", None)
    return make_plan(stage(base, **changes), Machine(hosts, *parse_gpus(gpus), host_gb=host_gb))


def exact(found):
    return sum(item.device + item.host for item in found.items if item.exact)


def test_the_states_of_8b_with_lora_and_whole_tables_are_35_gb_in_all(base):
    one, eight = plan(base, "1x80GB"), plan(base, "8x80GB")
    assert one.trained == 2 * 138256 * 4096 + 37_748_736
    assert exact(one) == pytest.approx(16.3e9 + one.trained * 16, rel=1e-3)
    whole = next(item.device for item in eight.items if "whole" in item.name)
    assert exact(eight) - whole == pytest.approx(exact(one) / 8, rel=1e-4)
    assert eight.fits and one.fits


def test_parts_are_padded():
    assert part(7, 4) == 2
    zero = {"zero_optimization": {"stage": 2}}
    weights = [Weight("a", (7,), True), Weight("b", (3, 3), True), Weight("c", (5, 5), False)]
    setting = Setting(world=4, hosts=1, number=2, zero=zero, tokens=1, recomputed=0.0, chunk=1)
    assert trained_part(weights, setting) == (8 + 16) // 4
    assert trained_part(weights, setting.with_zero(stage=3)) == 2 + 3


def test_what_does_not_fit_is_said_with_what_would(base):
    found = plan(base, "1x40GB")
    assert not found.fits and found.advice
    for text in found.advice:
        if text.startswith("optimizer on the CPU"):
            break
    else:
        pytest.fail(f"offloading the optimizer suffices: {found.advice}")
    tight = plan(base, "1x24GB")
    assert tight.advice[0].startswith("all of these together")
    assert plan(base, "1x2GB").advice == ["more devices or larger ones: nothing that can be set makes it fit"]
    assert not plan(base, "8x80GB", zero="zero3_offload.json", host_gb=16).fits


def test_offload_moves_states_and_loses_none(base):
    here, there = plan(base), plan(base, zero="zero3_offload.json")
    states = [sum(item.host for item in found.items if item.exact) for found in (here, there)]
    assert states[0] == 0 and states[1] > 0.9 * exact(here)
    nvme = plan(base, zero="zero3_nvme.json")
    assert sum(item.disk for item in nvme.items) > 0.8 * states[1] - sum(i.host for i in nvme.items if i.exact)
    buffers = next(item.host for item in nvme.items if "buffers between" in item.name)
    tables = 2 * 138256 * 4096 // 8  # the largest group of a rank
    assert buffers == 5 * 600_000_000 * 2 + 4 * tables * 4


def test_an_anchor_and_split_tables_have_their_lines(base):
    plain = plan(base)
    anchored = plan(base, anchor={"weight": 0.1, "weights": {"matrix": 0.0}})
    rows = 2 * 138256 // 8 * 4096
    assert exact(anchored) - exact(plain) == rows * 2
    split = plan(base, model={"vocabulary_parallel": True}, anchor={"weight": 0.1, "weights": {"matrix": 0.0}})
    lines = {item.name: item.device for item in split.items if item.exact}
    assert lines["vocabulary's own rows"] == lines["anchor: the start of the rows"] == rows * 2
    assert lines["their fp32 copy and moments"] == rows * 12 and exact(split) == exact(anchored)


def test_gradients_are_summed_in_fp32_unless_the_json_says_otherwise(base):
    lines = {item.name: item.device for item in plan(base, model={"vocabulary_parallel": False}).items}
    bucket = json.loads((ROOT / "ds_configs/zero/zero3.json").read_text())["zero_optimization"]["reduce_bucket_size"]
    assert lines["communication buckets"] == 2 * bucket * 4
    table = 138256 * 4096
    alone = table * (2 + 4) if table > bucket else table * 2  # too large for a bucket: converted by itself
    assert lines["largest gradient before it is shared"] == alone
    assert lines["logits, 2,048 at a time"] == 2048 * 138256 * 6


def test_split_tables_meet_positions_of_all_ranks(base):
    sixteen = plan(base, "8x80GB", hosts=2, model={"vocabulary_parallel": True})
    lines = {item.name: item.device for item in sixteen.items}
    assert lines["logits, 4,096 at a time"] == 4096 * 138256 * 6 / 16


def test_two_hosts_are_bound_by_the_network(base):
    one, two = plan(base, "8xH100"), plan(base, "8xH100", hosts=2)
    assert one.traffic_s < one.compute_s and two.traffic_s > two.compute_s
    assert any("communication" in text for text in two.advice)
    assert two.accumulation == one.accumulation // 2


def test_checkpointing_saves_memory_and_costs_time(base):
    kept, again = plan(base, model={"activation_checkpointing": "none"}), plan(base)
    assert kept.device_bytes > again.device_bytes and kept.compute_s < again.compute_s
    some = plan(base, model={"activation_checkpointing": {"every": 2}})
    assert again.device_bytes < some.device_bytes < kept.device_bytes


def test_activations_are_near_what_autograd_saves(pico_base):
    """Bytes that autograd keeps, counted by its own hooks."""
    lm = load_base(pico_base, attention="sdpa").train()
    tokens, kept, own = 256, {}, {p.untyped_storage().data_ptr() for p in lm.parameters()}

    def keep(tensor):
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            kept[place] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        lm.model(input_ids=torch.arange(tokens)[None] % 200, use_cache=False).last_hidden_state.sum()
    shape = ModelShape.from_config(lm.config.to_dict())
    zero = {"zero_optimization": {"stage": 3}}
    setting = Setting(world=1, hosts=1, number=4, zero=zero, tokens=tokens, recomputed=0.0, chunk=1)
    assert activations(shape, setting) == pytest.approx(sum(kept.values()), rel=0.3)


def test_the_table_is_whole_on_80_columns(base):
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show(plan(base), "asr.yaml", console)
    text = console.export_text()
    for line in ("weights", "Adam's moments", "activations", "together", "it fits", "tokens/s", "disk"):
        assert line in text
    assert max(map(len, text.splitlines())) <= 80


def test_sizes_and_times_are_readable():
    assert [size(n) for n in (0, 512, 4.1e6, 16.24e9, 2.3e12)] == ["–", "512 B", "4.1 MB", "16.2 GB", "2.3 TB"]
    assert [duration(s) for s in (0.0123, 5, 600, 36000)] == ["12 ms", "5.0 s", "10 min", "10.0 h"]


def test_the_command(base, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    given = ["plan", "ds_configs/stages/asr.yaml", f"model.base={base}"]
    assert main([*given, "--gpus", "8x80GB"]) == 0
    assert main([*given, "--gpus", "1x24GB"]) == 4
    assert "it does not fit" in capsys.readouterr().out
    assert main(given) == 2
    assert main(["plan", "ds_configs/stages/asr.yaml", "model.base=nowhere", "--gpus", "8x80GB"]) == 6
    assert "no model here" in capsys.readouterr().err


def test_rows_that_the_ranks_cannot_share(base):
    with pytest.raises(ConfigError, match="7 ranks"):
        plan(base, "7x80GB")
    (base / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a Llama"):
        plan(base)


def test_it_needs_no_torch():
    code = (
        "import sys, slm.plan.estimate, slm.plan.table; print(sorted({'torch', 'deepspeed', 'numpy'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
