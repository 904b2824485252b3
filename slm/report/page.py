"""The page: what the template needs, gathered from the results, and the rendering of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from slm.report import plots
from slm.report.results import Chain, Results, task_name, task_words
from slm.report.sounds import Sounds
from slm.report.verdict import headline, percent, sentences

ROOM = Path(__file__).parent
FLIPS = 400
"""Items of the browser at most, in equal parts of every step of every chain; the rest are counted."""


def render(results: Results, folder: Path) -> str:
    """The whole page.

    Args:
        results: what is shown.
        folder: where the page will be, for links to audio that is too large to carry.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOM), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=percent, clock=clock, task_name=task_name, task_words=task_words)
    sounds = Sounds(folder)
    flips, left_out = flipped(results, sounds)
    return environment.get_template("report.html.j2").render(
        style=Markup((ROOM / "report.css").read_text()),
        script=Markup((ROOM / "report.js").read_text()),
        title=results.title,
        headline=headline(results),
        sentences=sentences(results),
        results=results,
        spoken=players(results, sounds),
        said=readings(results, sounds),
        matrices=[matrix(results, chain) for chain in results.chains],
        kept=Markup(plots.kept_curve(results) or ""),
        remedies=Markup(plots.remedies(results) or ""),
        remedy_rows=plots.remedy_points(results, results.task_of("llm"), results.task_of("sqa")),
        curves=[(chain, Markup(svg)) for chain in results.chains if (svg := plots.learning_curves(results, chain))],
        asked=same_question(results),
        flips=Markup(safe_json(flips)),
        flips_left_out=left_out,
        table=run_table(results),
        checks=results.checks(),
        steps=results.record.get("steps", []),
        spent=sum(float(entry["seconds"]) for entry in results.record.get("steps", [])),
        versions=versions(results),
    )


def safe_json(value: Any) -> str:
    """JSON that can't end its `<script>` element, whatever the texts hold."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c").replace("&", "\\u0026")


def clock(seconds: float) -> str:
    """`75` as `1:15`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def matrix(results: Results, chain: Chain) -> dict[str, Any]:
    """A chain's heat map: rows are its models, columns tasks; a cell knows whether its task was taught by then."""
    rows = []
    for i, label in enumerate(chain.labels):
        cells = []
        for task, learned in zip(chain.tasks, chain.learned, strict=True):
            entry = results.score(label, task)
            cells.append(
                {
                    "task": task,
                    "score": entry["score"] if entry else None,
                    "ci": entry.get("ci") if entry else None,
                    "raw": entry["raw"] if entry else None,
                    "metric": entry["metric"] if entry else "",
                    "why": "" if entry else results.why_missing(label, task),
                    "state": "taught" if i > learned else ("here" if i == learned else "before"),
                }
            )
        rows.append({"name": "text LLM" if i == 0 else f"+ {chain.stages[i].upper()}", "label": label, "cells": cells})
    measures = [
        (name, chain.figures.get(name)) for name in ("average_score", "backward_transfer", "forgetting", "retention")
    ]
    return {
        "chain": chain,
        "rows": rows,
        "measures": [(name, entry) for name, entry in measures if entry],
        "apart": [task_name(task) for task in chain.figures.get("apart", [])],
    }


def _sound(sounds: Sounds, folder: Path, name: str | None) -> str | None:
    return sounds.source(folder / name) if name else None


def players(results: Results, sounds: Sounds) -> list[dict[str, Any]]:
    """Spoken questions with what the last models heard, answered and said; the best chain comes first."""
    task = results.task_of("sqa")
    chains = sorted(results.chains, key=lambda chain: chain.replay, reverse=True)
    if task is None or not chains:
        return []
    answers = {chain.name: {item["id"]: item for item in results.items(chain.labels[-1], task)} for chain in chains}
    first = [item for item in answers[chains[0].name].values() if item["audio"].get("generated")]
    found = []
    for item in first[:4]:
        told = []
        for chain in chains:
            other = answers[chain.name].get(item["id"])
            if other is None:
                continue
            heard, answer, *_ = [*(part.strip() for part in other["text"].split("\n\n")), "", ""]
            said = _sound(sounds, results.eval_folder(chain.labels[-1]), other["audio"].get("generated"))
            told.append(
                {"chain": chain, "heard": heard, "answer": answer, "said": said, "right": results.right(other, task)}
            )
        found.append(
            {
                "question": item["target"].get("text", ""),
                "answer": item["target"].get("answer", ""),
                "asked": _sound(sounds, results.data, item["audio"].get("question")),
                "reference": _sound(sounds, results.data, item["audio"].get("reference")),
                "told": told,
            }
        )
    return found


