"""Plots as inline SVG that follows the page's colours, and the heat map as a PNG.

matplotlib draws with placeholder colours; in the SVG they become CSS variables, so one drawing is
right in the light and in the dark theme.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from slm.report.results import Chain, Results, task_name

VARIABLES = {
    "#010201": "--ink",
    "#010202": "--muted",
    "#010203": "--line",
    "#010204": "--naive",
    "#010205": "--replay",
    "#010206": "--merge",
    "#010207": "--discount",
    "#010208": "--extra",
}
INK, MUTED, LINE, NAIVE, REPLAY, MERGE, DISCOUNT, EXTRA = VARIABLES
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 11,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
WARM, COOL = "#fbe3d3", "#0f766e"


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element whose colours are the page's; ids are unique by `name`."""
    raw = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(
            raw, format="svg", transparent=True, metadata={"Date": None}, bbox_inches="tight", pad_inches=0.05
        )
    svg = raw.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) (?:width|height)="[^"]*"', r"\1", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in every drawing, and nothing refers to them
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.replace("<svg ", '<svg aria-hidden="true" ', 1)


def colour_of(chain: Chain) -> str:
    """Orange without replay, teal with it."""
    return REPLAY if chain.replay else NAIVE


def kept_curve(results: Results) -> str | None:
    """Score on the text LLM's own task after each stage, a line for each chain, with 95 % intervals.

    Returns:
        None when the run compared no chains.
    """
    task = results.task_of("llm")
    if not results.chains:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.5))
        axes = figure.subplots()
        ends: list[tuple[float, str, str]] = []
        for chain in results.chains:
            entries = [results.score(label, task or "") for label in chain.labels]
            known = [(i, entry) for i, entry in enumerate(entries) if entry]
            if not known:
                continue
            x = [i for i, _ in known]
            y = [float(entry["score"]) for _, entry in known]
            bounds = np.array([entry.get("ci") or [entry["score"]] * 2 for _, entry in known], float)
            axes.fill_between(x, bounds[:, 0], bounds[:, 1], color=colour_of(chain), alpha=0.15, linewidth=0)
            axes.plot(x, y, color=colour_of(chain), linewidth=2.5, marker="o", markersize=6)
            ends.append((y[-1], f"{chain.name} {y[-1]:.0%}", colour_of(chain)))
        labels = max((chain.labels for chain in results.chains), key=len, default=[])
        stages = next((chain.stages for chain in results.chains if len(chain.stages) == len(labels)), labels)
        for height, text, colour in spread_out(ends, 0.09):
            axes.text(len(labels) - 0.92, height, text, color=colour, va="center", fontweight="bold")
        axes.set_xticks(range(len(labels)), ["text LLM", *(f"after {stage.upper()}" for stage in stages[1:])])
        axes.set_xlim(-0.2, len(labels) - 0.2)
        axes.set_ylim(-0.03, 1.05)
        percent_axis(axes)
        return to_svg(figure, "kept")


def spread_out(ends: Sequence[tuple[float, str, str]], gap: float) -> list[tuple[float, str, str]]:
    """Labels at the ends of lines, moved apart so that none covers another."""
    placed: list[tuple[float, str, str]] = []
    for y, text, colour in sorted(ends):
        low = placed[-1][0] + gap if placed else -math.inf
        placed.append((max(y, low), text, colour))
    return placed


def percent_axis(axes: Any) -> None:
    """0, 25, … 100 %."""
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25", "50", "75", "100 %"])


