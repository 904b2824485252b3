"""Real SLURM with two nodes on this machine (`make test-cluster`): whole pipelines, preempted and killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from cluster import lab as slurm
from cluster.canary import command_lines_with, files_with

from slm.artifact import file_sha256, read_json, read_manifest, read_status, verify
from slm.cluster.environment import write_environment
from slm.pipeline import commands
from slm.pipeline.planner import load_pipeline, make_plan
from slm.pipeline.record import read_record

ROOT = Path(__file__).parents[2]
CANARY = "canary-c41b-do-not-show"
STEPS = 600
"""Steps of the stage that is disturbed: with its start longer than the 30 s at which SLURM looks at its time limits."""
WEIGHTS = ("llm/model", "naive-asr/adapter", "naive-tts/adapter", "naive-sqa/adapter", "replay-sqa/adapter")
pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    missing = slurm.what_is_missing()
    if missing:
        pytest.skip(missing)
    started = slurm.start(tmp_path_factory.mktemp("lab"))
    yield started
    slurm.stop(started)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """The pico pipeline, with a stage that is long enough to be disturbed in its middle."""
    longer = {"llm": {"set": {"duration.steps": STEPS, "checkpoint.every": 5}}}
    path = tmp_path_factory.mktemp("pipeline") / "pico.yaml"
    path.write_text(yaml.safe_dump({"base": str(ROOT / "ds_configs/pipelines/pico.yaml"), "steps": longer}))
    return path


def write_site(folder: Path, **values) -> Path:
    """A site file. Both nodes have this machine's name, which tells neither where rank 0 is."""
    write_environment(folder / "secrets", {"OUR_PASSWORD": CANARY})
    threads = max(1, len(os.sched_getaffinity(0)) // 2)  # as a pipeline without SLURM sets them
    setup = ["export MASTER_ADDR=127.0.0.1", f"export OMP_NUM_THREADS={threads}"]
    values = {"nodes": 2, "time": "60", "setup": setup, "env_file": str(folder / "secrets"), **values}
    (folder / "site.yaml").write_text(yaml.safe_dump(values))
    return folder / "site.yaml"


def submit(lab, pipeline, runs: Path, *options) -> dict[str, str]:
    """`--where slurm`; the numbers of the jobs."""
    site = ["--where", "slurm", "--site", runs / "site.yaml"]
    lab.run(
        [sys.executable, "launcher/pipeline.py", pipeline, f"runs={runs}", *site, *options],
        cwd=ROOT,
        PYTHONPATH=str(ROOT),
        WANDB_API_KEY=CANARY,
    )
    return read_record(runs / load_pipeline(pipeline).name)["slurm"]


def sbatch(lab, name, *argv, options=(), cwd=ROOT) -> str:
    """Submit one of the scripts for people, from the top of a checkout."""
    path = os.pathsep.join((str(Path(sys.executable).parent), slurm.PATH))
    command = ["sbatch", "--parsable", *options, f"launcher/slurm/{name}.sbatch", *argv]
    return lab.run(command, cwd=cwd, PYTHONPATH=str(ROOT), PATH=path, MASTER_ADDR="127.0.0.1").stdout.strip()


def weights(run: Path, *names: str) -> dict[str, str]:
    """sha256 of the weights that stages left."""
    found = {str(path.relative_to(run)): path for name in names for path in (run / name).glob("*.safetensors")}
    assert len(found) >= len(names), sorted(found)
    return {name: file_sha256(path) for name, path in found.items()}


def step_of(stage: Path) -> int:
    """The newest step that a stage's `metrics.jsonl` has whole."""
    path = stage / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return next((json.loads(line)["step"] for line in reversed(lines) if line.endswith("}")), 0)


def in_the_middle(lab, stage: Path, more: int = 0) -> None:
    """Wait until a stage has checkpoints and is far from its end; `more` than so many steps, when it continues."""
    slurm.wait_until(lambda: step_of(stage) >= more + 30, 900, f"the middle of {stage}", lab.queue)
    assert step_of(stage) < STEPS - 20


@pytest.fixture(scope="module")
def undisturbed(lab, tmp_path_factory, pipeline) -> Path:
    """The run folder of the whole pico pipeline, a SLURM job for each step."""
    runs = tmp_path_factory.mktemp("undisturbed")
    write_site(runs)
    with command_lines_with(CANARY) as seen:
        submit(lab, pipeline, runs)
        lab.wait_for_all(1800)
    assert not seen
    return runs / "pico"


def test_a_job_for_each_step_makes_the_whole_pipeline(lab, undisturbed):
    failed = [entry["name"] for entry in read_record(undisturbed)["steps"] if not _is_made(undisturbed, entry["name"])]
    assert not failed, "".join((undisturbed / "logs" / f"{name}.log").read_text()[-3000:] for name in failed[:2])
    for name in ("llm", "replay-sqa"):
        manifest = read_manifest(undisturbed / name)
        assert manifest.about["world_size"] == 2
        verify(undisturbed / name, manifest)
    summary = read_json(undisturbed / "evaluation" / "summary.json")
    assert len(summary["labels"]) == 14
    assert len(list((undisturbed / "logs").glob("evaluation.models_*.log"))) == 14
    assert "19 of 19 steps done" in status(lab, undisturbed)


def _is_made(run: Path, name: str) -> bool:
    return (run / name / "MANIFEST.json").is_file() and (name != "report" or (run / "report.html").is_file())


def test_no_script_log_or_record_shows_a_secret(lab, undisturbed):
    assert (undisturbed / ".env").stat().st_mode & 0o777 == 0o600
    assert (undisturbed / ".env").read_text().count(CANARY) == 2
    assert files_with(CANARY, undisturbed) == [str(undisturbed / ".env")]
    assert CANARY not in lab.logs() + lab.run(["scontrol", "show", "job"]).stdout
    assert len(list((undisturbed / "slurm").glob("*.sbatch"))) == 20


@pytest.fixture
def begun(undisturbed, tmp_path) -> Path:
    """A run folder in which only what the first stage needs is made."""
    run = tmp_path / "pico"
    for name in ("data", "random"):
        shutil.copytree(undisturbed / name, run / name, copy_function=os.link)
    return run


def test_one_job_preempted_twice_makes_the_same_weights(lab, undisturbed, pipeline, begun, tmp_path):
    """`sbatch pipeline.sbatch`: requeued in the middle of a stage, then at its time limit."""
    run = begun
    options = (f"--output={tmp_path}/log", "--time=60", "--signal=B:USR1@540")
    job = sbatch(lab, "pipeline", pipeline, f"runs={tmp_path}", options=options)
    in_the_middle(lab, run / "llm")
    lab.run(["scontrol", "requeue", job])
    slurm.wait_until(lambda: restarts(lab, job) == 1, 120, "requeued", lab.queue)
    assert not (run / "llm" / "MANIFEST.json").exists()

    limit(lab, job, 10)  # so near that it is asked to save as soon as SLURM looks at it
    slurm.wait_until(lambda: restarts(lab, job) == 2, 600, "requeued again", lab.queue)
    limit(lab, job, 60)
    said = (tmp_path / "log").read_text()
    assert "stopping: running steps save first" in said and f"job {job} goes back into the queue" in said, said[-4000:]
    facts = lab.wait(job, 2400)
    assert facts["JobState"] == "COMPLETED", (tmp_path / "log").read_text()[-4000:]
    assert weights(run, *WEIGHTS) == weights(undisturbed, *WEIGHTS)


def status(lab, run: Path) -> str:
    """What `slm status` says of a run."""
    done = lab.run([sys.executable, "-m", "slm", "status", run], cwd=ROOT, PYTHONPATH=str(ROOT), COLUMNS="200")
    return " ".join(done.stdout.split())


def restarts(lab, job) -> int:
    """How often a job was requeued."""
    return int(lab.facts(job)["Restarts"])


def limit(lab, job, minutes) -> None:
    """Give a job another time limit, as an administrator may."""
    lab.run(["scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}"])


def test_a_steps_job_continues_after_its_time_limit_and_after_a_requeue(lab, undisturbed, pipeline, begun, tmp_path):
    """The limit is so near from the start that SLURM asks the job to save as soon as it looks at it."""
    write_site(tmp_path, time="10", signal_s=570)
    job = submit(lab, pipeline, tmp_path, "--only", "llm")["llm"]
    slurm.wait_until(lambda: restarts(lab, job) == 1, 600, "requeued", lab.queue)
    limit(lab, job, 60)
    said = (begun / "logs" / "llm.log").read_text()
    assert "to be continued" in said and f"job {job} goes back into the queue" in said, said[-4000:]
    assert 0 < read_status(begun / "llm")["step"] < STEPS
    in_the_middle(lab, begun / "llm", more=read_status(begun / "llm")["step"])
    assert f"SLURM job {job}: running" in status(lab, begun)
    lab.run(["scontrol", "requeue", job])
    slurm.wait_until(lambda: restarts(lab, job) == 2, 120, "requeued again", lab.queue)
    facts = lab.wait(job, 900)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "2"), (begun / "logs" / "llm.log").read_text()[
        -4000:
    ]
    assert weights(begun, "llm/model") == weights(undisturbed, "llm/model")


