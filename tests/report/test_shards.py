"""The statistics page: self-contained, safe against what names hold, and with the plots that apply."""

from __future__ import annotations

import re

import pytest

from slm.report.shards import remarks, render_shards


@pytest.fixture
def facts():
    """What `slm.data.inspect.statistics` gives, in the small."""
    return {
        "folder": "data/asr", "name": "asr", "fingerprint": "f" * 64, "recipe": "asr",
        "vocabulary": {"size": 12, "units": {"count": 4, "extractor": "mel_kmeans", "rate_hz": 25.0}},
        "shards": 1, "groups": 4, "samples": 100, "tokens": 1000, "labels": 400, "bytes": 4200, "longest": 20,
        "mean": 10.0, "quantiles": {"0.5": 9, "0.99": 19}, "empty": 2, "dropped": 3,
        "kinds": {"prompt text": 0.3, "prompt units": 0.3, "label text": 0.2, "label units": 0.2},
        "read": {"groups": 2, "samples": 50, "tokens": 500},
        "lengths": {"edges": [0, 10, 20], "counts": [60, 40]}, "places": [[1, 0, 0, 0], [0, 0, 0.5, 0.5]],
        "label_shares": [3, 0, 0, 0, 47, 0, 0, 0, 0, 0],
        "units": {"count": 4, "used": 3, "perplexity": 2.9, "counts": [30, 20, 10, 0]},
        "text_used": 7, "text_size": 8, "duplicates": 5,
        "fill": {512: {"rows": 2, "packed": 0.98, "alone": 0.02}},
    }  # fmt: skip


def test_a_page_needs_nothing_else_and_has_a_plot_for_everything(facts):
    html = render_shards([facts, facts | {"name": "tts"}])
    assert html.count("<svg") == 1 + 2 * 4
    assert not re.search(r"(src|href)=\"(?!#)", html) and "@import" not in html
    assert "#0102" not in html  # placeholder colours have become the page's
    assert "2,000 tokens in 200 samples" in html
    for anchor in re.findall(r'href="#(\w+)"', html):
        assert f'id="{anchor}"' in html


def test_plots_that_do_not_apply_are_left_out(facts):
    html = render_shards([facts | {"units": None, "fill": {}}])
    assert html.count("<svg") == 3 and "Use of units" not in html


def test_names_are_text_and_no_html(facts):
    html = render_shards([facts | {"name": "<b>x</b>", "folder": "<script>"}])
    assert "<b>x</b>" not in html and "<script>" not in html and "&lt;b&gt;" in html


def test_remarks_say_what_is_worrying_first(facts):
    said = remarks(facts)
    assert said[0].startswith("5 of 50 samples (10.0%) equal an earlier one")
    assert said[1].startswith("3 samples have labels on less than a tenth")
    assert "3 of 4 units" in said[2] and said[-1] == "estimated from 2 of 4 groups"
    good = facts | {"duplicates": 0, "label_shares": [0] * 10, "units": None, "groups": 2}
    assert remarks(good) == ["7 of 8 text tokens are used"]