def remedies(results: Results) -> str | None:
    """What is learned (x: the last stage's task) against what is kept (y: share of the base's text score).

    Returns:
        None when there is nothing to compare.
    """
    text, spoken = results.task_of("llm"), results.task_of("sqa")
    points = remedy_points(results, text, spoken)
    if not points:
        return None
    with matplotlib.rc_context({**STYLE, "axes.grid.axis": "both"}):
        figure = Figure(figsize=(6.4, 4.4))
        axes = figure.subplots()
        scales = sorted((p for p in points if p["group"] == "discount"), key=lambda p: p["order"])
        if scales:
            axes.plot([p["x"] for p in scales], [p["y"] for p in scales], color=DISCOUNT, linewidth=1, alpha=0.5)
        for point in points:
            bars = {"ecolor": point["colour"], "elinewidth": 1, "alpha": 0.35, "fmt": "none"}
            axes.errorbar(point["x"], point["y"], xerr=point["xerr"], yerr=point["yerr"], **bars)
            axes.plot(point["x"], point["y"], marker=point["marker"], markersize=9, color=point["colour"], linestyle="")
        _name_points(axes, points)
        axes.set_xlim(-0.05, 1.34)
        axes.set_ylim(-0.06, 1.12)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25", "50", "75", "100 %"])
        percent_axis(axes)
        axes.set_xlabel(f"learned: {task_name(spoken or 'sqa')}")
        axes.set_ylabel(f"kept: {task_name(text or 'text_qa')}, share of the base's")
        axes.text(1.0, 1.1, "learned and kept ↗", color=MUTED, ha="right", va="top", fontsize=10, style="italic")
        return to_svg(figure, "remedies")


def remedy_points(results: Results, text: str | None, spoken: str | None) -> list[dict[str, Any]]:
    """A point for the end of each chain, each merge, each discount, as far as both tasks were measured."""
    base = results.chains[0].labels[0] if results.chains else None
    start = results.value(base, text) if base and text else None
    ends = {chain.labels[-1]: chain for chain in results.chains}
    points = []
    for label in results.labels:
        kept, learned = results.score(label, text or ""), results.score(label, spoken or "")
        kind = results.kind(label)
        group = "chain" if label in ends else kind
        if not kept or not learned or not start or group not in ("chain", "merged", "discount"):
            continue
        manifest = results.manifest(results.folder(label))
        config = manifest.config if manifest else {}
        whole = config.get("scope") == "all"
        colours = {"merged": MERGE, "discount": DISCOUNT}
        points.append(
            {
                "label": label,
                "group": "discount of all" if whole else group,
                "order": float(config.get("scale", 0)),
                "colour": colour_of(ends[label]) if label in ends else colours[group],
                "marker": {"chain": "o", "merged": "D", "discount": "s"}[group],
                "x": learned["score"],
                "y": kept["score"] / start,
                "xerr": _bars(learned, 1.0),
                "yerr": _bars(kept, start),
            }
        )
    return points


def _bars(entry: dict[str, Any], unit: float) -> list[list[float]] | None:
    low, high = entry.get("ci") or (None, None)
    if low is None or high is None:
        return None
    score = entry["score"]
    return [[max(0.0, score - low) / unit], [max(0.0, high - score) / unit]]


def _name_points(axes: Any, points: Sequence[dict[str, Any]]) -> None:
    """Names beside the points: on the right in one column with thin leaders, so that a cluster stays readable."""
    for low, high, column in ((-math.inf, 0.5, None), (0.5, math.inf, 1.07)):
        inside = {p["label"]: p for p in points if low <= p["x"] < high}
        for y, label, colour in spread_out([(p["y"], p["label"], p["colour"]) for p in inside.values()], 0.068):
            point = inside[label]
            x = point["x"] + 0.03 if column is None else column
            weight = "bold" if point["group"] == "chain" else "normal"
            axes.text(x, y, label, color=colour, va="center", fontweight=weight)
            if column is not None:
                axes.plot([point["x"] + 0.015, x - 0.01], [point["y"], y], color=colour, linewidth=0.6, alpha=0.5)


