"""The engine's benchmark: rows, the choice of the best contender, the check of losses, the table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("engine_data", "engine_table", "engine_ours", "engine_contenders", "engine")


@pytest.fixture
def modules(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return {name: __import__(name) for name in NAMES}


@pytest.fixture
def documents(modules, tmp_path):
    data = modules["engine_data"]
    data.write_documents(tmp_path / "documents.npz", data.SIZES["pico"])
    return data.read_documents(tmp_path / "documents.npz")


def rank(seconds, losses, peak=100.0):
    steps = [
        {"seconds": seconds, "cpu": 2 * seconds, "loss": loss, "supervised": 90, "tokens": 200, "pairs": 3000}
        for loss in losses
    ]
    return {"peak_mb": peak, "imports_mb": 300.0, "steps": steps}


def result(modules, name, kind, seconds, losses=(5.0, 4.0, 3.0), ranks=2, **job):
    found = modules["engine_table"].Result(modules["engine_data"].Job(name, kind, ranks, size="pico", **job))
    for took in seconds:
        found.add([rank(took, losses)] * ranks)
    return found


def test_a_step_holds_each_of_its_documents_once_in_equal_rows(modules, documents):
    ours, size = modules["engine_ours"], modules["engine_data"].SIZES["pico"]
    assert ours.rows_of_step(size, 2) == 2 and ours.rows_of_step(size, 1) == 2
    feeds = [ours.Feed(documents, size, place, 2) for place in (0, 1)]
    rows = [row for feed in feeds for row in feed.step(1)]
    lengths = [len(row.ids) for row in rows]
    wanted = documents[size.documents : 2 * size.documents]
    assert sorted(length for row in rows for length in row.lengths) == sorted(len(ids) for ids, _ in wanted)
    assert max(lengths) - min(lengths) <= max(len(ids) for ids, _ in wanted)
    ids = np.concatenate([row.ids for row in rows])
    np.testing.assert_array_equal(np.sort(ids), np.sort(np.concatenate([ids for ids, _ in wanted])))


def test_trainers_are_credited_with_the_same_work(modules, documents):
    data, contenders = modules["engine_data"], modules["engine_contenders"]
    whole = data.work_of(documents[:3])
    labels = [np.where(mask, ids, -100) for ids, mask in documents[:3]]
    rows = [{"input_ids": ids, "labels": label} for (ids, _), label in zip(documents, labels, strict=False)]
    packed = {
        "input_ids": np.concatenate([ids for ids, _ in documents[:3]]),
        "completion_mask": np.concatenate([mask for _, mask in documents[:3]]).astype(int),
        "seq_lengths": [len(ids) for ids, _ in documents[:3]],
    }
    for fed in (rows, [packed]):
        assert data.work_of([one for row in fed for one in contenders.fed_documents(row)]) == whole
    lengths = [len(ids) for ids, _ in documents[:3]]
    assert whole["tokens"] == sum(lengths) and whole["pairs"] == sum(n * (n + 1) // 2 for n in lengths)
    assert whole["supervised"] == sum(int(mask[1:].sum()) for _, mask in documents[:3])


def test_medians_of_rounds_and_ratios_against_the_fastest_other(modules):
    tables = modules["engine_table"]
    ours = result(modules, "ours", "ours", [1.0, 4.0, 2.0])
    fast, slow = result(modules, "fast", "hf", [8.0, 10.0]), result(modules, "slow", "trl", [30.0], ranks=1)
    failed = tables.Result(modules["engine_data"].Job("failed", "hf", 2, size="pico"), failure="out of memory")
    results = [ours, fast, slow, failed]
    assert ours.rate == 45 and ours.peak_mb == 200 and ours.tokens_rate == 100
    assert tables.best_other(results) is fast and tables.to_repeat(results) == [ours, fast]
    lines = tables.table("pico", results, None).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    cells = [cell.strip() for cell in lines[2].split("|")]
    assert cells[1:11] == ["ours", "3", "45", "22–90", "4.44", "4.44", "11", "4.44", "100", "200"]
    assert "fast **(best other)**" in lines[3] and "out of memory" in lines[5]


def test_other_losses_are_a_fault_unless_the_rows_are_others(modules):
    tables = modules["engine_table"]
    ours = result(modules, "ours", "ours", [1.0])
    same = result(modules, "same", "hf", [1.0], (5.0, 4.00003, 3.0))
    other = result(modules, "other", "hf", [1.0], (5.0, 4.0, 3.0001))
    packed = result(modules, "packed", "trl", [1.0], (9.0, 9.0), packing=True)
    assert tables.other_losses([ours, same, other, packed]) == ["other: losses differ by 3.3e-05"]
    assert tables.deviation(same, ours) == pytest.approx(7.5e-6) and tables.deviation(packed, ours) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("contenders", "only"), [("cpu", "ZeRO-3"), ("cuda", "chunk 512"), ("cuda", "checkpointing all, micro")]
)
def test_both_lists_run_on_a_pico_model_with_the_same_losses(tmp_path, contenders, only):
    options = ["--sizes", "pico", "--no-page", "--rounds", "1", "--contenders", contenders, "--only", only]
    command = [sys.executable, str(BENCHMARKS / "engine.py"), *options, "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout and done.stdout.count("round 1") >= 2
    assert json.loads((tmp_path / "pico" / "contender" / "rank0.json").read_text())["peak_mb"] > 0
