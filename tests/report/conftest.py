"""A run folder as pipeline and evaluation leave it, with figures made up for the tests."""

from __future__ import annotations

import itertools
import json
import math
import random
import struct
import wave
from pathlib import Path

import pytest

from slm.artifact import read_manifest, write_json, write_manifest
from slm.config.report import ReportJob

TASKS = {
    "text_qa": ("llm", "em@1", False),
    "instructions": ("llm", "followed@1", False),
    "asr": ("asr", "wer@1", True),
    "asr_random": ("asr", "wer@1", True),
    "tts": ("tts", "unit_error_rate@1", True),
    "sqa": ("sqa", "em@1", False),
    "sqa_new_voices": ("sqa", "em@1", False),
}
STAGES = ["llm", "asr", "tts", "sqa"]
SCORES = {
    "base": [0.98, 0.95, 0.0, 0.0, 0.02, 0.0, 0.0],
    "naive-asr": [0.03, 0.02, 0.71, 0.32, 0.05, 0.0, 0.0],
    "naive-tts": [0.01, 0.0, 0.08, 0.02, 0.62, 0.01, 0.0],
    "naive-sqa": [0.12, 0.0, 0.11, 0.04, 0.21, 0.94, 0.71],
    "replay-asr": [0.95, 0.9, 0.69, 0.3, 0.04, 0.02, 0.0],
    "replay-tts": [0.86, 0.83, 0.66, 0.27, 0.6, 0.05, 0.02],
    "replay-sqa": [0.91, 0.85, 0.68, 0.3, 0.55, 0.93, 0.74],
    "linear": [0.14, 0.01, 0.1, 0.05, 0.2, 0.9, 0.68],
    "ties": [0.22, 0.05, 0.2, 0.1, 0.25, 0.85, 0.6],
    "dare": [0.19, 0.04, 0.18, 0.1, 0.24, 0.86, 0.62],
    "scale-0.25": [0.83, 0.7, 0.01, 0.0, 0.03, 0.02, 0.0],
    "scale-0.50": [0.55, 0.4, 0.05, 0.01, 0.1, 0.31, 0.2],
    "scale-0.75": [0.3, 0.12, 0.1, 0.04, 0.18, 0.78, 0.55],
    "scale-0.50-all": [0.7, 0.5, 0.02, 0.0, 0.05, 0.1, 0.06],
}
CHAINS = {name: ["base", *(f"{name}-{stage}" for stage in STAGES[1:])] for name in ("naive", "replay")}


def write_wave(path: Path, pitch: float, seconds: float = 0.3):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        count = int(16000 * seconds)
        file.writeframes(b"".join(struct.pack("<h", int(9000 * math.sin(pitch * i / 2500))) for i in range(count)))


def item(label, task, i, right, chance):
    stage, metric, error = TASKS[task]
    target = {"answer": ["paris", "blue", "woof"][i % 3]}
    question = ["what is the capital of france", "what colour is the sky", "what does a dog say"][i % 3]
    answer = target["answer"] if right else chance.choice(["rome <b>", "moo", ""])
    audio = {"question": None, "reference": None, "generated": None}
    text = answer
    if stage in ("asr", "sqa"):
        audio["question"] = f"corpus/q{i}.wav"
        target["text"] = question
        text = f"{question}\n\n{answer}\n\n{answer}" if stage == "sqa" else (question if right else "what is")
    if stage in ("tts", "sqa") and i < 4:
        audio.update(generated=f"samples/{task}-{i}.wav", reference=f"corpus/a{i}.wav")
        target.setdefault("text", question)
    return {
        "id": f"{task}-{i}",
        "task": task,
        "prompt": question if stage == "llm" else f"units {i}",
        "target": target,
        "output": text,
        "text": text,
        "scores": {metric: float(not right if error else right)},
        "counts": {metric: [float(not right if error else right), 1.0]},
        "flags": [],
        "tags": [],
        "audio": audio,
    }


def write_items(folder: Path, label, n):
    chance = random.Random(label)
    right = {}
    for task, score in zip(TASKS, SCORES[label], strict=True):
        hits = {i for i in range(n) if random.Random(f"{task}{i}").random() < score}
        records = [item(label, task, i, i in hits, chance) for i in range(n)]
        path = folder / task / "items.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        right[task] = hits
        for record in records:
            if record["audio"]["generated"]:
                write_wave(folder / record["audio"]["generated"], 300, 0.2)
    return right


def entry(task, score):
    _, metric, error = TASKS[task]
    low, high = max(0.0, score - 0.06), min(1.0, score + 0.05)
    raw = 1 - score if error else score
    found = {"score": score, "raw": raw, "metric": metric, "less_is_better": error, "n": 120, "ci": [low, high]}
    return {**found, "metrics": {metric: raw, **({"wave_uer@1": 0.42} if task == "tts" else {})}}


