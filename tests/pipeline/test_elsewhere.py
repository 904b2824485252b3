"""Pipelines whose steps run elsewhere: SLURM's scripts and submissions, and commands through pdsh."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from slm.cli.app import main
from slm.config.site import SiteConfig
from slm.errors import ConfigError, MachineError
from slm.pipeline import commands
from slm.pipeline.batch import submit
from slm.pipeline.record import read_record
from slm.pipeline.run import run_pipeline

ROOT = Path(__file__).parents[2]
PICO = "ds_configs/pipelines/pico.yaml"
SITE = "ds_configs/sites/example.yaml"
CANARY = "canary-51d7-do-not-show"
RECORD = """#!{python}
import json, os, sys
with open({log!r}, "a") as file:
    file.write(json.dumps({{"argv": sys.argv, "environment": dict(os.environ)}}) + "\\n")
{body}
"""


@pytest.fixture(autouse=True)
def at_the_top(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """`stand_in(name, body)` puts a recording program first on the PATH; `stand_in.calls()` are its calls."""
    (tmp_path / "bin").mkdir()
    log = tmp_path / "calls.jsonl"
    log.touch()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    def add(name, body):
        path = tmp_path / "bin" / name
        path.write_text(RECORD.format(python=sys.executable, log=str(log), body=body))
        path.chmod(0o755)

    add.calls = lambda: [json.loads(line) for line in log.read_text().splitlines()]
    return add


SBATCH = "n = sum('sbatch' in line for line in open({log!r})); print(f'{{100 + n}};lab')"


def through_a_shell(word: str) -> list[str]:
    """What DeepSpeed and pdsh make of a word of the command: joined by spaces, read by the host's shell."""
    sent = f'"{word}"' if " " in word else word
    done = subprocess.run(["sh", "-c", f"printf '%s\\0' {sent}"], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize(
    "value",
    ["a b", "a;touch x", "`touch x`", "$(touch x)", "$HOME", "-rf", "it's", 'q"q', "a\\b", "ü", "50%n", "x\ny", "", "~"]
    + [[{"shards": "r/a b", "ratio": 0.1}], {"limit": 8}, True, None, 0.5, "runs/x"],
)
def test_every_value_survives_deepspeed_pdsh_and_the_hosts_shell(value):
    script = ["launcher/train.py", "--config", "c.yaml", commands.override("a.b", value)]
    argv = commands.on_hosts(script, 2, hostfile="hosts", master="n1", env_file="runs/x/.env")
    assert "--force_multi" in argv and argv[argv.index("--master_addr") + 1] == "n1"
    (word,) = through_a_shell(argv[-1])
    key, _, text = word.partition("=")
    assert key == "a.b" and "%" not in word and yaml.safe_load(f"value: {text}")["value"] == value


@pytest.mark.parametrize("name", ["a b.yaml", "50%.yaml", "a\nb.yaml"])
def test_file_names_that_pdsh_would_change_are_refused(name):
    with pytest.raises(ConfigError, match="can't go through pdsh"):
        commands.on_hosts(["launcher/train.py", "--config", name], 2, hostfile="h", master="n1", env_file="e")


def test_file_names_with_a_shells_characters_are_quoted():
    script = ["launcher/train.py", "--config", "a;touch${IFS}x.yaml"]
    argv = commands.on_hosts(script, 2, hostfile="h", master="n1", env_file="e")
    assert through_a_shell(argv[-1]) == ["a;touch${IFS}x.yaml"]


def test_a_dry_run_for_hosts_needs_none(tmp_path, capsys):
    hosts = tmp_path / "hosts"
    hosts.write_text("n1 slots=1\r\nn2 slots=1\n")
    argv = ["pipeline", PICO, "--where", "hostfile", "--hostfile", str(hosts), "--dry-run", f"runs={tmp_path}"]
    assert main(argv) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "launcher/train.py" in line]
    assert len(lines) == 7 and all(f"--hostfile {hosts}" in line and "--master_addr n1" in line for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["hosts"]
    hosts.write_text("n1: slots=1\n")
    assert main(argv) == 2
    assert main(["pipeline", PICO, "--where", "hostfile"]) == 2
    assert main(["pipeline", PICO, "--hostfile", str(hosts)]) == 2
    assert "go together" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--detach"], ["--time-limit", "1:00:00"]])
def test_options_of_a_pipelines_own_process_are_refused_for_jobs(option, capsys):
    assert main(["pipeline", PICO, "--where", "slurm", "--dry-run", *option]) == 2
    assert f"{option[0]} does not go with --where slurm" in capsys.readouterr().err


def test_hosts_that_are_not_fit_stop_a_pipeline_before_it_starts(tmp_path, capsys, stand_in):
    stand_in("ssh", "print('no route to host', file=sys.stderr); sys.exit(255)")
    (tmp_path / "hosts").write_text("n1 slots=1\nn2 slots=1\n")
    argv = ["pipeline", PICO, "--where", "hostfile", "--hostfile", str(tmp_path / "hosts"), f"runs={tmp_path}/runs"]
    assert main(argv) == 4
    shown = capsys.readouterr()
    assert shown.out.count("no route to host") == 2 and "not fit to train: " in shown.err
    assert not (tmp_path / "runs" / "pico" / "pipeline.json").exists()


def test_the_dry_run_for_slurm_is_scripts_that_bash_reads_and_needs_no_torch(tmp_path):
    argv = ["pipeline", PICO, "--where", "slurm", "--site", SITE, "--dry-run", f"runs={tmp_path}/runs"]
    code = f"import sys, slm.cli.app as a; code = a.main({argv!r}); sys.exit(code or 9 * ('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scripts = done.stdout.split("#!/usr/bin/env bash\n")[1:]
    assert len(scripts) == 20 and not (tmp_path / "runs").exists()
    assert all(subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0 for text in scripts)
    train = next(text for text in scripts if "--job-name=pico.llm\n" in text)
    assert "slm_step train" in train and "srun --export=ALL --kill-on-bad-exit=1" in train and "--nodes=2" in train


def test_every_step_is_submitted_after_those_it_needs_and_no_secret_is_shown(tmp_path, capsys, stand_in, monkeypatch):
    stand_in("sbatch", SBATCH.format(log=str(tmp_path / "calls.jsonl")))
    stand_in("squeue", "print('101 RUNNING None'); print('103 PENDING Dependency')")
    secrets = tmp_path / "secrets"
    secrets.write_text(f"OUR_PASSWORD='{CANARY}'\n")
    secrets.chmod(0o600)
    monkeypatch.setenv("HF_TOKEN", f"{CANARY}-2")
    (tmp_path / "site.yaml").write_text(f"partition: gpu\nenv_file: {secrets}\n")
    argv = ["pipeline", PICO, "--where", "slurm", "--site", str(tmp_path / "site.yaml"), f"runs={tmp_path}/runs"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    run = tmp_path / "runs" / "pico"
    calls = [call["argv"][1:] for call in stand_in.calls()]
    ids = {Path(call[-1]).stem: str(101 + i) for i, call in enumerate(calls)}
    waits = {Path(call[-1]).stem: call[1].partition("afterok:")[2].split(":") for call in calls if len(call) == 3}
    assert len(calls) == 20 and all(call[0] == "--parsable" for call in calls)
    assert waits["pico.naive-tts"] == [ids["pico.base"], ids["pico.naive-asr"], ids["pico.data"]]
    assert waits["pico.evaluation"] == [ids["pico.evaluation.models"]] and "pico.data" not in waits
    assert read_record(run)["slurm"]["llm"] == ids["pico.llm"]
    assert f"20 jobs; slm status {run}" in shown

    env_file = run / ".env"
    assert env_file.stat().st_mode & 0o777 == 0o600 and env_file.read_text().count(CANARY) == 2
    others = [path for path in run.rglob("*") if path.is_file() and path != env_file]
    assert len(others) >= 22 and not [path for path in others if CANARY in path.read_text()]
    assert CANARY not in shown + json.dumps(calls)

    assert main(argv) == 4  # squeue still knows two of them
    assert "scancel 101 103" in capsys.readouterr().err
    assert main(["status", str(run)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if "▶ running" in line] == ["1 data data ▶ running SLURM job 101: running"]
    assert [line.split("SLURM")[1] for line in lines if "… queued" in line] == [" job 103: pending (Dependency)"]
    stand_in("squeue", "sys.exit(1)")
    assert main([*argv, "--only", "data"]) == 0
    assert main(["status", str(run)]) == 0
    assert "running" not in capsys.readouterr().out


def test_shares_of_a_shard_set_are_an_array_whose_end_the_step_awaits(tmp_path, capsys, stand_in):
    stand_in("sbatch", SBATCH.format(log=str(tmp_path / "calls.jsonl")))
    data = {"kind": "data", "job": "data_shards/jobs/magpie_llm.yaml", "shares": 3}
    steps = {"world": {"kind": "data", "job": "data_shards/jobs/pico.yaml"}}
    steps |= {"base": {"kind": "tiny-base", "data": "world"}, "text": {**data, "tokenizer": "base"}}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"name": "p", "steps": steps}, sort_keys=False))
    argv = ["pipeline", str(tmp_path / "p.yaml"), "--where", "slurm", f"runs={tmp_path}/runs"]
    assert main([*argv, "--dry-run"]) == 0
    assert "afterok:JOB_OF.p.base,afterany:JOB_OF.p.text.shares" in capsys.readouterr().out
    assert main(argv) == 0
    scripts = {Path(call["argv"][-1]).stem: call["argv"][1:] for call in stand_in.calls()}
    assert list(scripts) == ["p.world", "p.base", "p.text.shares", "p.text"]
    assert scripts["p.text.shares"][1] == "--dependency=afterok:102"
    assert scripts["p.text"][1] == "--dependency=afterok:102,afterany:103"
    array = Path(scripts["p.text.shares"][-1]).read_text()
    assert "#SBATCH --array=0-2\n" in array and "shares_%a.log" in array
    tasks = [line for line in array.splitlines() if ") slm_run 50 python " in line]
    assert [line.split()[-2] for line in tasks] == ["0/3", "1/3", "2/3"]
    assert "slm_step data" in Path(scripts["p.text"][-1]).read_text()
    assert "103  p.text.shares  after p.base" in capsys.readouterr().out


