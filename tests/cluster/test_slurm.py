"""Batch scripts: what is asked for, what is quoted or refused, and how they stop, judge and requeue a step."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slm.artifact import write_manifest, write_status
from slm.cluster.slurm import BatchJob, Place, Task, doctor_argv, job_id, sbatch_argv, sbatch_path, script
from slm.cluster.verdict import judge, mark
from slm.config.loader import from_mapping, load_config
from slm.config.site import SiteConfig
from slm.errors import ConfigError, MachineError

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "ds_configs" / "sites" / "example.yaml"
HOSTILE = ["a;touch pwned", "`touch pwned`", "$(touch pwned)", "-rf", "it's", "a b", 'q"q', "a\\b", "ü", "a#b"]


def site(**values) -> SiteConfig:
    return from_mapping(SiteConfig, values, "site.yaml")


def place(folder, **changed) -> Place:
    return Place(str(folder), str(ROOT), str(Path(sys.executable).parent), **changed)


def job(folder, *argv, kind="other", **changed) -> BatchJob:
    return BatchJob("run.step", kind, (Task(str(folder), argv),), f"{folder}.log", **changed)


def options(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


def test_a_train_step_asks_for_what_the_site_says():
    config = load_config(SiteConfig, EXAMPLE)
    text = script(job("runs/x", "python", "launcher/train.py", kind="train"), config, place("/a folder"))
    assert options(text) == [
        "--job-name=run.step",
        "--output=runs/x.log",
        "--open-mode=append",
        "--requeue",
        "--signal=B:USR1@180",
        "--kill-on-invalid-dep=yes",
        "--partition=gpu",
        "--account=my-project",
        "--qos=normal",
        "--time=24:00:00",
        "--nodes=2",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--cpus-per-task=12",
        "--constraint=h100",
    ]
    lines = text.splitlines()
    assert "cd '/a folder'" in lines and "module load cuda" in lines
    start = "srun --export=ALL --kill-on-bad-exit=1 --cpus-per-task=12 python launcher/train.py"
    assert lines[-1] == f"slm_step train runs/x 50 {start}"


def test_other_steps_take_one_task_and_what_their_kind_asks_for():
    config = load_config(SiteConfig, EXAMPLE)
    text = script(job("runs/x", "python", kind="data"), config, place("/w"))
    assert "--partition=cpu" in options(text) and "--ntasks=1" in options(text) and "--nodes=1" in options(text)
    assert not [option for option in options(text) if "gpus" in option or "constraint" in option]
    assert "srun" not in text


def test_ranks_on_cpus_are_shared_out_evenly():
    text = script(job("f", "python", kind="train", ranks=4), site(nodes=2), place("/w"))
    assert "--nodes=2" in options(text) and "--ntasks-per-node=2" in options(text)
    with pytest.raises(ConfigError, match="3 ranks on 2 nodes"):
        script(job("f", "python", kind="train", ranks=3), site(nodes=2), place("/w"))


def test_an_array_has_a_case_for_each_task():
    tasks = tuple(Task(f"runs/{i}", ("python", "-m", "slm.eval", f"model=m{i}")) for i in range(3))
    text = script(BatchJob("e", "eval", tasks, "logs/e_%a.log"), site(), place("/w"))
    assert "--array=0-2" in options(text) and "--output=logs/e_%a.log" in options(text)
    assert "  1) slm_step eval runs/1 50 python -m slm.eval model=m1 ;;" in text.splitlines()


@pytest.mark.parametrize("word", HOSTILE)
def test_hostile_words_reach_the_command_as_they_are(word, tmp_path):
    out = tmp_path / "out"
    code = f"import json, os, sys; json.dump([sys.argv[1:], os.environ['V']], open({str(out)!r}, 'w'))"
    made = job("f", sys.executable, "-c", code, word, environment={"V": word})
    run_script(script(made, site(), place(tmp_path)), tmp_path)
    assert json.loads(out.read_text()) == [[word], word]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "script"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("partition", word) for word in [*HOSTILE, "a\nb", ""] if word != "ü"],
        ("account", "a\n#SBATCH --wrap=id"),
        ("qos", "$(id)"),
        ("time", "1:00; id"),
        ("time", 86400),
        ("extra", ["--wrap=id"]),
        ("extra", ["--output=x"]),
        ("extra", ["-p x"]),
        ("extra", ["--comment=a\nid"]),
        ("extra", ["--comment=$(id) x"]),
        ("setup", ["a\nb"]),
        ("forward", ["A=1"]),
        ("signal_s", 5),
        ("gpus_per_node", -1),
    ],
)
def test_hostile_site_values_are_refused(key, value):
    with pytest.raises(ConfigError) as caught:
        site(**{key: value})
    assert key in caught.value.what


@pytest.mark.parametrize("name", ["a b", "a\nb", "-x", "a;b", "", "x" * 200])
def test_hostile_job_names_are_refused(name):
    with pytest.raises(ConfigError, match="name of a job"):
        script(BatchJob(name, "other", (Task("f", ("true",)),), "l"), site(), place("/w"))


def test_paths_for_sbatch():
    assert sbatch_path("/a/50%/x_%a.log") == "/a/50%%/x_%a.log"
    assert sbatch_path("/a b/c") == '"/a b/c"'
    for path in ("a\nb", 'a"b', "a\\b", "$(id)", "`id`"):
        with pytest.raises(ConfigError):
            sbatch_path(path)


def test_sbatch_and_what_it_prints():
    assert sbatch_argv("s", ["1", "2"]) == ["sbatch", "--parsable", "--dependency=afterok:1:2", "s"]
    assert sbatch_argv("s") == ["sbatch", "--parsable", "s"]
    assert sbatch_argv("s", ["1", "2"], ["3"])[2] == "--dependency=afterok:1:2,afterany:3"
    assert sbatch_argv("s", after=["3", "4"])[2] == "--dependency=afterany:3:4"
    assert (job_id("17\n"), job_id("17;cluster\n")) == ("17", "17")
    with pytest.raises(MachineError, match="no job id"):
        job_id("Submitted batch job 17")
    argv = doctor_argv(load_config(SiteConfig, EXAMPLE))
    assert argv[:1] == ["srun"] and {"--partition=gpu", "--gpus-per-node=8", "--constraint=h100"} <= {*argv}


def test_the_verdict_is_read_from_status_and_manifest(tmp_path):
    def state(kind, code, *, status=None, manifest=False, old=False, gain=0):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        if status and old:
            write_status(folder, **status)
        (folder / "checkpoints" / "step_000005").mkdir(parents=True)
        before = mark(folder)
        (folder / "checkpoints" / f"step_{5 + gain:06d}").mkdir(exist_ok=True)
        if status and not old:
            write_status(folder, **status)
        if manifest:
            write_manifest(folder, "stage", config={})
        return judge(kind, folder, before, code)[0]

    saved = {"state": "preempted", "exit_code": 85, "step": 7}
    assert state("train", 1, status={"state": "done"}, manifest=True) == 0
    assert state("train", 0, status={"state": "done"}, manifest=True, old=True) == 0
    assert state("train", 0, status=saved) == 85 == state("train", 137, status=saved)
    assert state("train", 1, status=saved, old=True) == 1
    assert state("train", 0, status={"state": "preempted", "exit_code": 130}) == 130
    assert state("train", 0, status={"state": "failed", "exit_code": 5}) == 5
    lost = {"state": "failed", "exit_code": 4, "about": {"lost": True}}
    assert state("train", 1, status=lost) == 4 and state("train", 1, status=lost, gain=10) == 85
    assert state("train", 0) == 1 and state("train", 137, status={"state": "running"}) == 137
    assert state("eval", 0, manifest=True) == 0 and state("eval", 0) == 1
    assert state("eval", 85) == 85 and state("data", 3, manifest=True) == 3


def run_script(text, tmp_path, **environment):
    path = tmp_path / "script"
    path.write_text(text)
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(["bash", str(path)], capture_output=True, text=True, env=variables, timeout=60)


def program(tmp_path, code) -> tuple[str, str]:
    (tmp_path / "program.py").write_text(code)
    return "python", str(tmp_path / "program.py")


def test_a_script_brings_the_environment_file_and_hands_on_the_exit_code(tmp_path):
    from slm.cluster.environment import write_environment

    write_environment(tmp_path / "e", {"SOME_TOKEN": "it's $HOME; `id`"})
    code = "import os, sys; sys.exit(7 if os.environ['SOME_TOKEN'] == \"it's $HOME; `id`\" else 1)"
    text = script(job("f", *program(tmp_path, code)), site(), place(tmp_path, env_file=str(tmp_path / "e")))
    done = run_script(text, tmp_path)
    assert done.returncode == 7 and "f: exit code 7" in done.stdout
    assert "$HOME" not in text + done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "mode", "why"),
    [
        ("A=$(touch pwned)\n", 0o600, "put the value in single quotes"),
        ("A=1; touch pwned\n", 0o600, "put the value in single quotes"),
        ("touch pwned\n", 0o600, "expected KEY=value"),
        ("A=1\n", 0o640, "can be read by others"),
    ],
)
def test_an_environment_file_is_checked_and_never_run(text, mode, why, tmp_path, stand_ins, monkeypatch):
    """Also by the scripts that people submit, whose file nobody has checked before."""
    (tmp_path / "e").write_text(text)
    (tmp_path / "e").chmod(mode)
    generated = script(job("f", "touch", "started"), site(), place(tmp_path, env_file=str(tmp_path / "e")))
    stand_ins.add(
        "python",
        "if 'slm.cluster.environment' in sys.argv: os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
        "open('started', 'w')",
    )
    by_hand = (ROOT / "launcher/slurm/pipeline.sbatch").read_text()
    for body in (generated, by_hand):
        done = run_script(body, tmp_path, SLURM_SUBMIT_DIR=str(ROOT), SLM_ENV_FILE=str(tmp_path / "e"))
        assert done.returncode == 2 and why in done.stderr, done.stderr
        assert not {"pwned", "started"} & {path.name for path in [*tmp_path.iterdir(), *ROOT.iterdir()]}


TRAIN = """
import pathlib, sys, time
sys.path.insert(0, {root!r})
from slm.artifact import write_status
out = pathlib.Path({out!r}); out.mkdir(exist_ok=True)
(out / "ready").touch()
for _ in range(200):
    if (out / "STOP").exists():
        write_status(out, "preempted", exit_code=85, step=3); sys.exit(1)
    time.sleep(0.05)
