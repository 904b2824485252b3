"""The report of a made-up run: what it says, that it stands alone, and that nothing missing is shown as a number."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from slm.artifact import read_json, read_manifest, write_json
from slm.config.pipeline import Figure
from slm.errors import DataError
from slm.report.build import build_report
from slm.report.page import FLIPS, flipped
from slm.report.plots import smooth, spread_out
from slm.report.results import Results, job_of_run
from slm.report.sounds import Sounds
from slm.report.terminal import show_results
from slm.report.verdict import headline, sentences

FIGURES = [
    Figure(what="kept", model="replay-sqa", task="text_qa", at_least=0.85),
    Figure(what="advantage", model="replay-tts", minus="naive-tts", task="text_qa", at_least=0.9),
    Figure(what="word errors", model="replay-asr", task="asr", raw=True, at_most=0.35),
    Figure(what="unmeasured", model="dare", task="instructions", at_least=0.5),
]


class Reader(html.parser.HTMLParser):
    """Collects tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.ids, self.open, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.addresses += [value for key, value in named.items() if key in ("src", "href", "xlink:href")]
        self.ids += [named["id"]] if "id" in named else []

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(made_up_run, tmp_path_factory):
    """(job, html) of one report that several tests read."""
    job = made_up_run(tmp_path_factory.mktemp("report") / "run", figures=FIGURES)
    return job, build_report(job).read_text()


def test_the_page_stands_alone(page):
    _, text = page
    addresses = Reader(text).addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert not re.search(r"@import|url\(\s*['\"]?(https?:)?//|<link ", text)


def test_ids_are_unique(page):
    ids = Reader(page[1]).ids
    assert len(ids) == len(set(ids))


def test_the_headline_gives_what_was_lost_and_kept(page):
    text = Reader(page[1]).text
    assert "Teaching it to speak cost 88 % of its knowledge. Replay kept 93 %." in text
    assert "Trained on speech without replay (ASR → TTS → SQA) it is left with 12 %" in text


def test_sets_reported_apart_are_named_and_other_metrics_are_at_hand(page):
    assert page[1].count("Not in these means, reported apart: ASR random, spoken QA new.") == 2
    assert "wave_uer@1 0.42" in page[1]


def test_what_was_not_measured_is_hatched_and_never_zero(page):
    assert '<td class="missing" title="the set is empty">–</td>' in page[1]
    assert "? not measured" in page[1]


def test_expectations_are_judged(page):
    job, text = page
    assert [check.ok for check in Results(job).checks()] == [True, False, True, None]
    assert text.count("✓ reached") == 2 and text.count("✗ missed") == 1


def test_players_carry_question_reference_and_generated_speech(page):
    assert page[1].count("data:audio/wav;base64,") >= 4 * 4
    assert "no audio" not in Reader(page[1]).text


def test_text_of_a_model_can_not_become_markup(page):
    assert "<b>" not in page[1].replace("<b class=", "")
    assert "rome &lt;b&gt;" in page[1] or "rome \\u003cb>" in page[1]


def test_flipped_items_are_in_the_page_as_data(page):
    raw = re.search(r'<script id="items-data" type="application/json">(.*?)</script>', page[1], re.S).group(1)
    items = json.loads(raw)
    assert {item["way"] for item in items} == {"lost", "gained"}
    lost = next(item for item in items if item["task"] == "text QA" and item["way"] == "lost")
    assert lost["before"] == lost["target"] != lost["after"]
    heard = next(item for item in items if item["audio"])
    assert heard["audio"] == f"data/corpus/{heard['audio'].rsplit('/', 1)[1]}" and "units" not in heard["question"]


def test_plots_follow_the_theme(page):
    drawings = re.findall(r"<svg .*?</svg>", page[1], re.S)
    assert len(drawings) == 4
    assert all("var(--ink)" in svg or "var(--muted)" in svg for svg in drawings)
    assert "#01020" not in page[1]


def test_tables_and_picture_come_with_it(page):
    job, _ = page
    out = Path(job.out)
    assert (out / "heatmap.png").read_bytes()[:4] == b"\x89PNG"
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert len(rows) == 14 * 7
    assert [row["missing"] for row in rows if not row["score"]] == ["the set is empty"]
    assert "| replay-sqa | 0.91 | 0.85 | 0.32 |" in (out / "results.md").read_text()