def readings(results: Results, sounds: Sounds) -> list[dict[str, Any]]:
    """Texts that the last model of the best chain read aloud, beside the reference."""
    task = results.task_of("tts")
    chains = sorted(results.chains, key=lambda chain: chain.replay, reverse=True)
    if task is None or not chains:
        return []
    label = chains[0].labels[-1]
    items = [item for item in results.items(label, task) if item["audio"].get("generated")]
    return [
        {
            "text": item["target"].get("text", ""),
            "reference": _sound(sounds, results.data, item["audio"].get("reference")),
            "said": _sound(sounds, results.eval_folder(label), item["audio"]["generated"]),
        }
        for item in items[:4]
    ]


def same_question(results: Results) -> dict[str, Any] | None:
    """A few text questions and what every end of a chain answers: those first on which the chains differ."""
    task = results.task_of("llm")
    if task is None or not results.chains:
        return None
    labels = [results.chains[0].labels[0], *(chain.labels[-1] for chain in results.chains)]
    answers = {label: {item["id"]: item for item in results.items(label, task)} for label in labels}
    shared = [item for key, item in answers[labels[0]].items() if all(key in answers[label] for label in labels)]

    def differs(item: dict[str, Any]) -> int:
        return -len({results.right(answers[label][item["id"]], task) for label in labels})

    rows = [
        {
            "question": item["prompt"],
            "target": item["target"].get("answer", ""),
            "answers": [
                (answers[label][item["id"]]["text"], results.right(answers[label][item["id"]], task))
                for label in labels
            ],
        }
        for item in sorted(shared, key=differs)[:6]
    ]
    return {"labels": labels, "rows": rows} if rows else None


def flipped(results: Results, sounds: Sounds) -> tuple[list[dict[str, Any]], int]:
    """Items that a stage lost or gained, with the question, both answers and the right one.

    Returns:
        The items, and how many were left out because they are too many.
    """
    groups = list(_flipped(results, sounds))
    places = sorted((i, g) for g, group in enumerate(groups) for i in range(len(group)))
    shown = sorted((g, i) for i, g in places[:FLIPS])
    return [groups[g][i] for g, i in shown], len(places) - len(shown)


def _flipped(results: Results, sounds: Sounds) -> Iterator[list[dict[str, Any]]]:
    """A list for every chain, task, pair of models, and way: lost or gained."""
    for chain, tasks in results.summary.get("flips", {}).items():
        for task, pairs in tasks.items():
            for pair in pairs:
                keys = {"lost": pair.get("lost", []), "gained": pair.get("gained", [])}
                if not any(keys.values()):
                    continue
                before = {item["id"]: item for item in results.items(pair["before"], task)}
                after = {item["id"]: item for item in results.items(pair["after"], task)}
                for way, ids in keys.items():
                    known = [key for key in ids if key in before and key in after]
                    yield [_flip(results, sounds, chain, task, pair, way, before[key], after[key]) for key in known]


def _flip(
    results: Results,
    sounds: Sounds,
    chain: str,
    task: str,
    pair: dict[str, Any],
    way: str,
    before: dict[str, Any],
    after: dict[str, Any],
) -> dict[str, Any]:
    target = before["target"]
    audio = before["audio"].get("question")
    return {
        "chain": chain,
        "task": task_name(task),
        "step": f"{pair['before']} → {pair['after']}",
        "way": way,
        "question": target.get("text", "") if audio else before["prompt"],
        "target": target.get("answer") or target.get("text", ""),
        "before": before["text"],
        "after": after["text"],
        "audio": sounds.link(results.data / audio) if audio else None,
    }


def run_table(results: Results) -> list[dict[str, Any]]:
    """All evaluated models: what made them, and every figure with its interval."""
    return [
        {
            "label": label,
            "kind": results.kind(label),
            "cells": [(task, results.score(label, task), results.why_missing(label, task)) for task in results.tasks],
        }
        for label in results.labels
    ]


def versions(results: Results) -> dict[str, str]:
    """Packages that made the evaluated models."""
    manifest = results.manifest(results.evaluation)
    return dict(manifest.versions) if manifest else {}
