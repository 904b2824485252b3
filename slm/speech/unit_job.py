"""Running `job: units`: recordings to a unit set, in any number of processes, GPUs and machines.

A unit set is a folder of `units-NNNNNN.jsonl` (one `{"id", "units", "seconds"}` a line, repeats kept, in the order of
the recordings), `units.json` (which units they are), `skipped.csv` (what gave none, and why) and a manifest. The source
`units` of shard-building jobs reads it.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from slm.artifact import canonical_json, read_json, remove, write_atomic, write_json, write_manifest
from slm.config.base import to_make
from slm.config.units import UNITS, UnitsJob
from slm.device import gpu_count
from slm.errors import ConfigError, DataError, MachineError
from slm.parts import BuildProgress, Part, Plan, Workspace, build_share, check_share, make_plan, run_parts
from slm.parts.workspace import records_left
from slm.speech.load import EXTRACTORS, SPEECH_FILE, read_units
from slm.speech.unit_builder import STEM, UnitBuilder
from slm.speech.unit_records import UnitCounts, UnitRecord, check_skipped, joined_counts, skipped_table
from slm.speech.unit_sources import open_recordings

log = logging.getLogger(__name__)

UNITS_FILE = "units.json"
SKIPPED_FILE = "skipped.csv"


def build_unit_set(job: UnitsJob, *, task: tuple[int, int] | None = None, join: bool = False) -> bool:
    """Extract the unit set `job.out`, or a share of its parts, or join parts that are extracted.

    Args:
        job: what is built. Any number of processes and tasks gives the same bytes.
        task: (i, n): build parts i, i + n, i + 2n, … and do not join; for arrays of batch jobs on a shared disk.
        join: join the parts that tasks built, build none.

    Returns:
        False when the set was up to date already.

    Raises:
        ConfigError: task and join together, a task that is not one of n, or another extractor than the job's.
        DataError: speech artifact or source do not fit; more recordings can't be used than the job allows; parts are
            missing when joining.
        MachineError: no space left; no such device, or no memory on it; a worker was killed.
    """
    check_share(task, join)
    _check_extractor(job)
    inputs = to_make(job)
    if inputs is None:
        remove(records_left(job.out))
        return False
    decides = [job.kind, job.format, canonical_json(job.identity()), inputs]
    space = Workspace(job.out, decides, UnitRecord.from_json, stem=STEM)
    build_share(
        space,
        task=task,
        join=join,
        planned=lambda: _planned(job, space, keep_others=task is not None),
        build=lambda plan, parts: _build(job, space, plan, parts),
        close=lambda plan: _join(job, space, plan, inputs),
    )
    return True


def devices_of(speech: str, device: str) -> list[str]:
    """The devices that the processes of a job take in turn; `cpu` for an extractor that has no network.

    Raises:
        DataError: an unknown extractor.
        MachineError: a GPU is asked for and there is none.
    """
    name = read_json(Path(speech) / SPEECH_FILE).get("extractor")
    if name not in EXTRACTORS:
        raise DataError(f"unknown extractor {name!r}; known: {', '.join(sorted(EXTRACTORS))}", where=speech)
    module, _, attribute = EXTRACTORS[name].partition(":")
    loads = inspect.signature(getattr(importlib.import_module(module), attribute).load)
    if "device" not in loads.parameters or device == "cpu":
        return ["cpu"]
    count = gpu_count()
    if device == "auto":
        return [f"cuda:{number}" for number in range(count)] or ["cpu"]
    if int(device.partition(":")[2] or 0) >= count:
        raise MachineError(
            f"there are {count} GPUs here", where=f"device: {device}", mend="give another, or device=cpu"
        )
    return [device] if ":" in device else [f"cuda:{number}" for number in range(count)]


def _check_extractor(job: UnitsJob) -> None:
    """That the artifact's extractor is the one the job asks for, if it asks for one."""
    if job.extractor is None:
        return
    if job.extractor not in EXTRACTORS:
        known = ", ".join(sorted(EXTRACTORS))
        raise ConfigError(f"unknown extractor {job.extractor!r}; known: {known}", where="extractor")
    found = read_units(job.speech).extractor
    if found != job.extractor:
        raise ConfigError(
            f"{job.extractor} is asked for, the speech artifact's is {found}",
            where=f"extractor: {job.speech}",
            mend="give an artifact with it: slm speech convert and slm speech codebook fit make them; or leave it out",
        )


def make_builder(job: UnitsJob, plan: Plan, folder: Path, devices: Sequence[str], worker: int) -> UnitBuilder:
    """A worker's builder, on a device of its own where there are as many."""
    return UnitBuilder(job, plan, folder, devices[worker % len(devices)])