"""


def ask_in_the_middle(tmp_path, text, ready, **environment):
    (tmp_path / "script").write_text(text)
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    process = subprocess.Popen(["bash", str(tmp_path / "script")], stdout=subprocess.PIPE, text=True, env=variables)
    end = time.monotonic() + 30
    while not ready.exists() and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=30)
    return process.returncode, said


@pytest.mark.parametrize(("restarts", "requeued"), [("0", True), ("50", False)])
def test_asked_by_slurm_a_train_step_saves_and_goes_back_into_the_queue(tmp_path, stand_ins, restarts, requeued):
    stand_ins.add("scontrol")
    stand_ins.add("srun", "os.execvp(sys.argv[3], sys.argv[3:])")
    out = tmp_path / "out"
    made = job(out, *program(tmp_path, TRAIN.format(root=str(ROOT), out=str(out))), kind="train")
    text = script(made, site(), place(tmp_path))
    ids = {"SLURM_JOB_ID": "41", "SLURM_RESTART_COUNT": restarts}
    code, said = ask_in_the_middle(tmp_path, text, out / "ready", **ids)
    assert code == 85 and "saved at step 3, to be continued" in said
    assert stand_ins.calls("scontrol") == ([["requeue", "41"]] if requeued else [])
    assert not (out / "STOP").exists() and len(stand_ins.calls("srun")) == 1


def test_other_steps_are_asked_by_sigterm(tmp_path, stand_ins):
    stand_ins.add("scontrol")
    code = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(85))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch(); time.sleep(20)"
    )
    text = script(job("f", *program(tmp_path, code), kind="eval"), site(), place(tmp_path))
    assert ask_in_the_middle(tmp_path, text, tmp_path / "ready", SLURM_JOB_ID="42")[0] == 85
    assert stand_ins.calls("scontrol") == [["requeue", "42"]]


KILLED_BY_TERM = (
    "import pathlib, time\n"
    "pathlib.Path({ready!r}).touch(); time.sleep(20)"
)  # fmt: skip


def test_an_array_task_that_dies_of_being_asked_is_requeued_itself_and_not_the_whole_array(tmp_path, stand_ins):
    """The job's own number can be that of the array, so the task is named; a share has no artifact to be judged by."""
    stand_ins.add("scontrol", "sys.exit(1)")
    command = program(tmp_path, KILLED_BY_TERM.format(ready=str(tmp_path / "ready")))
    tasks = tuple(Task("f", (*command, f"--task={i}/2"), is_share=True) for i in range(2))
    text = script(BatchJob("set.shares", "data", tasks, "l_%a"), site(), place(tmp_path))
    assert f"  1) slm_run 50 {shlex.join(command)} --task=1/2 ;;" in text.splitlines()
    ids = {"SLURM_JOB_ID": "70", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "1"}
    code, said = ask_in_the_middle(tmp_path, text, tmp_path / "ready", **ids)
    assert code == 85 and stand_ins.calls("scontrol") == [["requeue", "70_1"]]
    assert "job 70_1 can't be requeued" in said


