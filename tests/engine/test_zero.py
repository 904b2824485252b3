"""Every DeepSpeed JSON that is shipped trains the same model; what can't run here says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from slm.config.zero import OFFLOAD, REMOVED, ZERO, read_zero_json, with_places
from slm.engine.distributed import Place
from slm.engine.operators import clear_stale_locks, prepare_operators
from slm.errors import ConfigError, MachineError

ROOT = Path(__file__).resolve().parents[2]
STEPS = {"steps": 3, "every": 3, "seed": 1}


def adapter(outcome):
    assert outcome.code == 0, outcome.text
    return load_file(outcome.out / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def plain(train, tmp_path_factory):
    return adapter(train(tmp_path_factory.mktemp("zero") / "cpu", ranks=2, **STEPS))


def differing(tensors, plain):
    assert tensors.keys() == plain.keys()
    return [name for name, tensor in plain.items() if not torch.allclose(tensors[name], tensor, rtol=1e-4, atol=1e-6)]


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero3_offload"])
def test_a_shipped_json_trains_to_the_same_weights(train, tmp_path, plain, name):
    assert differing(adapter(train(tmp_path / "asr", zero=f"{name}.json", **STEPS)), plain) == []


def test_nvme_offload_without_a_compiler_says_what_is_missing(train, tmp_path, monkeypatch):
    monkeypatch.setenv("SLM_NVME", str(tmp_path / "disk"))
    outcome = train(tmp_path / "asr", zero="zero3_nvme.json", ranks=1, **STEPS)
    assert outcome.code == 4 and "Traceback" not in outcome.text
    assert "NVMe offload needs" in outcome.text and outcome.status["exit_code"] == 4


def test_an_unset_disk_is_named(monkeypatch):
    monkeypatch.delenv("SLM_NVME", raising=False)
    path = str(ROOT / "ds_configs/zero/zero3_nvme.json")
    with pytest.raises(ConfigError, match=r"nvme_path: \$SLM_NVME") as failure:
        with_places(read_zero_json(path), path)
    assert failure.value.mend.startswith("export SLM_NVME=")


@pytest.mark.parametrize("option", ["hpz", "no leaf module", "optimizer only"])
def test_options(train, tmp_path, plain, option):
    values = json.loads((ROOT / "ds_configs/zero/cpu.json").read_text())
    zero = values["zero_optimization"]
    if option == "hpz":
        zero["zero_hpz_partition_size"] = 2
    elif option == "no leaf module":
        del zero["leaf_module"]
    else:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    file = tmp_path / "z.json"
    file.write_text(json.dumps(values))
    assert differing(adapter(train(tmp_path / "asr", zero=str(file), **STEPS)), plain) == []


@pytest.mark.parametrize("layers", ["all", {"every": 2}])
def test_activation_checkpointing_changes_memory_and_nothing_else(train, tmp_path, plain, layers):
    assert differing(adapter(train(tmp_path / "asr", activation_checkpointing=layers, **STEPS)), plain) == []


def test_only_every_kth_layer_is_recomputed(pico_base):
    from slm.config.loader import from_mapping
    from slm.config.stage import StageConfig
    from slm.engine.build import _checkpoint_activations
    from slm.model.load import load_base

    values = {"out": "o", "stage": "asr", "data": {"shards": "s"}, "duration": {"steps": 1}}
    for wanted, expected in (("all", [True, True]), ({"every": 2}, [True, False]), ("none", [False, False])):
        model = {"base": "b", "activation_checkpointing": wanted}
        lm = load_base(pico_base).train()
        _checkpoint_activations(lm, from_mapping(StageConfig, {**values, "model": model}, "test"))
        calls = [[], []]
        for layer, seen in zip(lm.model.layers, calls, strict=True):
            layer.self_attn.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        lm(torch.arange(5, 9)[None], use_cache=False).logits.sum().backward()
        assert [len(seen) == 2 for seen in calls] == expected, wanted


def test_the_known_keys_are_deepspeeds():
    from deepspeed.runtime import config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    fields = DeepSpeedZeroConfig.model_fields.items()
    current = {f.alias or n for n, f in fields if not (f.json_schema_extra or {}).get("deprecated")}
    assert current == ZERO
    assert set(DeepSpeedZeroOffloadParamConfig.model_fields) == OFFLOAD["offload_param"]
    assert set(DeepSpeedZeroOffloadOptimizerConfig.model_fields) == OFFLOAD["offload_optimizer"]
    assert {*config._REMOVED_TOP_LEVEL_CONFIG_KEYS, *config._REMOVED_ZERO_CONFIG_KEYS} == REMOVED


def test_every_bad_key_is_named_at_once(tmp_path):
    path = tmp_path / "z.json"
    zero = {"stage": 3, "reduce_bucket_sise": 1, "mics_shard_size": 2, "offload_param": {"devise": "cpu"}}
    top = {"nebula": {}, "zero_optimisation": {}, "bf16": {}, "data_types": {}, "zero_optimization": zero}
    path.write_text(json.dumps(top))
    with pytest.raises(ConfigError) as failure:
        read_zero_json(str(path))
    assert failure.value.what.splitlines() == [
        f"{path}: nebula: was removed from DeepSpeed; it would do nothing",
        f"{path}: zero_optimisation: unknown key; did you mean 'zero_optimization'?",
        f"{path}: bf16: is set by precision of the stage YAML",
        f"{path}: data_types: is not for setting: gradients always accumulate in fp32",
        f"{path}: zero_optimization.reduce_bucket_sise: unknown key; did you mean 'reduce_bucket_size'?",
        f"{path}: zero_optimization.mics_shard_size: was removed from DeepSpeed; it would do nothing",
        f"{path}: zero_optimization.offload_param.devise: unknown key; did you mean 'device'?",
    ]


def test_a_lock_without_a_builder_is_cleared_and_one_with_is_not(tmp_path, caplog):
    stale, live = (tmp_path / "py" / name / "lock" for name in ("cpu_adam", "async_io"))
    for lock in (stale, live):
        lock.parent.mkdir(parents=True)
    stale.touch()
    code = "import os,sys,time; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print(1, flush=True); time.sleep(60)"
    builder = subprocess.Popen([sys.executable, "-c", code, str(live)], stdout=subprocess.PIPE)
    try:
        builder.stdout.readline()
        with caplog.at_level("INFO"):
            assert clear_stale_locks(tmp_path) == [stale]
        assert live.exists() and not stale.exists()
        assert "left by a run that was killed while compiling" in caplog.text
    finally:
        builder.kill()
        builder.wait()
    assert clear_stale_locks(tmp_path) == [live]


def test_a_process_that_ends_while_open_files_are_listed_does_no_harm(tmp_path, monkeypatch):
    (tmp_path / "op").mkdir()
    lock = tmp_path / "op" / "lock"
    lock.touch()
    gone = f"/proc/{os.getpid()}/fd"

    def ended(look):
        def found(path, *arguments, **options):
            if str(path) == gone:
                raise ProcessLookupError(3, "No such process", gone)
            return look(path, *arguments, **options)

        return found

    for name in ("stat", "lstat", "scandir"):
        monkeypatch.setattr(os, name, ended(getattr(os, name)))
    assert clear_stale_locks(tmp_path) == [lock]


def test_a_lock_on_a_network_disk_is_given_time(tmp_path, monkeypatch):
    lock = tmp_path / "op" / "lock"
    lock.parent.mkdir()
    lock.touch()
    monkeypatch.setattr("slm.engine.operators._on_network", lambda path: True)
    assert clear_stale_locks(tmp_path) == []
    os.utime(lock, (time.time() - 700, time.time() - 700))
    assert clear_stale_locks(tmp_path) == [lock]


def test_without_a_compiler_nvme_offload_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    zero = {"zero_optimization": {"offload_param": {"device": "nvme", "nvme_path": str(tmp_path / "disk")}}}
    with pytest.raises(MachineError, match="C\\+\\+ compiler, and no-such-compiler") as failure:
        prepare_operators(zero, Place(0, 1, 0, torch.device("cpu")))
    assert "zero3_offload.json" in failure.value.mend and not (tmp_path / "disk").exists()
    prepare_operators({"zero_optimization": {"stage": 3}}, Place(0, 1, 0, torch.device("cpu")))
