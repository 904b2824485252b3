"""The statistics page of shard sets: one self-contained HTML with plots.

Takes plain values (`slm.data.inspect.statistics`), so it knows neither shards nor tokenizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from slm.report.page import ROOM
from slm.report.plots import DISCOUNT, EXTRA, INK, LINE, MERGE, MUTED, REPLAY, STYLE, VARIABLES, to_svg

KIND_COLOURS = {"prompt text": MUTED, "prompt units": DISCOUNT, "label text": REPLAY, "label units": EXTRA}
SIZE = (6.4, 3.1)


def render_shards(sets: Sequence[dict[str, Any]]) -> str:
    """The whole page.

    Args:
        sets: for each shard set what `slm.data.inspect.statistics` returns.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOM), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    total = {name: sum(facts[name] for facts in sets) for name in ("samples", "tokens", "labels", "bytes")}
    shown = [
        {
            "facts": facts,
            "remarks": remarks(facts),
            "plots": [
                (title, hint, Markup(svg))
                for title, hint, svg in (
                    ("Lengths", "Samples by their tokens; the line is the median.", lengths_plot(facts, i)),
                    ("Along a sample", "Kinds of tokens from a sample's start to its end.", places_plot(facts, i)),
                    (
                        "Use of units",
                        "Share of each unit, most used first; the line is even use.",
                        units_plot(facts, i),
                    ),
                    ("Filled rows", "Share of a row that holds tokens, by its length.", fill_plot(facts, i)),
                )
                if svg is not None
            ],
        }
        for i, facts in enumerate(sets)
    ]
    return environment.get_template("shards.html.j2").render(
        style=Markup((ROOM / "report.css").read_text()),
        sets=shown,
        total=total,
        kinds=Markup(kinds_plot(sets)),
        colours={kind: f"var({VARIABLES[colour]})" for kind, colour in KIND_COLOURS.items()},
    )


def remarks(facts: dict[str, Any]) -> list[str]:
    """What the figures say in words, the worrying things first."""
    found = []
    read, units = facts["read"], facts["units"]
    if facts["duplicates"]:
        share = facts["duplicates"] / read["samples"]
        found.append(f"{facts['duplicates']:,} of {read['samples']:,} samples ({share:.1%}) equal an earlier one")
    without = facts["label_shares"][0]
    if without:
        found.append(f"{without:,} samples have labels on less than a tenth of their tokens")
    if units:
        found.append(
            f"{units['used']:,} of {units['count']:,} units are used, as evenly as {units['perplexity']:,.0f} would be"
        )
    found.append(f"{facts['text_used']:,} of {facts['text_size']:,} text tokens are used")
    if read["groups"] < facts["groups"]:
        found.append(f"estimated from {read['groups']:,} of {facts['groups']:,} groups")
    return found


def kinds_plot(sets: Sequence[dict[str, Any]]) -> str:
    """Kinds of tokens: a bar for each set."""
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(11, 0.7 + 0.42 * len(sets)))
        axes = figure.subplots()
        left = np.zeros(len(sets))
        places = np.arange(len(sets))[::-1]
        for kind, colour in KIND_COLOURS.items():
            width = np.array([facts["kinds"][kind] for facts in sets])
            axes.barh(places, width, left=left, height=0.62, color=colour, alpha=0.85)
            for y, start, size in zip(places, left, width, strict=True):
                if size > 0.06:
                    axes.text(start + size / 2, y, f"{size:.0%}", ha="center", va="center", color="white", fontsize=10)
            left = left + width
        axes.set_yticks(places, [facts["name"] for facts in sets])
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25", "50", "75", "100 %"])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines[:].set_visible(False)
        return to_svg(figure, "kinds")


def lengths_plot(facts: dict[str, Any], number: int) -> str:
    """Histogram of sample lengths, with the median."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE)
        axes = figure.subplots()
        edges, counts = np.array(facts["lengths"]["edges"]), np.array(facts["lengths"]["counts"])
        axes.bar(edges[:-1], counts, width=np.diff(edges) * 0.92, align="edge", color=REPLAY)
        middle = facts["quantiles"]["0.5"]
        axes.axvline(middle, color=INK, linewidth=1)
        axes.text(middle, 1.01, f" {middle:,}", transform=axes.get_xaxis_transform(), color=INK, va="bottom")
        axes.set_xlim(0, edges[-1])
        axes.set_xlabel("tokens of a sample")
        axes.set_ylabel("samples")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        return to_svg(figure, f"lengths-{number}")


def places_plot(facts: dict[str, Any], number: int) -> str:
    """Which kinds of tokens lie where in a sample, start to end."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE)
        axes = figure.subplots()
        shares = np.array(facts["places"])
        shares = np.concatenate([shares, shares[-1:]])
        x = np.linspace(0, 1, len(shares))
        lower = np.zeros(len(shares))
        for kind, column in zip(KIND_COLOURS, shares.T, strict=True):
            axes.fill_between(
                x, lower, lower + column, color=KIND_COLOURS[kind], alpha=0.85, linewidth=0, step="post"
            )  # fmt: skip
            lower = lower + column
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xticks([0, 0.5, 1], ["start", "middle", "end of the sample"])
        axes.set_yticks([0, 0.5, 1], ["0", "50", "100 %"])
        return to_svg(figure, f"places-{number}")


def units_plot(facts: dict[str, Any], number: int) -> str | None:
    """Share of each unit by rank; None without units, or when none was seen."""
    units = facts["units"]
    if not units or not units["used"]:
        return None
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "both"}):
        figure = Figure(figsize=SIZE)
        axes = figure.subplots()
        counts = np.array(units["counts"], dtype=float)
        shares = counts / counts.sum()
        axes.plot(np.arange(1, len(shares) + 1), np.where(shares > 0, shares, np.nan), color=DISCOUNT, linewidth=2)
        axes.axhline(1 / units["count"], color=LINE, linewidth=1.4)
        axes.set_yscale("log")
        axes.set_xlim(1, max(2, len(shares)))
        axes.set_xlabel("units by rank")
        axes.set_ylabel("share of all units")
        ticks = np.geomspace(shares[shares > 0].min(), shares.max(), 4)
        axes.set_yticks(ticks, [f"{100 * tick:.2g} %" for tick in ticks])
        axes.set_yticks([], minor=True)
        return to_svg(figure, f"units-{number}")


def fill_plot(facts: dict[str, Any], number: int) -> str | None:
    """How full rows get, packed and with one sample each; None when no usual row length holds all samples."""
    if not facts["fill"]:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE)
        axes = figure.subplots()
        lengths = list(facts["fill"])
        x = np.arange(len(lengths))
        for shift, name, colour in ((-0.2, "packed", REPLAY), (0.2, "alone", MERGE)):
            values = [facts["fill"][length][name] for length in lengths]
            axes.bar(x + shift, values, width=0.36, color=colour, alpha=1 if name == "packed" else 0.45)
            for at, value in zip(x + shift, values, strict=True):
                axes.text(at, value + 0.02, f"{100 * value:.1f}", ha="center", fontsize=9, color=INK)
        axes.set_xticks(x, [f"{length:,}" for length in lengths])
        axes.set_ylim(0, 1.12)
        axes.set_yticks([0, 0.5, 1], ["0", "50", "100 %"])
        axes.set_xlabel("tokens of a row; left: packed by best fit, right: one sample a row")
        return to_svg(figure, f"fill-{number}")
