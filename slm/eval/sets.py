"""Evaluation sets: JSONL files, one item a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slm.errors import DataError


@dataclass(frozen=True)
class Item:
    """One question of a set.

    Attributes:
        id: unique in its set.
        stage: recipe that writes the prompt (`llm`, `asr`, `tts`, `sqa`).
        example: columns of that recipe.
        target: what is right; each scorer says what it reads.
        audio, reference_audio: the question, and a right spoken answer, relative to the data folder.
        tags: for people who look for patterns.
    """

    id: str
    stage: str
    example: Mapping[str, Any]
    target: Mapping[str, Any]
    audio: str | None = None
    reference_audio: str | None = None
    tags: tuple[str, ...] = field(default=())


def set_path(data: str | Path, name: str) -> Path:
    """Where the set `name` of a data folder lies."""
    return Path(data) / "eval" / f"{name}.jsonl"


def read_set(path: str | Path) -> list[Item]:
    """The items of a set, in file order.

    Raises:
        DataError: the file is missing, empty, or a line is no item; names the line.
    """
    path = Path(path)
    if not path.is_file():
        there = sorted(other.stem for other in path.parent.glob("*.jsonl"))
        raise DataError(f"no evaluation set {path.stem!r}", where=str(path), mend=f"there are: {', '.join(there)}")
    items: list[Item] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            raw = json.loads(line)
            item = Item(
                id=str(raw["id"]),
                stage=raw["stage"],
                example=raw["example"],
                target=raw["target"],
                audio=raw.get("audio"),
                reference_audio=raw.get("reference_audio"),
                tags=tuple(raw.get("tags", ())),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"not an evaluation item: {error!r}", where=f"{path}:{number}") from None
        items.append(item)
    if len({item.id for item in items}) != len(items) or not items:
        raise DataError("the set is empty or an id occurs twice", where=str(path))
    return items


def choose(items: list[Item], limit: int | None, seed: int) -> list[Item]:
    """At most `limit` items drawn by the seed, in their old order."""
    if limit is None or limit >= len(items):
        return items
    chosen = np.random.default_rng([seed, len(items)]).choice(len(items), limit, replace=False)
    return [items[i] for i in sorted(chosen)]
