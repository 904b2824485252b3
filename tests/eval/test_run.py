from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from slm.artifact import read_json, read_manifest, verify
from slm.config.evaluation import RULES, EvalJob
from slm.config.loader import from_mapping
from slm.engine.load import load_any
from slm.errors import ConfigError, DataError
from slm.eval import run
from slm.eval.run import summary_table
from slm.eval.summary import summarise

run_evaluation = partial(run.run_evaluation, load=load_any)
SETS = ("text_qa", "instructions", "asr", "tts", "sqa")


def job(world, out, models, **more) -> EvalJob:
    return from_mapping(EvalJob, values_of(world, out, models, **more), "test")


def values_of(world, out, models, **more) -> dict:
    return {
        "out": str(out),
        "data": str(world.data),
        "models": {label: str(folder) for label, folder in models.items()},
        "tasks": {name: {} for name in SETS},
        "workers": 1,
        "bootstrap": 50,
        "samples": 1,
    } | more


@pytest.fixture(scope="module")
def evaluated(world, learned, ignorant, text_only, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "evaluations"
    models = {"text": text_only, "ignorant": ignorant, "learned": learned}
    chains = {"learning": ["text", "learned"], "losing": ["learned", "ignorant"]}
    wanted = job(world, out, models, chains=chains)
    return wanted, run_evaluation(wanted)


def test_a_model_that_knows_everything_scores_one(evaluated):
    _, summary = evaluated
    scores = summary["scores"]["learned"]
    assert {task: scores[task]["score"] for task in SETS} == dict.fromkeys(SETS, 1.0)
    assert scores["asr"]["raw"] == 0.0 and scores["asr"]["less_is_better"]
    assert scores["text_qa"]["ci"] == [1.0, 1.0] and scores["text_qa"]["n"] == 4
    tts = scores["tts"]["metrics"]
    assert tts["malformed@1"] == 0 and tts["text_wer@1"] == 0
    assert tts["resynthesis_uer@1"] == tts["ceiling_uer@1"]
    sqa = scores["sqa"]["metrics"]
    assert (sqa["transcript_wer@1"], sqa["speech@1"]) == (0.0, 1.0)
    assert max(summary["scores"]["ignorant"][task]["score"] for task in ("text_qa", "instructions", "sqa")) == 0.0


def test_missing_is_missing(evaluated, text_only):
    _, summary = evaluated
    row = summary["scores"]["text"]
    assert row["asr"] == {"score": None, "raw": None, "missing": "the model has no speech units"}
    assert row["text_qa"]["score"] == 0.0
    assert not (text_only / "eval" / "asr" / "items.jsonl").exists()
    matrix = summary["chains"]["learning"]["matrix"]
    assert matrix[0][2:] == [None, None, None] and matrix[1] == [1.0] * 5


def test_chains_and_flips(evaluated):
    _, summary = evaluated
    losing = summary["chains"]["losing"]
    assert losing["learned"] == [0, 0, 1, 2, 3]
    assert losing["backward_transfer"]["value"] == -1.0 and losing["forgetting"]["value"] == 1.0
    assert losing["retention"] == {"value": 0.0, "ci": [0.0, 0.0]}
    (flip,) = summary["flips"]["losing"]["text_qa"]
    assert flip["lost"] == [f"text_qa-{i}" for i in range(4)] and flip["gained"] == []
    assert flip["p"] == pytest.approx(2 * 0.5**4) and flip["p_holm"] >= flip["p"]
    assert summary["flips"]["losing"]["asr"][0]["p"] is None


def test_a_set_that_is_reported_apart_is_in_the_matrix_and_not_in_the_means(evaluated):
    wanted, summary = evaluated
    every = summary["chains"]["losing"]
    assert every["apart"] == []
    tasks = {name: {"in_means": name in ("text_qa", "sqa")} for name in SETS}
    some = from_mapping(EvalJob, wanted.model_dump() | {"tasks": tasks}, "test")
    assert some.model_identity() == wanted.model_identity() and some.identity() != wanted.identity()
    losing = summarise(some, wanted.out)["chains"]["losing"]
    assert losing["apart"] == ["instructions", "asr", "tts"] and losing["matrix"] == every["matrix"]
    # Of the two that count, sqa belongs to a later stage than the chain's last.
    assert losing["average_score"]["value"] == every["matrix"][-1][SETS.index("text_qa")]
    assert losing["by_task"] == every["by_task"]


def test_a_changed_rule_makes_old_results_stale(evaluated, monkeypatch):
    wanted, _ = evaluated
    before, all_before = wanted.model_identity(), wanted.identity()
    monkeypatch.setitem(RULES, "asr", ("wer@2", "sentence@1"))
    assert wanted.model_identity() != before and wanted.identity() != all_before
    assert wanted.model_identity()["rules"]["asr"] == ["wer@2", "sentence@1"]


def test_what_lies_on_disk(evaluated, world, learned):
    wanted, _ = evaluated
    written = read_json(Path(wanted.out) / "summary.json")
    assert written["scores"]["learned"]["tts"]["score"] == 1.0
    assert (Path(wanted.out) / written["folders"]["learned"] / "asr" / "results.json").is_file()
    verify(wanted.out)
    folder = learned / "eval"
    manifest = verify(folder)
    assert manifest.inputs == {
        "model": read_manifest(learned).fingerprint,
        "data": read_manifest(world.data).fingerprint,
    }
    records = [json.loads(line) for line in (folder / "sqa" / "items.jsonl").read_text().splitlines()]
    assert len(records) == 4
    assert records[0]["scores"]["em@1"] == 1.0 and records[0]["counts"]["em@1"] == [1.0, 1.0]
    assert "<|" in records[0]["output"] and "<|" not in records[0]["text"]
    assert [bool(record["audio"]["generated"]) for record in records] == [True, False, False, False]
    assert (folder / records[0]["audio"]["generated"]).stat().st_size > 1000
    assert read_json(folder / "asr" / "results.json")["decoding"]["greedy"]


def test_what_is_done_is_not_done_again(evaluated, monkeypatch):
    wanted, summary = evaluated
    monkeypatch.setattr(run, "evaluate_model", lambda *_: pytest.fail("evaluated again"))
    assert run_evaluation(wanted)["scores"].keys() == summary["scores"].keys()


def test_another_model_costs_one_evaluation(evaluated, world, learned, ignorant, tmp_path, monkeypatch):
    asked = []
    real = run.evaluate_model
    monkeypatch.setattr(run, "evaluate_model", lambda ref, *rest: (asked.append(ref), real(ref, *rest)))
    copy = shutil.copytree(ignorant, tmp_path / "copy", ignore=shutil.ignore_patterns("eval"))
    run_evaluation(job(world, tmp_path / "out", {"learned": learned, "copy": copy}))
    assert asked == [str(copy)]


def test_workers_give_the_same_figures(evaluated, world, learned, ignorant, tmp_path):
    _, summary = evaluated
    models = {}
    for name, folder in {"learned": learned, "ignorant": ignorant}.items():
        models[name] = shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("eval"))
    apart = run_evaluation(job(world, tmp_path / "out", models, workers=2, tasks={"text_qa": {}, "asr": {}}))
    for label in models:
        for task in ("text_qa", "asr"):
            assert apart["scores"][label][task] == summary["scores"][label][task]


