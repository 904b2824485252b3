"""The page of figures: a benchmark replaces what it wrote before and nothing else."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "page", raising=False)
    return __import__("page")


def test_a_section_replaces_the_one_before_and_nothing_else(page, tmp_path):
    path = tmp_path / "benchmarks.md"
    begin, end = page.marks("loader")
    path.write_text(f"# A\n\n{begin}\nold\n{end}\n\nafter\n")
    for text in ("| a |", "| b |\n\n| c |"):
        page.write_section("loader", text, path)
        assert path.read_text() == f"# A\n\n{begin}\n{text}\n{end}\n\nafter\n"


def test_a_page_without_marks_gets_them_once(page, tmp_path):
    path = tmp_path / "benchmarks.md"
    for name in ("engine", "launch", "engine"):
        page.write_section(name, name.upper(), path)
    text = path.read_text()
    assert text.startswith("# Benchmarks\n") and text.count("ENGINE") == text.count("LAUNCH") == 1


def test_every_benchmark_that_writes_has_its_place(page):
    written = {
        name for path in BENCHMARKS.glob("*.py") for name in re.findall(r'write_section\("([\w-]+)"', path.read_text())
    }
    assert written >= {"engine", "generation", "launch", "loader", "speech", "tiny-world"}
    text = page.PAGE.read_text()
    assert [name for name in written if any(text.count(mark) != 1 for mark in page.marks(name))] == []
