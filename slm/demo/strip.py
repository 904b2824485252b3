"""A spoken answer as a strip: a cell for each unit, the words above the units that speak them."""

from __future__ import annotations

import html
from collections.abc import Sequence

from slm.tokens.vocabulary import split_runs

CELL, HEIGHT, LABEL = 9, 26, 18
"""Pixels: width and height of a unit's cell, height of the line of words."""
WIDEST = 96
"""Cells in a row of the strip; longer answers go on in the next."""
GOLDEN_ANGLE = 137.508
"""Degrees of hue between units of neighbouring numbers: the most that keeps all of them apart."""


def colour(unit: int) -> str:
    """A unit's colour: always the same, and far from those of the numbers beside it."""
    return f"hsl({unit * GOLDEN_ANGLE % 360:.0f} 62% {44 + 8 * (unit % 3)}%)"


def cells(woven: str) -> list[tuple[str, int | None]]:
    """(word, unit) of every cell: a text stands over the first unit that follows it; unspoken text has no unit."""
    found: list[tuple[str, int | None]] = []
    for text, units in split_runs(woven):
        words = text.strip()
        if not units:
            found += [(words, None)] if words else []
            continue
        found.append((words, units[0]))
        found += [("", unit) for unit in units[1:]]
    return found


def unit_strip(woven: str) -> str:
    """An interleaved text as HTML: rows of SVG, no script; text is escaped. Empty for an answer without units.

    Args:
        woven: words and their units, as `the<|5|><|9|> cat<|3|>`.
    """
    row: list[tuple[str, int | None]] = []
    rows = [row]
    everything = cells(woven)
    if all(unit is None for _, unit in everything):
        return ""
    for word, unit in everything:
        if len(row) >= WIDEST:
            row = []
            rows.append(row)
        row.append((word, unit))
    count = sum(unit is not None for _, unit in everything)
    return f'<div class="units" role="img" aria-label="{count} speech units">{"".join(map(_row, rows))}</div>'


def _row(row: Sequence[tuple[str, int | None]]) -> str:
    """One SVG; a word that is wider than its units is cut by the next one's place."""
    drawn = []
    starts = [place for place, (word, _) in enumerate(row) if word]
    room = dict(zip(starts, [*starts[1:], len(row)], strict=False))
    for place, (word, unit) in enumerate(row):
        x = place * CELL
        if word:
            longest = max(1, (room[place] - place) * CELL // 7)
            short = word if len(word) <= longest or place == starts[-1] else word[: max(1, longest - 1)] + "…"
            drawn.append(
                f'<text x="{x}" y="12"><title>{html.escape(word)}</title>{html.escape(short)}</text>'
                f'<line x1="{x + 0.5}" y1="14" x2="{x + 0.5}" y2="{LABEL + HEIGHT}" stroke="currentColor"/>'
            )
        if unit is not None:
            drawn.append(
                f'<rect x="{x + 1}" y="{LABEL}" width="{CELL - 1}" height="{HEIGHT}" fill="{colour(unit)}">'
                f"<title>unit {unit}</title></rect>"
            )
    width = len(row) * CELL + (9 * len(row[starts[-1]][0]) if starts else 0)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{LABEL + HEIGHT + 6}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="currentColor">{"".join(drawn)}</svg>'
    )
