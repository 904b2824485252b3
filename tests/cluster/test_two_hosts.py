"""Real ssh, real pdsh, the real DeepSpeed launcher: two hosts in network namespaces (`make test-cluster`)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cluster.canary import command_lines_with

from slm.artifact import read_manifest, verify
from slm.cluster.environment import write_environment

ROOT = Path(__file__).parents[2]
CANARY = "canary-a90e-do-not-show"
DEEPSPEED = str(Path(sys.executable).with_name("deepspeed"))
pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def shards(tmp_path_factory, pico_tokenizer) -> Path:
    from slm.data.build import build_shards
    from slm.stages import RECIPES
    from slm.tokens.vocabulary import load_tokenizer

    tokenizer, vocabulary = load_tokenizer(pico_tokenizer)
    rows = [{"input": f"repeat twice dog {i}", "output": "dog dog"} for i in range(120)]
    out = tmp_path_factory.mktemp("shards") / "llm"
    build_shards(
        rows,
        recipe=RECIPES["llm"],
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        out=str(out),
        config={"set": "llm"},
        inputs={},
        max_length=128,
    )
    return out


def doctor(hosts, *argv):
    done = hosts.run([sys.executable, "-m", "slm", "doctor", "--json", *argv], cwd=ROOT, PYTHONPATH=str(ROOT))
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)["findings"]


def test_the_doctor_finds_both_hosts_fit(hosts, tmp_path):
    code, findings = doctor(hosts, "--hostfile", str(hosts.hostfile), "--shared", str(tmp_path))
    levels = {(finding["host"], finding["check"]): finding for finding in findings}
    for name in hosts.names:
        for check in ("reachable", "packages", "code", "devices", "clock", "shared folder"):
            assert levels[name, check]["level"] == "ok", levels[name, check]
        assert levels[name, "network"]["found"] == "eth0"
    assert code == (4 if any(finding["level"] == "bad" for finding in findings) else 0)


def test_the_doctor_finds_a_dead_host_and_too_many_slots(hosts, tmp_path):
    file = tmp_path / "hosts"
    file.write_text(f"{hosts.names[0]} slots=1000\n10.77.0.99 slots=1\n")
    code, findings = doctor(hosts, "--hostfile", str(file), "--shared", str(tmp_path))
    red = {(finding["host"], finding["check"]) for finding in findings if finding["level"] == "bad"}
    assert code == 4 and {("10.77.0.99", "reachable"), (hosts.names[0], "devices")} <= red


def write_stage(folder: Path, base: Path, shards: Path) -> list[str]:
    """A stage of three steps for two ranks at most, and its environment file; the script's words for them."""
    stage = {
        "out": str(folder / "run" / "llm"),
        "stage": "llm",
        "model": {"base": str(base), "lora": {"rank": 4, "alpha": 8, "targets": ["q_proj"]}},
        "data": {"shards": str(shards), "pack": {"length": 128}},
        "batch": {"rows": 4, "micro_rows": 1},
        "optim": {"lr": 5e-3},
        "duration": {"steps": 3},
        "zero": str(ROOT / "ds_configs" / "zero" / "cpu.json"),
    }
    (folder / "stage.yaml").write_text(yaml.safe_dump(stage))
    variables = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_PASSWORD": CANARY}
    write_environment(folder / ".env", variables)
    return ["launcher/train.py", "--env-file", str(folder / ".env"), "--config", str(folder / "stage.yaml")]


@pytest.mark.parametrize("choice", ["all", "--include", "--exclude"])
def test_a_stage_trains_on_two_hosts_through_pdsh(choice, hosts, tmp_path, pico_base, shards):
    """With the variables in a file of mode 0600, and nothing of them on any command line or in any log."""
    first, second = hosts.names
    chosen = {"all": [], "--include": [f"--include={first}:0@{second}:0"], "--exclude": [f"--exclude={second}"]}[choice]
    took_part = hosts.names[: 1 if choice == "--exclude" else 2]
    out = tmp_path / "run" / "llm"
    script = write_stage(tmp_path, pico_base, shards)
    launcher = [DEEPSPEED, "--hostfile", str(hosts.hostfile), *chosen, "--force_multi", "--master_addr", first]
    with command_lines_with(CANARY) as seen:
        done = hosts.run(
            [*launcher, "--master_port", "29611", *script], cwd=ROOT, PYTHONPATH=str(ROOT), DS_ACCELERATOR="cpu"
        )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    verify(out)
    assert read_manifest(out, "stage").about["world_size"] == len(took_part)
    assert all(f"{name}: " in said for name in took_part)
    assert {path.name for path in (out / "logs").iterdir()} == {f"rank{rank}.log" for rank in range(len(took_part))}
    logs = said + "".join(
        path.read_text(errors="replace") for path in out.rglob("*") if path.suffix in (".log", ".txt")
    )
    assert CANARY not in logs and not seen


def test_a_stage_trains_on_two_hosts_through_openmpi(hosts, tmp_path, pico_base, shards):
    if shutil.which("mpirun") is None:
        pytest.skip("the Debian package openmpi-bin is missing (make test-cluster installs it)")
    meeting = f"-x MASTER_ADDR={hosts.names[0]} -x MASTER_PORT=29613"
    launcher = [DEEPSPEED, "--hostfile", str(hosts.hostfile), "--launcher=openmpi", f"--launcher_args={meeting}"]
    may = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    script = write_stage(tmp_path, pico_base, shards)
    done = hosts.run([*launcher, *script], cwd=ROOT, PYTHONPATH=str(ROOT), DS_ACCELERATOR="cpu", **may)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    out = tmp_path / "run" / "llm"
    verify(out)
    assert read_manifest(out, "stage").about["world_size"] == 2
    assert {path.name for path in (out / "logs").iterdir()} == {"rank0.log", "rank1.log"}


def test_a_pipeline_trains_on_the_hosts_after_it_has_checked_them(hosts, prepared, tmp_path):
    run = prepared(tmp_path)
    argv = [sys.executable, "launcher/pipeline.py", "ds_configs/pipelines/pico.yaml", f"runs={tmp_path}"]
    where = ["--where", "hostfile", "--hostfile", str(hosts.hostfile), "--only", "llm"]
    done = hosts.run([*argv, *where], cwd=ROOT, PYTHONPATH=str(ROOT), MLFLOW_TRACKING_PASSWORD=CANARY)
    log = (run / "logs" / "llm.log").read_text() if (run / "logs" / "llm.log").exists() else ""
    assert done.returncode == 0, done.stdout + done.stderr + log[-4000:]
    verify(run / "llm")
    assert read_manifest(run / "llm").about["world_size"] == 2
    assert f"--master_addr {hosts.names[0]}" in log and all(f"{name}: " in log for name in hosts.names)
    assert CANARY in (run / ".env").read_text() and (run / ".env").stat().st_mode & 0o777 == 0o600
    logs = [path for path in run.rglob("*") if path.is_file() and path.suffix in (".log", ".txt", ".json", ".yaml")]
    assert CANARY not in done.stdout + done.stderr + "".join(path.read_text(errors="replace") for path in logs)


def test_nothing_is_left_behind(hosts):
    """The namespaces hold sshd and no rank."""
    for space in hosts.spaces:
        pids = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True).stdout.split()
        names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids if Path(f"/proc/{pid}").exists()}
        assert names <= {"sshd"}, names
