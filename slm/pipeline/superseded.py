"""Making room for a step that is made anew."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

from slm.artifact import find_manifest, remove
from slm.pipeline.child import saved_steps
from slm.pipeline.graph import Step
from slm.pipeline.record import Record

SUPERSEDED = "superseded"
"""Folder of a run that keeps the train steps that were made anew."""


def clear(step: Step, record: Record) -> Path | None:
    """Take away what a step has made. Training may have taken weeks: it is moved, and deleted by people alone.

    Returns:
        Where a train step's folder has gone, `<run>/superseded/<step>-<n>`; None when there was nothing trained in it.
    """
    aside = None
    if step.kind == "train" and (find_manifest(step.folder) is not None or saved_steps(step)):
        kept = step.folder.parent / SUPERSEDED
        kept.mkdir(exist_ok=True)
        aside = next(path for n in count(1) if not (path := kept / f"{step.name}-{n}").exists())
        os.replace(step.folder, aside)
    else:
        remove(step.folder)
    record.forget(step)
    return aside
