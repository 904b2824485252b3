"""From YAML to plan: the shipped pipelines, their commands, and what a bad YAML is told."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from slm.config.loader import load_config
from slm.config.stage import StageConfig
from slm.errors import ConfigError
from slm.pipeline import commands
from slm.pipeline.graph import states
from slm.pipeline.planner import load_pipeline, make_plan

TINY = "ds_configs/pipelines/tiny.yaml"
PICO = "ds_configs/pipelines/pico.yaml"
PAPER = "ds_configs/pipelines/paper.yaml"


@pytest.fixture(autouse=True)
def at_the_top(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])


def plan_of(path, *overrides):
    return make_plan(load_pipeline(path, overrides), cores=2, has_gpu=False)


def test_the_tiny_pipeline_has_both_chains_three_merges_and_the_discounts():
    plan = plan_of(TINY)
    kinds = [step.kind for step in plan.steps]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "data": 1,
        "tiny-base": 1,
        "train": 7,
        "expand": 1,
        "merge": 3,
        "discount": 4,
        "eval": 1,
        "report": 1,
    }
    assert plan.folder == Path("runs/quickstart")
    assert [step.name for step in plan.steps][:4] == ["data", "random", "llm", "base"]
    assert set(plan.steps[-1].needs) == {step.name for step in plan.steps[:-1]}


def test_pico_is_the_same_graph():
    graph = {step.name: (step.kind, set(step.needs)) for step in plan_of(TINY).steps}
    assert {step.name: (step.kind, set(step.needs)) for step in plan_of(PICO).steps} == graph


def test_the_papers_pipeline_starts_from_the_published_model_and_data():
    plan = plan_of(PAPER)
    chains = plan.config.steps["evaluation"].chains
    assert set(chains) == {"naive", "replay", "anchor"} and len(plan.steps) == 23
    assert plan.step("base").needs == ("text",)
    assert [step.shares for step in plan.steps if step.kind == "data"] == [16, 8, 8, 16]
    for step in plan.steps:
        if step.kind == "data":
            assert step.needs == ("base",) and step.job.tokenizer == "runs/paper/base"
    replay, anchor, naive = (plan.step(f"{chain}-sqa").job for chain in ("replay", "anchor", "naive"))
    assert [(source.shards, source.ratio) for source in replay.replay] == [
        ("runs/paper/llm", 0.05), ("runs/paper/asr", 0.05), ("runs/paper/tts", 0.05)
    ]  # fmt: skip
    assert anchor.anchor is not None and anchor.anchor.weight == 1e-3 and naive.anchor is None
    assert all(plan.step(f"{chain}-tts").job.model.also_train for chain in chains)
    argv = plan.step("base").argv
    assert "speech=data/speech/xlsr2_1b_v2" in argv and not [word for word in argv if word.startswith("tokenizer=")]


def test_a_train_command_reads_back_as_the_job_it_was_planned_with():
    step = plan_of(PICO).step("replay-sqa")
    argv = shlex.split(commands.shown(step.argv))
    overlays = [argv[i + 1] for i, part in enumerate(argv) if part == "--with"]
    overrides = [part for part in argv if "=" in part]
    again = load_config(StageConfig, argv[argv.index("--config") + 1], overrides, overlays)
    assert again == step.job
    assert [source.ratio for source in again.replay] == [0.1, 0.1, 0.1]
    assert again.model.previous == "runs/pico/replay-tts" and again.out == "runs/pico/replay-sqa"


def test_training_on_a_cpu_gets_its_ranks_and_threads():
    step = make_plan(load_pipeline(TINY), cores=8, has_gpu=True).step("llm")
    assert step.environment["DS_ACCELERATOR"] == "cpu" and step.environment["CUDA_VISIBLE_DEVICES"] == ""
    assert step.environment["OMP_NUM_THREADS"] == "4" and step.environment["LOCAL_SIZE"] == "2"
    assert step.argv[:5] == ("deepspeed", "--num_gpus", "2", "--master_port", "PORT")
    assert step.slots == 8


def test_on_a_gpu_nothing_is_forced():
    assert commands.train_environment(2, 8, has_gpu=True) == {}


@pytest.mark.parametrize(
    "value",
    ["true", "007", "a b", "x: y", "# no", "", "ünï", "[1]", "0.5", "runs/a-b_c.d", 0.1, None, True, [1, {"a": 2}]],
)
def test_every_value_survives_the_command_line(value):
    key, _, text = commands.override("a.b", value).partition("=")
    assert key == "a.b" and yaml.safe_load(f"value: {text}")["value"] == value


def test_before_anything_is_made_the_first_step_is_to_do_and_the_others_wait(tmp_path):
    found = states(plan_of(PICO, f"runs={tmp_path}"))
    assert found["data"].word == "missing" and found["llm"].why == "needs random, data"
    assert {state.word for state in found.values()} == {"missing", "waiting"}


def write(tmp_path, text):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    return path


BASE = f"name: x\nbase: {Path(__file__).parents[2] / PICO}\nsteps:\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  data: {jobs: a.yaml}\n", "p.yaml:4: steps.data.jobs: unknown key; did you mean 'job'?"),
        ("  new: {config: a.yaml}\n", "p.yaml:4: steps.new: needs kind"),
        ("  new: {kind: trian}\n", "p.yaml:4: steps.new: needs kind: one of 'data', 'tiny-base', 'import', 'train'"),
        ("  llm: {replay: {asr: 2}}\n", "p.yaml:4: steps.llm.replay.asr: expected less than or equal to 1, got 2"),
        (
            "  naive-tts: {previous: naive-ars}\n",
            "p.yaml:4: steps.naive-tts.previous: no step 'naive-ars'; there are: llm",
        ),
        (
            "  naive-tts: {base: data}\n",
            "p.yaml:4: steps.naive-tts.base: 'data' is a data step; expected one of: random",
        ),
        ("  naive-tts: {data: other/tts}\n", "p.yaml:4: steps.naive-tts.data: no data step 'other'; there are: data"),
        ("  a/b: {kind: data, job: data_shards/jobs/pico.yaml}\n", "p.yaml:4: steps.a/b: a name has letters"),
        ("  logs: {kind: data, job: data_shards/jobs/pico.yaml}\n", "'logs' is a folder of every run"),
        ("  evaluation: {chains: {naive: [base, x]}}\n", "p.yaml:4: steps.evaluation.chains.naive[1]: no model 'x'"),
        ("  llm: {set: {optim.learning_rate: 1}}\n", "optim.learning_rate: unknown key"),
        ("  data: {shares: 4}\n", "steps.data.shares: a job of this kind is built in one piece"),
        ("  base: {speech: data/speech}\n", "steps.base: needs one of data and speech, and not both"),
        ("  evaluation: {data: null}\n", "steps.evaluation: needs one of data and folder, and not both"),
        ("  data: {tokenizer: evaluation}\n", "steps.data.tokenizer: 'evaluation' is a eval step; expected one of"),
        ("  report: {set: {title: x}}\n", "p.yaml:4: steps.report.set.title: a report has no settings"),
        ("  linear: {set: {models: {base: x}}}\n", "p.yaml:4: steps.linear.set.models: a merge takes only 'seed' here"),
        ("  linear: {set: {out: x}}\n", "p.yaml:4: steps.linear.set.out: the folder is"),
        ("  llm: {set: {out: x}}\n", "p.yaml:4: steps.llm.set.out: the folder is"),
        ("  llm: {config: nowhere.yaml}\n", "nowhere.yaml: file not found"),
        ("  linear: {recipe: nowhere.yml}\n", "nowhere.yml: file not found (steps.linear.recipe)"),
        ("  base: {model: naive-asr}\n", "steps need each other: "),
    ],
)
def test_bad_pipelines_are_told_where(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        plan_of(write(tmp_path, BASE + text))
    assert message in str(caught.value)
    assert "tagged-union" not in str(caught.value)


def test_the_seed_of_a_merge_reaches_job_and_command(tmp_path):
    step = plan_of(write(tmp_path, BASE + "  linear: {set: {seed: 7}}\n")).step("linear")
    assert step.job.identity()["seed"] == 7 and step.argv[-2:] == ("--seed", "7")


def test_a_second_data_step_has_to_be_named(tmp_path):
    text = BASE + "  more: {kind: data, job: data_shards/jobs/pico.yaml}\n"
    with pytest.raises(ConfigError, match="say which data step: STEP/llm"):
        plan_of(write(tmp_path, text))


def test_hostile_names_are_refused(tmp_path):
    for name in ("a;rm -rf x", "-x", "a\nb", "x" * 300, "../up"):
        with pytest.raises(ConfigError, match="name"):
            load_pipeline(TINY, [f"name={commands.override('n', name).partition('=')[2]}"])


def test_a_step_that_builds_one_shard_set_is_named_by_itself(tmp_path):
    values = {
        "name": "own",
        "runs": str(tmp_path / "runs"),
        "steps": {
            "asr-data": {"kind": "data", "job": "data_shards/jobs/librispeech_asr.yaml", "set": {"tokenizer": "t"}},
            "text": {"kind": "data", "job": "data_shards/jobs/magpie_llm.yaml", "set": {"tokenizer": "t"}},
            "world": {"kind": "data", "job": "data_shards/jobs/pico.yaml"},
            "base": {"kind": "tiny-base", "data": "world"},
            "asr": {
                "kind": "train", "config": "ds_configs/tiny/asr.yaml", "base": "base", "data": "asr-data",
                "replay": {"text": 0.05, "world/llm": 0.1},
            },
        },
    }  # fmt: skip
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    plan = plan_of(str(path))
    assert set(plan.step("asr").needs) == {"base", "asr-data", "text", "world"}
    job, runs = plan.step("asr").job, tmp_path / "runs" / "own"
    assert job.data.shards == str(runs / "asr-data")
    assert [replay.shards for replay in job.replay] == [str(runs / "text"), str(runs / "world" / "shards" / "llm")]
    assert plan.step("asr-data").job.kind == "shards"
    assert "data_shards/build.py data_shards/jobs/librispeech_asr.yaml" in " ".join(plan.step("asr-data").argv)
    assert states(plan)["asr-data"].word in ("missing", "stale")


def test_steps_that_would_take_the_same_gpus_do_not_train_side_by_side():
    assert make_plan(load_pipeline(PICO), cores=8, has_gpu=True).step("naive-asr").slots == 1  # its device is cpu
    with pytest.raises(ConfigError, match=r"steps\.naive-asr\.slots: .* the same GPUs"):
        make_plan(load_pipeline(PICO, ["device=auto"]), cores=8, has_gpu=True)