def test_sbatch_that_refuses_is_an_error_with_its_words(tmp_path, capsys, stand_in):
    stand_in("sbatch", "print('sbatch: error: invalid account', file=sys.stderr); sys.exit(1)")
    assert main(["pipeline", PICO, "--where", "slurm", f"runs={tmp_path}/runs"]) == 4
    assert "sbatch refused: sbatch: error: invalid account" in capsys.readouterr().err
    assert main(["pipeline", PICO, "--where", "slurm", "--from", "llm", f"runs={tmp_path}/runs"]) == 2


def in_words(plan):
    """The plan with commands that fit into a script's line."""
    return replace(plan, steps=tuple(replace(step, argv=("true",)) for step in plan.steps))


def test_a_stale_stage_is_set_aside_and_no_pipeline_joins_a_queued_run(make_plan, screen, stand_in, tmp_path):
    run_pipeline(make_plan({"a": {"kind": "train", "text": "one"}}), screen)
    stand_in("sbatch", "print(101)")
    said: list[str] = []
    changed = in_words(make_plan({"a": {"kind": "train", "text": "two"}, "b": {"kind": "train", "needs": ["a"]}}))
    with pytest.raises(ConfigError, match="step 'b' needs a, not done yet"):
        submit(changed, {"b"}, SiteConfig(), said.append)
    assert not stand_in.calls() and (changed.folder / "a").exists()
    assert submit(changed, {"a"}, SiteConfig(), said.append) == {"run.a": "101"}
    kept = changed.folder / "superseded" / "a-1"
    assert (kept / "result.txt").read_text() == "one" and f"a: made anew, the old one is {kept}" in said
    stand_in("squeue", "print('101 PENDING None')")
    with pytest.raises(MachineError, match="1 jobs of this run still wait or run"):
        run_pipeline(changed, screen)