def learning_curves(results: Results, chain: Chain) -> str | None:
    """Loss over all stages of a chain, with their borders, and the realised share of every source below.

    Returns:
        None when no step left its metrics.
    """
    steps = [(name, records) for name in results.steps_of(chain) if (records := results.metrics(name))]
    if not steps:
        return None
    sources = list(dict.fromkeys(key[6:] for _, rs in steps for key in rs[-1] if key.startswith("share/")))
    palette = dict(zip(sources, [MUTED, MERGE, DISCOUNT, EXTRA, REPLAY, NAIVE] * 4, strict=False))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.0))
        loss, share = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1], gridspec_kw={"hspace": 0.12})
        start = 0
        for i, (name, records) in enumerate(steps):
            x = np.array([record["step"] for record in records]) + start
            y = smooth(np.array([_number(record.get("loss")) for record in records]))
            for source in sources[: i + 1] if chain.replay else []:
                own = smooth(np.array([_number(record.get(f"loss/{source}")) for record in records]))
                loss.plot(x, own, color=palette[source], linewidth=1, alpha=0.7)
            loss.plot(x, y, color=colour_of(chain), linewidth=1.8)
            end = start + int(records[-1]["step"])
            if i:
                for axes in (loss, share):
                    axes.axvline(start, color=LINE, linewidth=1.2)
            loss.text((start + end) / 2, 1.02, name, transform=loss.get_xaxis_transform(), ha="center", color=INK)
            lower = np.zeros(len(records))
            for source in sources:
                height = np.array([_number(record.get(f"share/{source}", 0.0)) for record in records])
                share.fill_between(x, lower, lower + height, color=palette[source], alpha=0.75, linewidth=0, step="mid")
                lower = lower + height
            start = end
        loss.set_ylabel("loss, nats a token")
        loss.set_ylim(bottom=0)
        loss.set_xlim(0, start)
        share.set_ylim(0, 1)
        share.set_yticks([0, 1], ["0", "100 %"])
        share.set_ylabel("tokens from")
        share.set_xlabel("optimizer steps, all stages")
        for source in sources:
            share.fill_between([], [], [], color=palette[source], alpha=0.75, label=source)
        share.legend(loc="upper center", bbox_to_anchor=(0.5, -0.62), ncols=len(sources), handlelength=1, fontsize=10)
        return to_svg(figure, f"curves-{chain.name}")


def _number(value: Any) -> float:
    """A figure of metrics.jsonl; `nan` and `inf` are strings there."""
    return float(value) if value is not None else math.nan


def smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a fiftieth of the curve, so that the trend is seen; gaps are bridged."""
    known = np.isfinite(values)
    if not known.any():
        return values
    values = np.interp(np.arange(len(values)), np.flatnonzero(known), values[known])
    width = max(1, len(values) // 50)
    kernel = np.ones(width) / width
    padded = np.pad(values, (width - 1, 0), mode="edge")
    return np.convolve(padded, kernel, mode="valid")


def heatmap_png(results: Results, path: Path) -> None:
    """The matrices of all chains side by side as a picture for documents."""
    colours = LinearSegmentedColormap.from_list("kept", [WARM, COOL])
    chains = results.chains
    figure = Figure(figsize=(1.2 + 4.6 * max(1, len(chains)), 3.1), layout="constrained", facecolor="white")
    for axes, chain in zip(np.atleast_1d(figure.subplots(1, max(1, len(chains)))), chains, strict=False):
        matrix = np.array([[_number(value) for value in row] for row in chain.figures["matrix"]])
        taught = np.array([[row >= at for at in chain.learned] for row in range(len(chain.labels))])
        axes.imshow(np.where(taught, matrix, np.nan), cmap=colours, vmin=0, vmax=1, aspect="auto")
        for row in range(matrix.shape[0]):
            for column in range(matrix.shape[1]):
                value = matrix[row, column]
                shown = "–" if math.isnan(value) else f"{value:.2f}"
                strong = taught[row, column] and value > 0.55
                colour = "white" if strong else ("#1f2937" if taught[row, column] else "#b0b5bd")
                axes.text(column, row, shown, ha="center", va="center", color=colour, fontsize=10)
        axes.set_xticks(range(len(chain.tasks)), [task_name(task) for task in chain.tasks], rotation=30, ha="right")
        axes.set_yticks(range(len(chain.labels)), ["text LLM", *(f"+ {stage.upper()}" for stage in chain.stages[1:])])
        axes.set_title(
            f"{chain.name}: replay {chain.replay:.0%}" if chain.replay else f"{chain.name}: no replay", fontsize=11
        )
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=150, metadata={"Software": None})