def hours_a_second(milliseconds: int, seconds: float) -> str:
    """`1.25 h of audio (480 x real time)`."""
    return f"{milliseconds / 3.6e6:.2f} h of audio ({milliseconds / 1000 / max(seconds, 1e-9):,.0f} x real time)"


def _planned(job: UnitsJob, space: Workspace[UnitRecord], *, keep_others: bool) -> Plan:
    """The plan of a job that was begun, or a new one."""
    for folder in [] if keep_others else space.others():
        log.info("%s: removing the parts of a job with other settings or recordings", job.out)
        remove(folder)
    plan = space.plan()
    if plan is None:
        plan = make_plan(open_recordings(job.source).pieces(), size=job.part, limit=job.source.rows)
        space.save_plan(plan)
        recordings = "" if plan.examples is None else f", {plan.examples:,} recordings"
        log.info("%s: %d parts%s", job.out, len(plan.parts), recordings)
    return plan


def _build(job: UnitsJob, space: Workspace[UnitRecord], plan: Plan, parts: Sequence[Part]) -> None:
    """Build those of the parts that are not done."""
    kept = [record for record in (space.done(part.number) for part in parts) if record is not None]
    lost = joined_counts(kept)
    if kept:
        hours = lost.milliseconds / 3.6e6
        log.info("%s: keeping %d of %d parts from before (%.2f h of audio)", job.out, len(kept), len(parts), hours)
    done = {record.part for record in kept}
    missing = [part for part in parts if part.number not in done]
    if not missing:
        return
    space.clear({part.number for part in missing}, len(plan.parts))
    devices = devices_of(job.speech, job.device)
    per_host = len(os.sched_getaffinity(0)) if devices == ["cpu"] else len(devices)
    workers = min(job.workers or per_host, len(missing))
    make = partial(make_builder, job, plan, space.folder, devices)
    progress = BuildProgress(job.out, _recordings_of(missing), row="recording", rate=hours_a_second)
    try:
        for record in run_parts(make, missing, workers, progress.add, name=job.out):
            space.save(record)
            lost.add(record.counts)
            if plan.examples is not None:
                check_skipped(lost, of=plan.examples, at_most=job.hearing.skipped_at_most, where=job.out)
    finally:
        progress.stop()
    log.info(
        "%s: %d parts, %d recordings in %.1f s with %d processes on %s: %s",
        job.out, len(missing), progress.rows, progress.seconds, workers, ", ".join(devices[:workers]),
        hours_a_second(progress.held, progress.seconds),
    )  # fmt: skip


def _recordings_of(parts: Sequence[Part]) -> int | None:
    counts = [span.stop - span.start for part in parts for span in part.spans if span.stop is not None]
    return sum(counts) if len(counts) == sum(len(part.spans) for part in parts) else None


def _join(job: UnitsJob, space: Workspace[UnitRecord], plan: Plan, inputs: dict[str, str]) -> None:
    """Seal the set: reads records, not units."""
    records = space.all_done(plan)
    counts = joined_counts(records)
    check_skipped(counts, of=None, at_most=job.hearing.skipped_at_most, where=job.out)
    units = read_units(job.speech)
    write_json(space.folder / UNITS_FILE, vars(units))
    table = skipped_table(counts.skipped)
    write_atomic(space.folder / SKIPPED_FILE, table)
    described = (space.folder / UNITS_FILE).read_bytes()
    files = {name: facts for record in records for name, facts in record.files().items()}
    for name, data in ((UNITS_FILE, described), (SKIPPED_FILE, table)):
        files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    about = {
        "recordings": counts.recordings,
        "hours": round(counts.milliseconds / 3.6e6, 4),
        "units": counts.units,
        "rate_hz": units.rate_hz,
        "repeats": "kept",
        "unit_set": vars(units),
        "skipped": counts.faults,
        "parts": len(plan.parts),
    }
    write_manifest(space.folder, UNITS, config=job.identity(), inputs=inputs, about=about, files=files)
    space.put_in_place()
    _tell(job, counts)


def _tell(job: UnitsJob, counts: UnitCounts) -> None:
    hours = counts.milliseconds / 3.6e6
    log.info("%s: %.2f h of audio, %s units", job.out, hours, f"{counts.units:,}")
    if counts.skipped:
        log.warning(
            "%s: skipped %d of %d recordings (%s); %s lists them",
            job.out, len(counts.skipped), counts.recordings, counts.described(), Path(job.out) / SKIPPED_FILE,
        )  # fmt: skip
