"""SLURM's and MPI's variables as ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.cluster.ranks import adopt_ranks, expand_counts, expand_nodelist, port_of, rank_variables
from slm.errors import MachineError

ROOT = Path(__file__).parents[2]


def slurm(rank, **changed):
    """Task `rank` of a step of 6 on 3 nodes, two on each."""
    return {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank % 2),
        "SLURM_NODEID": str(rank // 2),
        "SLURM_NTASKS": "6",
        "SLURM_STEP_NUM_TASKS": "6",
        "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
        "SLURM_STEP_NODELIST": "gpu[07-09]",
        **changed,
    }


def test_a_step_of_srun_is_mapped():
    found = rank_variables(slurm(3))
    assert found == {
        "RANK": "3",
        "WORLD_SIZE": "6",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": str(port_of("77.0.0")),
    }


def test_all_ranks_agree_on_the_address_and_a_requeued_job_draws_another_port():
    places = [rank_variables(slurm(rank)) for rank in range(6)]
    assert len({(place["MASTER_ADDR"], place["MASTER_PORT"]) for place in places}) == 1
    assert rank_variables(slurm(0, SLURM_RESTART_COUNT="1"))["MASTER_PORT"] != places[0]["MASTER_PORT"]
    assert 15000 <= int(places[0]["MASTER_PORT"]) < 30000


def test_nodes_with_different_counts():
    uneven = {"SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_STEP_NUM_TASKS": "5"}
    assert rank_variables(slurm(4, SLURM_NODEID="2", SLURM_LOCALID="0", **uneven))["LOCAL_WORLD_SIZE"] == "1"


def test_a_batch_script_and_a_shell_in_an_allocation_are_alone():
    batch = slurm(0)
    del batch["SLURM_STEP_ID"]
    assert rank_variables(batch) == {} == rank_variables({})


def test_one_device_for_each_task_is_device_0():
    assert rank_variables(slurm(3, CUDA_VISIBLE_DEVICES="5"))["LOCAL_RANK"] == "0"
    assert rank_variables(slurm(3, CUDA_VISIBLE_DEVICES="4,5"))["LOCAL_RANK"] == "1"


def test_a_launchers_own_rank_prevails():
    assert rank_variables(slurm(3, RANK="0", WORLD_SIZE="2")) == {}


def test_an_address_that_is_set_is_kept_but_a_stale_port_alone_is_not():
    kept = rank_variables(slurm(3, MASTER_ADDR="10.0.0.1", MASTER_PORT="29500"))
    assert "MASTER_ADDR" not in kept and "MASTER_PORT" not in kept
    assert rank_variables(slurm(3, MASTER_PORT="29500"))["MASTER_PORT"] == str(port_of("77.0.0"))


@pytest.mark.parametrize(
    ("rank", "size", "local_rank", "local_size"),
    [
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
        ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
        ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ],
)
def test_mpi_is_mapped_and_prevails_over_slurm(rank, size, local_rank, local_size):
    environment = {rank: "1", size: "2", local_rank: "1", local_size: "2"}
    found = rank_variables({**slurm(5), **environment})
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"], found["MASTER_ADDR"]) == (
        "1",
        "2",
        "1",
        "127.0.0.1",
    )
    one_gpu_each = rank_variables({**environment, "CUDA_VISIBLE_DEVICES": "5"})
    assert one_gpu_each["LOCAL_RANK"] == one_gpu_each[local_rank] == "0"  # DeepSpeed compares Open MPI's with ours
    two_hosts = {rank: "1", size: "2", local_rank: "0", local_size: "1"}
    with pytest.raises(MachineError, match="says nothing of where rank 0 is"):
        rank_variables(two_hosts)
    assert rank_variables({**two_hosts, "SLURM_JOB_NODELIST": "a[3,5]"})["MASTER_ADDR"] == "a3"
    assert rank_variables({**two_hosts, "MASTER_ADDR": "a", "MASTER_PORT": "1"})["RANK"] == "1"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        (slurm(6), "rank 6 of 6"),
        (slurm(0, SLURM_LOCALID="2"), "2 of 2 on this host"),
        (slurm(0, SLURM_PROCID="x"), "SLURM_PROCID is 'x', not a number"),
        (slurm(0, SLURM_STEP_NODELIST="n[1-"), "not a node list"),
        (slurm(0, SLURM_STEP_NODELIST="$(id)"), "not a node list"),
        (slurm(0, SLURM_STEP_TASKS_PER_NODE="2(y3)"), "not a list of tasks per node"),
        (slurm(0, SLURM_STEP_NODELIST=""), "names no nodes"),
    ],
)
def test_contradictions_are_errors(environment, message):
    with pytest.raises(MachineError) as caught:
        rank_variables(environment)
    assert message in caught.value.what


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("n1", ["n1"]),
        ("n[01-03,07],gpu5", ["n01", "n02", "n03", "n07", "gpu5"]),
        ("r[1-2]n[09-10]-ib", ["r1n09-ib", "r1n10-ib", "r2n09-ib", "r2n10-ib"]),
    ],
)
def test_node_lists(text, names):
    assert expand_nodelist(text) == names


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), max_size=5))
def test_counts_per_node(runs):
    text = ",".join(f"{tasks}(x{nodes})" if nodes > 1 else str(tasks) for tasks, nodes in runs)
    assert expand_counts(text) == [tasks for tasks, nodes in runs for _ in range(nodes)]


def test_the_interface_towards_another_host_is_set_unless_it_is():
    alone = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    adopt_ranks(alone)
    assert "GLOO_SOCKET_IFNAME" not in alone
    chosen = {**alone, "MASTER_ADDR": "192.0.2.1", "GLOO_SOCKET_IFNAME": "x", "NCCL_SOCKET_IFNAME": "y"}
    before = dict(chosen)
    adopt_ranks(chosen)
    assert chosen == before


def test_every_rank_takes_the_interface_towards_rank_0(monkeypatch):
    far = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "n1", "MASTER_PORT": "1"}
    monkeypatch.setattr("slm.cluster.ranks.outward_interface", lambda: "out0")
    for towards, chosen in (("eth7", "eth7"), ("lo", "out0"), ("", None)):
        monkeypatch.setattr("slm.cluster.ranks.interface_towards", lambda host, found=towards: found)
        environment = dict(far)
        adopt_ranks(environment)
        assert environment.get("GLOO_SOCKET_IFNAME") == chosen == environment.get("NCCL_SOCKET_IFNAME")


def test_the_entry_refuses_contradictions_and_accepts_local_rank(tmp_path):
    argv = [sys.executable, "launcher/train.py", "--local_rank=0", "--config", "ds_configs/tiny/asr.yaml"]
    values = ["out=o", "model.base=b", "data.shards=s", "--print-config"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "RANK", "WORLD"))}
    good = subprocess.run(argv + values, cwd=ROOT, env={**clean, **slurm(1)}, capture_output=True, text=True)
    assert good.returncode == 0 and "stage: asr" in good.stdout, good.stderr
    bad = subprocess.run(argv + values, cwd=ROOT, env={**clean, **slurm(6)}, capture_output=True, text=True)
    assert bad.returncode == 4 and "error: rank 6 of 6" in bad.stderr and "Traceback" not in bad.stderr


@pytest.mark.parametrize("argv", [["launcher/train.py"], ["slm/__main__.py", "train"]])
def test_ranks_are_adopted_before_the_configuration_is_read(argv):
    """All ranks meet the same mistake and rank 0 alone speaks: the mapping has to come first."""
    program = (
        f"import os, runpy, sys; sys.argv = {[*argv, '--config', 'nowhere.yaml']!r}; sys.path.insert(0, '.')\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n    print(os.environ['RANK'], os.environ['WORLD_SIZE'])\n"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "RANK", "WORLD"))}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**clean, **slurm(1)}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["1", "6"], done.stderr
