"""The scores as CSV (a line for each model and task) and as a Markdown table."""

from __future__ import annotations

import csv
from pathlib import Path

from slm.report.results import Results, task_name

COLUMNS = ("model", "kind", "task", "score", "ci_low", "ci_high", "metric", "raw", "n", "missing")


def write_csv(results: Results, path: Path) -> None:
    """One line for each model and task; what was not measured has an empty score and says why."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for label in results.labels:
            for task in results.tasks:
                entry = results.score(label, task)
                if entry is None:
                    writer.writerow([label, results.kind(label), task, *[""] * 6, results.why_missing(label, task)])
                    continue
                low, high = entry.get("ci") or ("", "")
                figures = [entry["score"], low, high, entry["metric"], entry["raw"], entry["n"]]
                writer.writerow([label, results.kind(label), task, *figures, ""])


def markdown(results: Results) -> str:
    """Models by tasks: error rates as such, marked by an arrow."""
    heads = []
    for task in results.tasks:
        entries = [entry for label in results.labels if (entry := results.score(label, task))]
        heads.append(task_name(task) + (" error ↓" if entries and entries[0].get("less_is_better") else ""))
    lines = ["| checkpoint | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for label in results.labels:
        cells = [results.score(label, task) for task in results.tasks]
        lines.append(f"| {label} | " + " | ".join("–" if c is None else f"{c['raw']:.2f}" for c in cells) + " |")
    return "\n".join(lines) + "\n"
