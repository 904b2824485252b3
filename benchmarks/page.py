"""The page of measured figures: every benchmark keeps its tables between marks of its own."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"


def marks(name: str) -> tuple[str, str]:
    """The lines around what the benchmark `name` wrote."""
    return f"<!-- {name} begin -->", f"<!-- {name} end -->"


def write_section(name: str, text: str, page: Path = PAGE) -> None:
    """Put the text between the marks of `name`, in place of what was there; a page without any gets them at its end."""
    begin, end = marks(name)
    content = page.read_text() if page.is_file() else "# Benchmarks\n"
    if begin not in content:
        content = f"{content.rstrip()}\n\n{begin}\n{end}\n"
    before, _, rest = content.partition(begin)
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")
