"""The engine's pure parts: schedule, batches, the joining of configurations."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from slm.config.loader import from_mapping
from slm.config.stage import ScheduleConfig, StageConfig
from slm.config.zero import read_zero_json
from slm.data.loader import Row
from slm.engine.batch import to_micro_batch
from slm.engine.build import split_vocabulary_rows
from slm.engine.deepspeed_config import accumulation, joined
from slm.engine.distributed import Place, _all_leave, find_place, process_group, rank_seed, ranks_here
from slm.engine.fit import require_fit
from slm.engine.loop import loss_weights
from slm.engine.operators import prepare_operators
from slm.engine.schedule import rate_factor
from slm.engine.tables import ParallelHead
from slm.errors import ConfigError, DataError, InterruptedRunError, LostRankError, MachineError, PreemptedError


def config(**changes):
    plain = {"out": "o", "stage": "asr", "model": {"base": "b"}, "data": {"shards": "s"}, "duration": {"steps": 3}}
    return from_mapping(StageConfig, plain | changes, "test")


def row(ids, supervised, lengths, source="a"):
    return Row(source=source, ids=np.array(ids, np.int32), supervised=np.array(supervised, bool), lengths=lengths)


def test_labels_are_the_next_tokens_of_the_same_document():
    batch = to_micro_batch([row([5, 6, 7, 8, 9], [0, 1, 1, 1, 1], [3, 2]), row([1, 2, 3], [0, 0, 1], [3], "b")])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 1, 2, 3]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
    assert batch.where.tolist() == [0, 1, 3, 6]  # 8 starts a document: nothing predicts it
    assert batch.labels.tolist() == [6, 7, 9, 3]
    assert (batch.rows, batch.sources, batch.tokens) == ([3, 1], ["a", "b"], 8)


def test_a_row_whose_documents_do_not_add_up():
    with pytest.raises(ValueError, match="documents hold 2 tokens, rows hold 3"):
        to_micro_batch([row([1, 2, 3], [0, 1, 1], [2])])


def test_cosine_rises_peaks_and_falls():
    schedule = ScheduleConfig(kind="cosine", warmup=0.1, floor=0.1)
    factors = [rate_factor(step, 100, schedule) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == 1.0 and factors[-1] == pytest.approx(0.1)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    middle = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 40 / 89))
    assert factors[50] == pytest.approx(middle)


@pytest.mark.parametrize(("kind", "last"), [("linear", 0.0), ("constant", 1.0)])
def test_other_schedules(kind, last):
    assert rate_factor(9, 10, ScheduleConfig(kind=kind, warmup=0.0)) == last


def test_rows_that_ranks_cannot_share():
    assert accumulation(config(batch={"rows": 8, "micro_rows": 2}), 2) == 2
    with pytest.raises(ConfigError, match="can't be shared"):
        accumulation(config(batch={"rows": 8}), 3)


def test_a_setting_in_both_places_names_both(tmp_path):
    path = tmp_path / "z.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}, "optimizer": {}, "activation_checkpointing": {}}))
    with pytest.raises(ConfigError) as failure:
        read_zero_json(str(path))
    assert f"{path}: optimizer: is set by optim of the stage YAML" in failure.value.what
    assert f"{path}: activation_checkpointing: is set by model.activation_checkpointing" in failure.value.what


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_bad_deepspeed_json(tmp_path, text):
    (tmp_path / "z.json").write_text(text)
    with pytest.raises(ConfigError):
        read_zero_json(str(tmp_path / "z.json"))
    with pytest.raises(ConfigError, match="file not found"):
        read_zero_json(str(tmp_path / "gone.json"))


def test_the_joined_configuration_accumulates_in_fp32():
    values = joined(config(), 2, bf16=True)
    assert values["data_types"] == {"grad_accum_dtype": "fp32"}
    assert values["gradient_accumulation_steps"] == 4 and values["bf16"] == {"enabled": True}


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("x", "2"), ("-1", "1")])
def test_stale_variables_are_explained(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(MachineError, match="RANK"):
        find_place()


def test_place_without_a_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    place = find_place()
    assert (place.rank, place.world_size, place.is_main) == (0, 1, True)
    assert place.device.type == "cpu"  # the tests set DS_ACCELERATOR=cpu


@pytest.mark.parametrize(
    ("model", "offload", "expected"),
    [
        ({}, False, False),
        ({"vocabulary_parallel": True}, False, True),
        ({"vocabulary_parallel": "auto"}, False, True),
        ({"vocabulary_parallel": "auto"}, True, False),
        ({"vocabulary_parallel": "auto", "vocabulary": "new_rows"}, False, False),
    ],
)
def test_when_the_vocabulary_is_split_over_the_ranks(model, offload, expected):
    ds_config = {"zero_optimization": {"stage": 3, **({"offload_optimizer": {"device": "cpu"}} if offload else {})}}
    assert split_vocabulary_rows(config(model={"base": "b", **model}), ds_config) is expected


def test_split_tables_are_not_offloaded():
    ds_config = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
    with pytest.raises(ConfigError, match="tables are not offloaded"):
        split_vocabulary_rows(config(model={"base": "b", "vocabulary_parallel": True}), ds_config)
    with pytest.raises(ConfigError, match="train whole"):
        config(model={"base": "b", "vocabulary_parallel": True, "vocabulary": "frozen"})


def test_sources_have_their_weight_in_the_loss():
    stage = config(data={"shards": "s", "loss_weight": 2.0}, replay=[{"shards": "r", "ratio": 0.1, "loss_weight": 0.5}])
    assert loss_weights(stage, ["s", "r"]) == {"s": 2.0, "r": 0.5}
    assert stage.identity() != config().identity()


def test_a_rank_without_a_gpu_is_refused_and_a_cpu_accelerator_takes_none(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert find_place().device.type == "cpu"
    monkeypatch.delenv("DS_ACCELERATOR")
    with pytest.raises(MachineError, match="number 1 of this host, which has 1 GPUs"):
        find_place()


def test_ranks_of_this_host_are_what_the_launcher_says(monkeypatch):
    place = Place(0, 8, 0, torch.device("cpu"))
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert ranks_here(place) == 8
    monkeypatch.setenv("LOCAL_SIZE", "4")
    assert ranks_here(place) == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert ranks_here(place) == 2


def test_the_share_of_a_host_is_by_its_ranks_not_by_the_gpus_that_one_rank_sees(monkeypatch):
    asked = []
    monkeypatch.setattr("slm.engine.fit.refuse_what_cannot_fit", lambda _, **facts: asked.append(facts))
    monkeypatch.setattr("slm.engine.fit.available_memory", lambda: 800.0)
    monkeypatch.setattr("slm.engine.fit.gpu_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(total_memory=80.0))
    place = Place(0, 16, 0, torch.device("cuda", 0))
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    require_fit(config(), place)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    require_fit(config(), place)
    assert [(facts["hosts"], facts["host_bytes"]) for facts in asked] == [(16, 800.0), (2, 100.0)]


def test_nvme_offload_on_a_gpu_names_the_toolkit_that_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    nvme = {"zero_optimization": {"offload_optimizer": {"device": "nvme", "nvme_path": str(tmp_path)}}}
    with pytest.raises(MachineError, match="CUDA toolkit"):
        prepare_operators(nvme, Place(0, 1, 0, torch.device("cuda", 0)))


@pytest.mark.parametrize(
    ("error", "on_cpu", "on_gpu"),
    [
        (PreemptedError("asked to stop"), True, True),
        (InterruptedRunError("interrupted"), True, True),
        (LostRankError("rank 1 died"), False, False),
        (DataError("a shard is damaged"), True, False),
        (RuntimeError("CUDA out of memory"), True, False),
    ],
)
def test_a_process_group_is_taken_apart_only_where_that_waits_for_nobody(error, on_cpu, on_gpu):
    assert (_all_leave(error, True), _all_leave(error, False)) == (on_cpu, on_gpu)


def test_ranks_that_cannot_be_connected_are_told_so(monkeypatch):
    def refuse(**_):
        raise torch.distributed.DistBackendError("NCCL error: Duplicate GPU detected\nmore")

    monkeypatch.setattr("deepspeed.init_distributed", refuse)
    with (
        pytest.raises(MachineError, match="Duplicate GPU detected"),
        process_group(Place(0, 2, 0, torch.device("cuda", 0))),
    ):
        pytest.fail("there is no group")


def test_who_waits_for_a_connection_for_ever_says_so_and_ends(tmp_path):
    script = """