def chain_of(labels):
    learned = [STAGES.index(stage) for stage, _, _ in TASKS.values()]
    measures = {"backward_transfer": {"value": -0.4}, "forgetting": {"value": 0.5}, "average_score": {"value": 0.6}}
    matrix = [SCORES[label] for label in labels]
    common = {"labels": labels, "tasks": list(TASKS), "stages": STAGES, "learned": learned, "matrix": matrix}
    return {**common, "apart": ["asr_random", "sqa_new_voices"], **measures}


def flips_of(labels, right):
    pairs = [*itertools.pairwise(labels), (labels[0], labels[-1])]
    return {
        task: [
            {
                "before": a,
                "after": b,
                "lost": [f"{task}-{i}" for i in sorted(right[a][task] - right[b][task])],
                "gained": [f"{task}-{i}" for i in sorted(right[b][task] - right[a][task])],
            }
            for a, b in pairs
        ]
        for task in ("text_qa", "sqa")
    }


def write_metrics(folder: Path, sources, steps=200):
    chance = random.Random(folder.name)
    lines = []
    for step in range(1, steps + 1):
        record = {"step": step, "steps": steps, "loss": 4 * math.exp(-step / 60) + 0.2 + 0.05 * chance.random()}
        share = {f"share/{name}": (0.1 / (1 + 0.1 * (len(sources) - 1))) for name in sources[1:]}
        record |= {**share, f"share/{sources[0]}": 1 - sum(share.values()), "tokens_per_s": 9000.0}
        lines.append(json.dumps(record))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def kind_and_config(label):
    if label == "base":
        return "base", {}
    if label.startswith("scale"):
        return "discount", {"scale": float(label.split("-")[1]), "scope": "all" if label.endswith("all") else "lora"}
    if label in ("linear", "ties", "dare"):
        return "merged", {}
    earlier = STAGES.index(label.split("-")[1])
    return "stage", {"replay": [{"ratio": 0.1, "by": "rows"}] * earlier if label.startswith("replay") else []}


@pytest.fixture(scope="session")
def made_up_run():
    """`made_up_run(folder, n=12)`: fills a run folder; returns the job of its report."""

    def make(run, n=12, figures=()):
        right, steps = {}, []
        for i in range(min(n, 12)):
            write_wave(run / "data" / "corpus" / f"q{i}.wav", 200)
            write_wave(run / "data" / "corpus" / f"a{i}.wav", 260)
        (run / "llm").mkdir(parents=True)
        write_metrics(run / "llm", ["llm"])
        write_manifest(run / "llm", "stage", config={"replay": []})
        steps.append(step_entry(run, "llm", "train", []))
        for label in SCORES:
            folder = run / label
            folder.mkdir(parents=True)
            kind, config = kind_and_config(label)
            if kind == "stage":
                own = label.split("-")[1]
                write_metrics(folder, [own, *STAGES[: len(config["replay"])]])
            write_manifest(folder, kind, config=config)
            right[label] = write_items(folder / "eval", label, n)
            chain = next((labels for labels in CHAINS.values() if label in labels), ["base", label])
            needs = ["llm"] if label == "base" else [chain[max(0, chain.index(label) - 1)]]
            steps.append(step_entry(run, label, {"stage": "train", "base": "expand"}.get(kind, kind), needs))
        summary = {
            "labels": list(SCORES),
            "tasks": list(TASKS),
            "stages": {task: stage for task, (stage, _, _) in TASKS.items()},
            "data": "../data",
            "folders": {label: f"../{label}/eval" for label in SCORES},
            "scores": {la: {t: entry(t, s) for t, s in zip(TASKS, row, strict=True)} for la, row in SCORES.items()},
            "chains": {name: chain_of(labels) for name, labels in CHAINS.items()},
            "flips": {name: flips_of(labels, right) for name, labels in CHAINS.items()},
        }
        summary["scores"]["dare"]["instructions"] = {"score": None, "raw": None, "missing": "the set is empty"}
        (run / "evaluation").mkdir()
        write_json(run / "evaluation" / "summary.json", summary)
        write_manifest(run / "evaluation", "evaluations", config={})
        job = ReportJob(
            out=str(run / "report"),
            run=str(run),
            evaluation=str(run / "evaluation"),
            steps={"llm": str(run / "llm")},
            title="A made-up run",
            figures=list(figures),
        )
        record = {
            "name": "made-up",
            "steps": steps,
            "machine": {"system": "Linux x86_64", "cores": 2, "memory_gib": 8.0, "python": "3.11"},
            "revision": "0123456789ab",
            "report": job.model_dump(mode="json"),
        }
        write_json(run / "pipeline.json", record)
        assert read_manifest(run / "evaluation").kind == "evaluations"
        return job

    return make


def step_entry(run, name, kind, needs):
    seconds = {"train": 55.0, "merged": 9.0, "discount": 5.0}.get(kind, 12.0)
    command = f"deepspeed --num_gpus 2 launcher/train.py --config ds_configs/tiny/{name}.yaml out={run}/{name}"
    return {
        "name": name,
        "kind": kind,
        "folder": str(run / name),
        "needs": needs,
        "seconds": seconds,
        "command": command,
    }