def test_from_hands_over_again_what_is_done(make_plan, screen, stand_in):
    plan = make_plan({"a": {"kind": "train"}})
    run_pipeline(plan, screen)
    stand_in("sbatch", "print(101)")
    plan = in_words(plan)
    assert submit(plan, {"a"}, SiteConfig(), lambda _: None) == {}
    assert submit(plan, {"a"}, SiteConfig(), lambda _: None, again=True) == {"run.a": "101"}
    assert (plan.folder / "superseded" / "a-1" / "result.txt").exists()


@pytest.mark.parametrize("name", ["a;touch x", "`touch x`", "$(touch x)", "a\nb", "-rf"])
def test_hostile_run_and_folder_names_never_reach_slurm(name, tmp_path, stand_in, capsys):
    stand_in("sbatch", "print(1)")
    argv = ["pipeline", PICO, "--where", "slurm"]
    assert main([*argv, f"name={json.dumps(name)}", f"runs={tmp_path}/r"]) == 2
    code = main([*argv, f"runs={json.dumps(f'{tmp_path}/{name}')}"])
    if code == 0:  # a folder may be called so; then it is quoted
        for call in stand_in.calls():
            text = Path(call["argv"][-1]).read_text()
            assert shlex.quote(f"{tmp_path}/{name}/pico/.env") in text
    else:
        assert code == 2 and not stand_in.calls()
    assert not (ROOT / "x").exists()