import sys, time
from slm.engine.distributed import _ending_if_stuck
with _ending_if_stuck(5, None):
    pass
time.sleep(0.1)
with _ending_if_stuck(0.2, lambda error: open(sys.argv[1], "w").write(error.what)):
    time.sleep(60)
"""
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path / "told")], capture_output=True, text=True)
    assert ended.returncode == MachineError.exit_code and "the ranks are not connected after 0 minutes" in ended.stderr
    assert (tmp_path / "told").read_text() in ended.stderr


def test_ranks_draw_numbers_of_their_own():
    assert len({rank_seed(0, step, rank) for step in (0, 5) for rank in range(4)}) == 8


def test_gradients_of_ranks_are_summed_in_fp32_unless_the_json_says_otherwise(tmp_path):
    zero = {"zero_optimization": {"stage": 2}}
    (tmp_path / "plain.json").write_text(json.dumps(zero))
    (tmp_path / "own.json").write_text(json.dumps({**zero, "communication_data_type": "bf16"}))
    stages = [config(zero=str(tmp_path / name)) for name in ("plain.json", "own.json")]
    assert [joined(stage, 1, bf16=True)["communication_data_type"] for stage in stages] == ["fp32", "bf16"]
    assert "communication_data_type" not in joined(stages[0], 1, bf16=False)


def test_zero_1_in_bf16_is_refused(tmp_path):
    (tmp_path / "zero1.json").write_text(json.dumps({"zero_optimization": {"stage": 1}}))
    stage = config(zero=str(tmp_path / "zero1.json"))
    assert joined(stage, 1, bf16=False)["zero_optimization"]["stage"] == 1
    with pytest.raises(ConfigError, match="ZeRO-1 in bf16") as caught:
        joined(stage, 1, bf16=True)
    assert caught.value.where.endswith("zero1.json")


def test_rounds_of_split_tables_grow_with_the_ranks_on_gpus():
    def chunk(ranks: int, device: str) -> int:
        table = SimpleNamespace(place=Place(0, ranks, 0, torch.device(device)))
        return ParallelHead(table).suitable_chunk(torch.device(device))

    assert [chunk(ranks, "cuda") for ranks in (1, 8, 64)] == [2048, 2048, 16384]
    assert [chunk(ranks, "cpu") for ranks in (1, 64)] == [128, 128]