def test_a_job_that_slurm_is_ending_is_not_put_back_into_the_queue(tmp_path, stand_ins):
    """`scancel` sends SIGTERM as preemption does; SLURM itself requeues what it shall."""
    stand_ins.add("scontrol")
    stand_ins.add("squeue", "print('COMPLETING')")
    command = program(tmp_path, KILLED_BY_TERM.format(ready=str(tmp_path / "ready")))
    text = script(job("f", *command, kind="data"), site(), place(tmp_path))
    code, said = ask_in_the_middle(tmp_path, text, tmp_path / "ready", SLURM_JOB_ID="72")
    assert code == 85 and not stand_ins.calls("scontrol") and "job 72 is COMPLETING" in said
    assert stand_ins.calls("squeue") == [["--noheader", "--format=%T", "--jobs=72"]]


def test_a_step_that_is_killed_without_being_asked_has_failed(tmp_path, stand_ins):
    stand_ins.add("scontrol")
    code = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
    text = script(job("f", *program(tmp_path, code), kind="data"), site(), place(tmp_path))
    done = run_script(text, tmp_path, SLURM_JOB_ID="71")
    assert done.returncode == 143 and "f: exit code 143" in done.stdout and not stand_ins.calls("scontrol")


SCRIPTS = sorted((ROOT / "launcher" / "slurm").glob("*.sbatch"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_scripts_for_people_are_valid_and_say_how_they_are_submitted(path):
    text = path.read_text()
    assert subprocess.run(["bash", "-n", str(path)]).returncode == 0
    assert {"--requeue", "--open-mode=append", "--signal=B:USR1@180"} <= {*options(text)}
    assert re.search(rf"^#   sbatch .*|launcher/slurm/{path.name}", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "argv", "task", "command"),
    [
        ("shards", ["a.yaml", "out=x"], None, "data_shards/build.py a.yaml out=x"),
        ("shards", ["a.yaml", "b.yaml"], "1", "data_shards/build.py b.yaml"),
        ("eval", ["model=m", "e.yaml"], None, "-m slm.eval model=m e.yaml"),
        ("eval", ["e.yaml", "model=m", "model=n"], "1", "-m slm.eval e.yaml model=n out=runs/slm-eval-9/1"),
        ("pipeline", ["p.yaml", "name=a b"], None, "launcher/pipeline.py p.yaml 'name=a b'"),
        ("shards", ["a.yaml", "out=x"], "3/16", "data_shards/build.py a.yaml out=x --task 3/16"),
        ("shards", ["a.yaml", "b.yaml"], None, ""),
        ("eval", ["e.yaml", "model=m"], "1", ""),
    ],
)
def test_the_scripts_for_people_start_what_they_say(name, argv, task, command, tmp_path, stand_ins, monkeypatch):
    """Run from a copy, as sbatch does, in a checkout with a stand-in for its python."""
    checkout = tmp_path / "checkout"
    (checkout / "launcher").mkdir(parents=True)
    (checkout / "launcher" / "train.py").touch()
    (checkout / "launcher" / "slurm").symlink_to(ROOT / "launcher" / "slurm")
    stand_ins.add("python")
    number, _, count = (task or "").partition("/")
    ids = {"SLURM_ARRAY_TASK_ID": number, "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_COUNT": count or "2"}
    ids = ids if task is not None else {}
    variables = {**os.environ, "SLURM_SUBMIT_DIR": str(checkout), **ids}
    source = (ROOT / "launcher" / "slurm" / f"{name}.sbatch").read_text()
    (tmp_path / "copy").write_text(source)
    done = subprocess.run(["bash", str(tmp_path / "copy"), *argv], capture_output=True, text=True, env=variables)
    if command:
        assert done.returncode == 0, done.stderr
        assert stand_ins.calls("python") == [shlex.split(command)]
    else:
        assert done.returncode == 2 and "--array=0-" in done.stderr and not stand_ins.calls("python")
