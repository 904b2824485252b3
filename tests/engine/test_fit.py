from __future__ import annotations

import pytest

from slm.engine.fit import available_memory

GIB = 2**30


@pytest.fixture
def machine(tmp_path):
    """`machine(cgroup, files)`: `/proc` and `/sys/fs/cgroup` of a process, with 64 GiB free on the host."""

    def make(cgroup: str, files: dict[str, str]):
        proc, groups = tmp_path / "proc", tmp_path / "groups"
        (proc / "self").mkdir(parents=True)
        (proc / "meminfo").write_text(f"MemTotal: {128 * 2**20} kB\nMemAvailable:   {64 * 2**20} kB\n")
        (proc / "self" / "cgroup").write_text(cgroup)
        for name, text in files.items():
            (groups / name).parent.mkdir(parents=True, exist_ok=True)
            (groups / name).write_text(text)
        return proc, groups

    return make


def test_without_limits_the_hosts_free_memory_counts(machine):
    files = {"memory.max": "max\n", "memory.current": "5\n"}
    assert available_memory(*machine("0::/\n", files)) == 64 * GIB


def test_a_batch_jobs_limit_counts_wherever_it_is_set(machine):
    files = {
        "job/memory.max": f"{16 * GIB}\n",
        "job/memory.current": f"{6 * GIB}\n",
        # a page cache that was read twice is active, and gives way as well
        "job/memory.stat": f"anon 1\nactive_file {GIB}\ninactive_file {GIB // 2}\nslab_reclaimable {GIB // 2}\n",
        "job/step/memory.max": "max\n",
        "job/step/memory.current": f"{GIB}\n",
    }
    assert available_memory(*machine("0::/job/step\n", files)) == 12 * GIB


def test_limits_of_the_first_version_count(machine):
    stat = f"inactive_file 7\nactive_file 7\ntotal_inactive_file {GIB // 2}\ntotal_active_file {GIB // 2}\n"
    files = {
        "memory/slurm/job_7/memory.limit_in_bytes": f"{8 * GIB}\n",
        "memory/slurm/job_7/memory.usage_in_bytes": f"{3 * GIB}\n",
        "memory/slurm/job_7/memory.stat": stat,
    }
    cgroup = "5:cpu,cpuacct:/slurm/job_7\n4:memory:/slurm/job_7\n0::/\n"
    assert available_memory(*machine(cgroup, files)) == 6 * GIB


def test_a_full_group_has_nothing_left_and_a_silent_kernel_no_limit(machine, tmp_path):
    files = {"memory.max": "100\n", "memory.current": "300\n"}
    assert available_memory(*machine("0::/\n", files)) == 0
    assert available_memory(tmp_path / "nothing", tmp_path / "nothing") == float("inf")
