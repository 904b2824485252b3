"""Two hosts, and one of them loses its link, its rank, or its time: the pipeline ends or restarts, and nothing is lost.

Real ssh, pdsh and DeepSpeed, in network namespaces (`make test-cluster`).
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from slm.artifact import read_manifest, read_status, verify

ROOT = Path(__file__).parents[2]
PICO = "ds_configs/pipelines/pico.yaml"
STEPS, EVERY = 80, 10
LONG = f'steps.llm.set={{"duration.steps": {STEPS}, "checkpoint.every": {EVERY}}}'
WITHIN_S = 30.0
START_S = 240.0
"""How long ranks may take to start: other work may share the machine."""
pytestmark = pytest.mark.cluster


@pytest.fixture(autouse=True)
def nothing_is_left(hosts):
    yield
    hosts.clear()


def on_both(hosts, runs: Path) -> list[str]:
    """Options for both hosts, with one thread a rank as on one machine: two threads sum in another order."""
    (runs / "site.yaml").write_text("forward: [OMP_NUM_THREADS]\n")
    return ["--where", "hostfile", "--hostfile", str(hosts.hostfile), "--site", str(runs / "site.yaml")]


class Runs:
    """Pipelines of one stage, from the same data and base: `new(runs)` is a run folder in which only it is missing."""

    def __init__(self, hosts, prepared) -> None:
        self.hosts, self.new = hosts, prepared

    def argv(self, runs: Path, *options: str) -> list[str]:
        return [sys.executable, "launcher/pipeline.py", *options, PICO, f"runs={runs}", LONG]

    def begin(self, runs: Path, *options: str):
        """The pipeline on both hosts, started; `runs / "said"` gets its output."""
        self.new(runs)
        return self.again(runs, *options)

    def again(self, runs: Path, *options: str):
        return self.hosts.begin(
            self.argv(runs, *on_both(self.hosts, runs), "--only", "llm", *options),
            cwd=ROOT,
            output=runs / "said",
            PYTHONPATH=str(ROOT),
            OMP_NUM_THREADS="1",
        )


@pytest.fixture(scope="module")
def runs(hosts, prepared):
    return Runs(hosts, prepared)


@pytest.fixture(scope="module")
def undisturbed(runs, tmp_path_factory):
    """The stage on one host, by two ranks, from end to end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = runs.new(folder)
    argv = runs.argv(folder, "--only", "llm")
    done = runs.hosts.run(argv, cwd=ROOT, timeout=600, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    return run / "llm"


def until(true, seconds, process=None, said=None):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return
        if process is not None and process.poll() is not None:
            break
        time.sleep(0.05)
    raise AssertionError("waited in vain:\n" + (said.read_text()[-4000:] if said else ""))


def losses(step: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (step / "metrics.jsonl").read_text().splitlines()]


def weights(step: Path) -> dict[str, torch.Tensor]:
    return load_file(next((step / "model").glob("*.safetensors")))


def trained(step: Path) -> dict[str, str]:
    """sha256 of a stage's files of weights."""
    files = read_manifest(step).files
    found = {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")}
    assert found, sorted(files)
    return found


def steps_taken(step: Path) -> int:
    path = step / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def in_the_middle(runs, folder: Path, process) -> tuple[Path, list[list[int]]]:
    """Wait until a checkpoint is behind and steps are taken; the stage, and each host's ranks."""
    step = folder / "pico" / "llm"
    until(lambda: steps_taken(step) >= 2 * EVERY + 3, START_S, process, folder / "said")
    found = [runs.hosts.ranks(host, f"out={step}") for host in range(2)]
    assert [len(ranks) for ranks in found] == [1, 1], found
    return step, found


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def require_end_of(ranks, since: float) -> float:
    """All ranks of the first attempt end in time, wherever they are."""
    until(lambda: all(gone(pid) for host in ranks for pid in host), since + WITHIN_S - time.monotonic())
    return time.monotonic() - since


def finish(process, folder: Path, seconds: float = 600) -> str:
    process.wait(seconds)
    return (folder / "said").read_text()


def require_same(step: Path, undisturbed: Path) -> None:
    """Bit for bit: losses, weights, and with them the artifact's fingerprint."""
    verify(step)
    assert losses(step) == losses(undisturbed)
    for name, value in weights(undisturbed).items():
        assert torch.equal(value, weights(step)[name]), name
    assert read_manifest(step).fingerprint == read_manifest(undisturbed).fingerprint


def test_a_killed_rank_ends_the_job_and_the_restart_is_the_undisturbed_run(
    runs, undisturbed, tmp_path, record_property
):
    process = runs.begin(tmp_path)
    step, ranks = in_the_middle(runs, tmp_path, process)
    os.kill(ranks[1][0], signal.SIGKILL)
    took = require_end_of(ranks, time.monotonic())
    said = finish(process, tmp_path)
    assert process.returncode == 0, said
    assert re.search(rf"rank 1 on \S+ \({runs.hosts.names[1]}\) \(process {ranks[1][0]}\) died in '\w+' of step", said)
    assert "starts again from its newest checkpoint (restart 1 of 3)" in said
    require_same(step, undisturbed)
    record_property("seconds until all ranks had ended", round(took, 1))


def test_a_stopped_rank_is_found_and_the_restart_is_the_undisturbed_run(runs, undisturbed, tmp_path, record_property):
    process = runs.begin(tmp_path)
    step, ranks = in_the_middle(runs, tmp_path, process)
    os.kill(ranks[1][0], signal.SIGSTOP)
    took = require_end_of(ranks, time.monotonic())
    stacks = {rank: (step / "logs" / f"stacks.rank{rank}.txt").read_text() for rank in range(2)}
    said = finish(process, tmp_path)
    assert process.returncode == 0, said
    assert re.search(rf"rank 1 on \S+ \({runs.hosts.names[1]}\) .* gave no sign of life", said)
    assert all("loop.py" in text for text in stacks.values()), stacks
    require_same(step, undisturbed)
    record_property("seconds until all ranks had ended", round(took, 1))


def test_a_cut_link_ends_both_sides_and_the_run_goes_on_with_the_host_that_is_left(
    runs, undisturbed, tmp_path, record_property
):
    process = runs.begin(tmp_path, "--min-hosts", "1")
    step, ranks = in_the_middle(runs, tmp_path, process)
    runs.hosts.link(1, "down")
    try:
        took = require_end_of(ranks, time.monotonic())
        said = finish(process, tmp_path)
    finally:
        runs.hosts.link(1, "up")
    assert process.returncode == 0, said
    assert re.search(r"rank 1 on \S+ .* gave no sign of life for", said) and "restart 1 of 3" in said
    assert (tmp_path / "pico" / "hosts").read_text() == f"{runs.hosts.names[0]} slots=1\n"
    verify(step)
    assert read_manifest(step).about["world_size"] == 1
    np.testing.assert_allclose(losses(step), losses(undisturbed), rtol=1e-5)
    one, other = (torch.cat([tensors[n].flatten().double() for n in sorted(tensors)]) for tensors in
                  (weights(undisturbed), weights(step)))  # fmt: skip
    assert float((one - other).norm() / one.norm()) < 1e-5
    record_property("seconds until all ranks had ended", round(took, 1))


def test_without_leave_to_go_on_with_fewer_hosts_the_run_ends_and_names_the_lost_one(runs, tmp_path):
    process = runs.begin(tmp_path)
    step, ranks = in_the_middle(runs, tmp_path, process)
    runs.hosts.link(1, "down")
    try:
        require_end_of(ranks, time.monotonic())
        said = finish(process, tmp_path)
    finally:
        runs.hosts.link(1, "up")
    assert process.returncode == 4, said
    assert f"not started again: 1 of 2 hosts answer ({runs.hosts.names[1]}: " in said and "--min-hosts 1" in said
    status = read_status(step)
    assert (status["state"], status["rank"], status["lost"]) == ("failed", 1, True)


def test_ctrl_c_once_saves_on_both_hosts_and_twice_leaves_no_rank(runs, undisturbed, tmp_path):
    process = runs.begin(tmp_path)
    step, ranks = in_the_middle(runs, tmp_path, process)
    os.kill(process.pid, signal.SIGINT)
    said = finish(process, tmp_path, 120)
    assert process.returncode == 130 and "nothing is lost" in said, said
    assert all(gone(pid) for host in ranks for pid in host)
    assert read_status(step)["state"] == "preempted"
    process = runs.again(tmp_path)
    until(lambda: runs.hosts.ranks(0, f"out={step}") and runs.hosts.ranks(1, f"out={step}"), START_S, process)
    both = [runs.hosts.ranks(host, f"out={step}") for host in range(2)]
    os.kill(process.pid, signal.SIGINT)
    time.sleep(1.0)
    os.kill(process.pid, signal.SIGINT)
    said = finish(process, tmp_path, 60)
    assert process.returncode == 130 and "stopped at once" in said, said
    require_end_of(both, time.monotonic())
    process = runs.again(tmp_path)
    said = finish(process, tmp_path)
    assert process.returncode == 0, said
    require_same(step, undisturbed)


def test_the_whole_pipeline_on_two_hosts_is_the_one_machines(hosts, pico_run, prepared, tmp_path):
    """Every loss and weight is the same; an adapter's configuration names its base's folder, which is another."""
    run = prepared(tmp_path)
    argv = [sys.executable, "launcher/pipeline.py", *on_both(hosts, tmp_path), PICO, f"runs={tmp_path}"]
    done = hosts.run(argv, cwd=ROOT, timeout=900, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    stages = sorted(path.parent.name for path in pico_run.glob("*/metrics.jsonl"))
    assert len(stages) == 7
    for name in stages:
        assert losses(pico_run / name) == losses(run / name), name
        assert trained(pico_run / name) == trained(run / name), name
    assert (run / "report" / "MANIFEST.json").exists()