def test_a_stage_submitted_by_hand_runs_on_both_nodes(lab, undisturbed, pipeline, begun, tmp_path):
    plan = make_plan(load_pipeline(pipeline, [f"runs={tmp_path}"]), launch=commands.in_a_batch_job)
    own = (f"--output={tmp_path}/log", "--time=60", "--nodes=2", "--ntasks-per-node=1")
    argv = [*plan.step("llm").argv[2:], "duration.steps=4"]
    job = sbatch(lab, "train", *argv, options=(*own, "--export=ALL,DS_ACCELERATOR=cpu"))
    assert lab.wait(job, 600)["JobState"] == "COMPLETED", (tmp_path / "log").read_text()[-4000:]
    assert read_manifest(begun / "llm").about["world_size"] == 2
    assert f"{begun / 'llm'}: done" in (tmp_path / "log").read_text()


PARTS, SHARES = 90, 3


@pytest.fixture
def job_file(tmp_path, pico_tokenizer) -> Path:
    """A shard-building job of many parts."""
    rows = [{"input": f"repeat twice: dog {i}", "output": "dog dog " * (i % 7)} for i in range(PARTS * 150)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl")}
    job = {"job": "shards", "recipe": "llm", "tokenizer": str(pico_tokenizer), "source": source, "part": 150}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**job, "workers": 1, "out": str(tmp_path / "alone")}))
    return tmp_path / "job.yaml"