def test_it_is_an_artifact_that_is_made_once(page):
    job, _ = page
    manifest = read_manifest(job.out, "report")
    before = (Path(job.out) / "report.html").stat().st_mtime_ns
    build_report(job)
    assert (Path(job.out) / "report.html").stat().st_mtime_ns == before
    build_report(job, again=True)
    assert (Path(job.out) / "report.html").stat().st_mtime_ns > before
    assert set(manifest.inputs) == {"evaluation", "llm"}


def test_a_run_folder_knows_its_report(page):
    job, _ = page
    assert job_of_run(Path(job.run)) == job
    with pytest.raises(DataError, match="no pipeline ran here"):
        job_of_run(Path(job.run) / "llm")


def test_the_closing_table_on_a_terminal(page):
    screen = Console(file=io.StringIO(), width=160)
    show_results(Path(page[0].run), screen)
    text = screen.file.getvalue()
    assert re.search(r"replay-sqa +0\.91 +0\.85 +0\.32", text)
    assert "✗ missed" in text and "? not measured" in text and "report.html" in text and "llm 55" in text


def test_a_run_that_was_not_evaluated_says_so(tmp_path):
    screen = Console(file=io.StringIO(), width=160)
    show_results(tmp_path, screen)
    assert "no results yet" in screen.file.getvalue()


def test_a_run_without_chains_without_audio_without_curves_still_has_a_page(made_up_run, tmp_path):
    job = made_up_run(tmp_path / "run", n=4)
    path = Path(job.evaluation) / "summary.json"
    summary = read_json(path)
    summary.update(chains={}, flips={})
    write_json(path, summary)
    (Path(job.run) / "pipeline.json").unlink()
    text = build_report(job).read_text()
    assert headline(Results(job)) == "A made-up run" and "<h2>Listen</h2>" not in text
    assert sentences(Results(job)) == ["This run compared no chain of stages on a text task."]


def test_a_chain_with_an_unmeasured_cell(made_up_run, tmp_path):
    job = made_up_run(tmp_path / "run", n=4)
    path = Path(job.evaluation) / "summary.json"
    summary = read_json(path)
    summary["scores"]["naive-tts"]["text_qa"] = {"score": None, "raw": None, "missing": "no such set"}
    summary["chains"]["naive"]["matrix"][2][0] = None
    write_json(path, summary)
    assert 'title="no such set"' in build_report(job).read_text()


def test_audio_beyond_the_budget_is_linked(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.wav").write_bytes(bytes(600))
    sounds = Sounds(tmp_path, budget=1000)
    assert sounds.source(tmp_path / "a.wav").startswith("data:audio/wav")
    assert sounds.source(tmp_path / "b.wav") == "b.wav"
    assert sounds.source(tmp_path / "missing.wav") is None


def test_labels_never_cover_each_other():
    placed = [y for y, _, _ in spread_out([(0.5, "a", ""), (0.51, "b", ""), (0.9, "c", "")], 0.1)]
    assert placed == [0.5, 0.6, 0.9]


def test_smoothing_bridges_gaps():
    import numpy as np

    assert smooth(np.array([1.0, np.nan, 3.0])).tolist() == [1.0, 2.0, 3.0]


def test_report_and_pipeline_need_no_torch():
    code = (
        "import sys, slm.report.page, slm.report.terminal, slm.pipeline.run, slm.pipeline.status\n"
        "import slm.pipeline.planner, slm.config.evaluation\n"
        "print([name for name in ('torch', 'transformers', 'deepspeed', 'librosa') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_more_flips_than_fit_leave_room_for_every_chain(made_up_run, tmp_path):
    results = Results(made_up_run(tmp_path / "run", n=200))
    flips = results.summary["flips"]
    one_chain = sum(
        len(pair.get(way, [])) for pairs in flips["naive"].values() for pair in pairs for way in ("lost", "gained")
    )
    assert one_chain > FLIPS
    shown, left_out = flipped(results, Sounds(tmp_path))
    asked = {
        (name, f"{pair['before']} → {pair['after']}", way)
        for name, tasks in flips.items()
        for pairs in tasks.values()
        for pair in pairs
        for way in ("lost", "gained")
        if pair.get(way)
    }
    assert len(shown) == FLIPS and left_out > 0
    assert {(item["chain"], item["step"], item["way"]) for item in shown} == asked
    assert [item["chain"] for item in shown] == sorted(item["chain"] for item in shown)
