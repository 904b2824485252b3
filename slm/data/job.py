"""Running `job: shards`: plan, parts in any number of processes and machines, and one cheap step that joins them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from slm.artifact import Manifest, canonical_json, remove, write_manifest
from slm.config.base import to_make
from slm.config.shards import ShardsJob
from slm.data.build import check_counts, log_counts, set_facts
from slm.data.format import FORMAT
from slm.data.parts import Record, joined
from slm.data.samples import Counts, check_dropped
from slm.data.sources import open_source
from slm.data.workers import default_workers, job_tokenizer, make_builder
from slm.parts import BuildProgress, Part, Plan, Workspace, build_share, check_share, make_plan, run_parts
from slm.parts.workspace import records_left

log = logging.getLogger(__name__)


def build_shard_set(job: ShardsJob, *, task: tuple[int, int] | None = None, join: bool = False) -> bool:
    """Build the shard set `job.out`, or a share of its parts, or join parts that are built.

    Args:
        job: what is built. Any number of workers and tasks gives the same bytes.
        task: (i, n): build parts i, i + n, i + 2n, … and do not join; for arrays of batch jobs on a shared disk.
        join: join the parts that tasks built, build none.

    Returns:
        False when the set was up to date already.

    Raises:
        ConfigError: task and join together, or a task that is not one of n.
        DataError: source, units or tokenizer do not fit; a row can't be used; too many samples are too long; parts
            are missing when joining.
        MachineError: no space left; a worker was killed.
    """
    check_share(task, join)
    inputs = to_make(job)
    if inputs is None:
        remove(records_left(job.out))
        return False
    space = _workspace(job, inputs)
    build_share(
        space,
        task=task,
        join=join,
        planned=lambda: _planned(job, space, keep_others=task is not None),
        build=lambda plan, parts: _build(job, space, plan, parts),
        close=lambda plan: _join(job, space, plan, inputs),
    )
    return True


def _workspace(job: ShardsJob, inputs: dict[str, str]) -> Workspace[Record]:
    # `overlong: null` writes what `drop` writes: parts of a build that it ended are kept when drop is set.
    settings = job.identity() | {"overlong": job.overlong or "drop"}
    decides = [job.kind, FORMAT, canonical_json(settings), inputs]
    return Workspace(job.out, decides, Record.from_json, stem="shard-")


def _planned(job: ShardsJob, space: Workspace[Record], *, keep_others: bool) -> Plan:
    """The plan of a build that was begun, or a new one; checks source, units and tokenizer before any work."""
    for folder in [] if keep_others else space.others():
        log.info("%s: removing the parts of a build with other settings or data", job.out)
        remove(folder)
    plan = space.plan()
    if plan is None:
        _, vocabulary = job_tokenizer(job)
        pieces = open_source(job, vocabulary.units).pieces()
        plan = make_plan(pieces, size=job.part, limit=job.source.rows)
        space.save_plan(plan)
        examples = "" if plan.examples is None else f", {plan.examples:,} examples"
        log.info("%s: %d parts%s", job.out, len(plan.parts), examples)
    return plan


def _build(job: ShardsJob, space: Workspace[Record], plan: Plan, parts: Sequence[Part]) -> None:
    """Build those of the parts that are not done."""
    kept = {record.part: record for record in (space.done(part.number) for part in parts) if record is not None}
    if kept:
        whole = joined(kept.values())
        log.info(
            "%s: keeping %d of %d parts from before (%s examples, %.1f Mtok)",
            job.out, len(kept), len(parts), f"{whole.counts.examples:,}", whole.tokens / 1e6,
        )  # fmt: skip
    missing = [part for part in parts if part.number not in kept]
    if not missing:
        return
    space.clear({part.number for part in missing}, len(plan.parts))
    workers = min(job.workers or default_workers(job), len(missing))
    make = partial(make_builder, job, plan, space.folder)
    progress = BuildProgress(job.out, _examples_of(missing))
    lost = Counts()
    for record in kept.values():
        lost.add(record.counts)

    try:
        for record in run_parts(make, missing, workers, progress.add, name=job.out):
            space.save(record)
            lost.add(record.counts)
            if plan.examples is not None:
                check_dropped(
                    lost, of=plan.examples, max_length=job.max_length, overlong=job.overlong, where=job.out
                )  # fmt: skip
    finally:
        progress.stop()
    log.info(
        "%s: %d parts, %d examples in %.1f s with %d workers: %.0f examples/s, %.2f Mtok/s",
        job.out, len(missing), progress.rows, progress.seconds, workers,
        progress.rows / progress.seconds, progress.held / progress.seconds / 1e6,
    )  # fmt: skip


def _examples_of(parts: Sequence[Part]) -> int | None:
    counts = [span.stop - span.start for part in parts for span in part.spans if span.stop is not None]
    return sum(counts) if len(counts) == sum(len(part.spans) for part in parts) else None


def _join(job: ShardsJob, space: Workspace[Record], plan: Plan, inputs: dict[str, str]) -> Manifest:
    """Seal the set: reads records, not shards."""
    began = time.monotonic()
    whole = joined(space.all_done(plan))
    check_counts(whole.counts, max_length=job.max_length, overlong=job.overlong, entries=whole.entries, where=job.out)
    _, vocabulary = job_tokenizer(job)
    about: dict[str, Any] = {"recipe": job.recipe, "group_size": job.group, "parts": len(plan.parts)}
    about |= {"max_length": job.max_length, "overlong": job.overlong}
    about |= {"compress": job.compress} if job.compress else {}
    about |= whole.counts.to_json() | set_facts(whole.entries, whole.length_counts, vocabulary)
    manifest = write_manifest(
        space.folder, job.kind, config=job.identity(), inputs=inputs, about=about, files=whole.files(), format=FORMAT
    )
    space.put_in_place()
    log.info("%s: joined %d parts in %.1f s", job.out, len(plan.parts), time.monotonic() - began)
    log_counts(whole.counts, about, job.out)
    return manifest