def test_an_array_builds_shards_although_a_task_is_killed_and_another_preempted(lab, job_file, tmp_path):
    steps = {"set": {"kind": "data", "job": str(job_file), "shares": SHARES}}
    (tmp_path / "shards.yaml").write_text(yaml.safe_dump({"name": "shards", "steps": steps}))
    write_site(tmp_path)
    jobs = submit(lab, tmp_path / "shards.yaml", tmp_path)
    array, run = jobs["set.shares"], tmp_path / "shards"

    def parts_of(share: int) -> int:
        records = run.glob(".set.parts-*/.records/part-*.json")
        return sum(int(path.stem.partition("-")[2]) % SHARES == share for path in records)

    slurm.wait_until(lambda: parts_of(1) and parts_of(0), 300, "the first parts", lab.queue)
    for process in _processes_of(array, "1"):
        os.kill(process, signal.SIGKILL)
    lab.run(["scontrol", "requeue", f"{array}_0"])
    facts = lab.wait(jobs["set"], 600)
    logs = {path.name: path.read_text() for path in (run / "logs").iterdir()}
    assert facts["JobState"] == "COMPLETED", logs
    killed = lab.facts(f"{array}_1")
    assert killed["JobState"] == "FAILED" and killed["ExitCode"].startswith("137"), killed
    assert lab.facts(f"{array}_0")["Restarts"] == "1" and lab.facts(f"{array}_0")["JobState"] == "COMPLETED"
    assert f"of {PARTS} parts from before" in logs["set.log"]

    verify(run / "set")
    alone = subprocess.run(
        [sys.executable, "data_shards/build.py", job_file], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert read_manifest(run / "set").fingerprint == read_manifest(tmp_path / "alone").fingerprint, alone.stderr


def _processes_of(array: str, task: str) -> list[int]:
    """The builders of an array's task."""
    wanted = {f"SLURM_ARRAY_JOB_ID={array}".encode(), f"SLURM_ARRAY_TASK_ID={task}".encode()}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = set((folder / "environ").read_bytes().split(b"\0"))
            if wanted <= variables and b"--task" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    assert found, "the task's processes were not found"
    return found


def test_a_job_that_is_cancelled_stays_so(lab, job_file, tmp_path):
    job = sbatch(lab, "shards", job_file, options=(f"--output={tmp_path}/log", "--time=10"))
    slurm.wait_until(lambda: list(tmp_path.glob(".alone.parts-*/.records/part-*")), 300, "a part", lab.queue)
    lab.run(["scancel", job])
    lab.wait_for_all(120)
    facts = lab.facts(job)
    assert (facts["JobState"], facts["Restarts"]) == ("CANCELLED", "0"), (tmp_path / "log").read_text()


@pytest.fixture
def checkout(tmp_path) -> Path:
    """The top of a checkout whose `runs` lie in the test's own folder."""
    (tmp_path / "checkout").mkdir()
    for name in ("launcher", "slm", "ds_configs", "data_shards"):
        (tmp_path / "checkout" / name).symlink_to(ROOT / name)
    return tmp_path / "checkout"


def test_shards_are_submitted_by_hand_as_an_array(lab, job_file, tmp_path):
    options, argv = (f"--output={tmp_path}/%j.log", "--time=10"), (job_file, f"out={tmp_path}/set")
    array = sbatch(lab, "shards", *argv, options=(*options, "--array=0-1"))
    join = sbatch(lab, "shards", *argv, options=(*options, f"--dependency=afterok:{array}"))
    assert lab.wait(join, 600)["JobState"] == "COMPLETED"
    assert f"keeping {PARTS} of {PARTS} parts" in (tmp_path / f"{join}.log").read_text()
    verify(tmp_path / "set")


def test_models_are_evaluated_by_hand_as_an_array(lab, undisturbed, checkout, tmp_path):
    models = ("base", "llm")
    for name in models:
        copy = shutil.ignore_patterns("eval", "checkpoints")
        shutil.copytree(undisturbed / name, tmp_path / name, copy_function=os.link, ignore=copy)
    (tmp_path / "eval.yaml").write_text("tasks: {text_qa: {limit: 1, max_new_tokens: 4}}\n")
    argv = [tmp_path / "eval.yaml", f"data={undisturbed}/data", *(f"model={tmp_path / name}" for name in models)]
    options = (f"--output={tmp_path}/%a.log", "--time=10", "--array=0-1")
    array = sbatch(lab, "eval", *argv, options=options, cwd=checkout)
    lab.wait_for_all(600)
    states = [lab.facts(f"{array}_{i}")["JobState"] for i in (0, 1)]
    assert states == ["COMPLETED"] * 2, (tmp_path / "0.log").read_text()
    for i, name in enumerate(models):
        assert read_json(checkout / "runs" / f"slm-eval-{array}" / str(i) / "summary.json")["labels"] == [name]


def test_the_doctor_asks_both_nodes(lab, tmp_path):
    write_site(tmp_path)
    argv = ["doctor", "--slurm", "--nodes", "2", "--site", tmp_path / "site.yaml", "--shared", tmp_path, "--json"]
    done = lab.run([sys.executable, "-m", "slm", *argv], cwd=ROOT, check=False, PYTHONPATH=str(ROOT))
    findings = json.loads(done.stdout)["findings"]
    reachable = [finding for finding in findings if finding["check"] == "reachable"]
    assert len(reachable) == 2 and {finding["level"] for finding in reachable} == {"ok"}, done.stdout + done.stderr
    assert sum(finding["check"] == "network" for finding in findings) == 2


def test_nothing_is_left_in_the_queue(lab):
    time.sleep(1)
    assert lab.queue() == ""