def test_a_fault_in_a_worker_is_one_typed_error(world, learned, tmp_path):
    models = {name: shutil.copytree(learned, tmp_path / name) for name in ("a", "b")}
    with pytest.raises(DataError, match="no evaluation set 'nothing'"):
        run_evaluation(job(world, tmp_path / "out", models, workers=2, tasks={"nothing": {"scorer": "asr"}}))
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("*/.eval*"))


def _group_lives(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


def test_asked_to_stop_it_leaves_nothing_half_written_and_continues(world, learned, tmp_path):
    models = {}
    for number in range(6):
        folder = tmp_path / f"model{number}"
        models[f"m{number}"] = shutil.copytree(learned, folder, ignore=shutil.ignore_patterns("eval"))
    config = tmp_path / "eval.yaml"
    config.write_text(json.dumps(values_of(world, tmp_path / "out", models, workers=2)))
    process = subprocess.Popen(
        [sys.executable, "-m", "slm.eval", str(config)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while "[1/30]" not in (line := process.stderr.readline()):
        assert line, "ended before its first result"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 85, said
    assert "Traceback" not in said and "run the same command again" in said
    deadline = time.monotonic() + 20
    while _group_lives(process.pid):
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.1)
    assert not list(tmp_path.glob("*/.eval*")) and not (tmp_path / "out").exists()
    again = subprocess.run([sys.executable, "-m", "slm.eval", str(config)], capture_output=True, text=True, timeout=120)
    assert again.returncode == 0 and "summary.json" in again.stdout
    assert read_json(tmp_path / "out" / "summary.json")["scores"]["m5"]["asr"]["score"] == 1.0


def test_other_units_are_refused(world, pico_base, tmp_path):
    model = shutil.copytree(pico_base, tmp_path / "model")
    with pytest.raises(DataError, match="other speech units"):
        run_evaluation(job(world, tmp_path / "out", {"model": model}))


def test_data_that_nobody_sealed_counts_by_its_content(world, learned, tmp_path):
    plain = shutil.copytree(world.data, tmp_path / "data", ignore=shutil.ignore_patterns("MANIFEST.json"))
    wanted = job(world, tmp_path / "out", {}, model=str(learned), data=str(plain))
    inputs = wanted.fingerprints()
    assert inputs["data"] == run.folder_fingerprint(plain) and len(inputs) == 2
    with open(plain / "eval" / "text_qa.jsonl", "a") as file:
        file.write("\n")
    assert wanted.fingerprints()["data"] != inputs["data"]
    shutil.rmtree(plain)
    with pytest.raises(DataError, match="no finished artifact"):
        wanted.fingerprints()


def test_a_plain_model_folder_can_be_evaluated(world, learned, tmp_path):
    plain = shutil.copytree(learned, tmp_path / "plain", ignore=shutil.ignore_patterns("eval", "MANIFEST.json"))
    wanted = job(world, tmp_path / "out", {}, model=str(plain), tasks={"text_qa": {"limit": 2}})
    assert run_evaluation(wanted)["scores"]["plain"]["text_qa"]["n"] == 2
    before = run.folder_fingerprint(plain)
    assert before == read_manifest(plain / "eval").inputs["model"]
    with pytest.raises(DataError, match="folder not found"):
        run.folder_fingerprint(tmp_path / "nowhere")


def test_different_normalisers_are_not_compared(world, learned, ignorant, tmp_path, monkeypatch):
    models = {}
    for name, folder in {"new": learned, "old": ignorant}.items():
        models[name] = shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("eval"))
    tasks = {"asr": {}}
    run_evaluation(job(world, tmp_path / "one", {"new": models["new"]}, tasks=tasks))
    monkeypatch.setattr("slm.eval.evaluate.normaliser_name", lambda: "another")
    with pytest.raises(DataError, match="different text normalisers"):
        run_evaluation(job(world, tmp_path / "two", models, tasks=tasks))


def test_the_table(evaluated):
    from rich.console import Console

    console = Console(width=140, file=io.StringIO())
    console.print(summary_table(evaluated[1]))
    text = console.file.getvalue()
    assert "wer ↓" in text and "learned" in text and "–" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {}}, "nothing to evaluate"),
        ({"chains": {"c": ["learned", "lost"]}}, "'lost'"),
        ({"chains": {"c": ["learned"]}}, "needs 2 to 4"),
        ({"tasks": {"text_qa": {"limt": 3}}}, "did you mean 'limit'"),
    ],
)
def test_bad_configurations(world, learned, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(EvalJob, values_of(world, tmp_path, {"learned": learned}) | change, "test")


def test_identity_holds_what_changes_the_figures(world, tmp_path):
    one = job(world, tmp_path, {"a": "x"})
    assert job(world, tmp_path / "b", {"a": "y"}, workers=3, batch_size=2).identity() == one.identity()
    assert job(world, tmp_path, {"a": "x"}, seed=1).identity() != one.identity()
    assert job(world, tmp_path, {"b": "x"}).identity() != one.identity()
    assert job(world, tmp_path, {"b": "x"}).model_identity() == one.model_identity()
    assert set(one.inputs()) == {"data", "model/a"}


def test_each_worker_takes_the_next_gpu(monkeypatch):
    taken = []
    monkeypatch.setattr(run, "take_own_gpu", taken.append)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(run.threading, "Thread", lambda **_: SimpleNamespace(start=lambda: None))
    monkeypatch.setattr(run, "_lines", None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    numbers = multiprocessing.get_context("spawn").Value("i", 0)
    for _ in range(2):
        run._start_worker(None, numbers)
    assert taken == [0, 1]
