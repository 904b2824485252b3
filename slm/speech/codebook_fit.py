"""Running `job: codebook`: a stream of recordings to a speech artifact.

A fit's whole state (centroids, counts, step, what was skipped) is one file in a hidden folder beside the artifact,
named after everything that decides the bytes; which recordings a step sees is a function of the seed and its number.
So a fit that was killed continues to the same bytes, and nothing of another fit can be taken for it.
"""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slm.artifact import building, canonical_json, digest, remove, write_atomic, write_manifest
from slm.config.base import to_make
from slm.config.codebook import CodebookJob
from slm.config.units import Hearing
from slm.device import best_device
from slm.errors import DataError, from_os_error
from slm.parts import BuildProgress, Part, make_plan
from slm.speech.audio import SAMPLE_RATE
from slm.speech.codebook import REASSIGN_EVERY, REASSIGN_UNTIL, Centroids
from slm.speech.codebook_features import open_features
from slm.speech.unit_builder import hear_ahead, one_ahead
from slm.speech.unit_job import SKIPPED_FILE, hours_a_second
from slm.speech.unit_records import Skipped, UnitCounts, check_skipped, skipped_table
from slm.speech.unit_sources import RecordingSource, open_recordings

log = logging.getLogger(__name__)

NEIGHBOURS = 8
"""Recordings that are read in the order of the source: a step takes several such runs from all over it."""
STATE = "state.npz"


class Order:
    """Which recordings a step sees: runs of neighbours, shuffled anew in every epoch.

    Args:
        source: of the recordings.
        job: batch, epochs or steps, seed.
    """

    def __init__(self, source: RecordingSource, job: CodebookJob) -> None:
        self.source, self.seed = source, job.seed
        plan = make_plan(source.pieces(), size=min(NEIGHBOURS, job.batch), limit=job.source.rows)
        assert plan.examples is not None, "the configuration refuses sources of unknown length"
        self.parts, self.recordings = plan.parts, plan.examples
        self.runs = -(-job.batch // NEIGHBOURS)
        self.steps_an_epoch = -(-len(self.parts) // self.runs)
        self.steps = job.steps or job.epochs * self.steps_an_epoch

    def of_step(self, step: int) -> list[Part]:
        """The runs that a step sees."""
        epoch, within = divmod(step, self.steps_an_epoch)
        return self.of_epoch(epoch)[within * self.runs : (within + 1) * self.runs]

    def of_epoch(self, epoch: int) -> list[Part]:
        """All runs in an epoch's order; epoch -1 is the sample's."""
        order = np.random.default_rng([self.seed, 3, epoch + 1]).permutation(len(self.parts))
        return [self.parts[number] for number in order]

    def heard(self, parts: Sequence[Part], hearing: Hearing, readers: int) -> tuple[list[np.ndarray], list[Skipped]]:
        """The waves of runs, and what could not be heard of them."""
        recordings = (each for part in parts for span in part.spans
                      for each in self.source.read(span.piece, span.start, span.stop))  # fmt: skip
        waves, skipped = list[np.ndarray](), list[Skipped]()
        for recording, wave in hear_ahead(recordings, hearing, readers):
            if isinstance(wave, DataError):
                skipped.append(Skipped(recording.id, wave.what))
            else:
                waves.append(wave)
        return waves, skipped


class Fit:
    """One fit.

    Args:
        job: what is learned.
        folder: of the state.
    """

    def __init__(self, job: CodebookJob, folder: Path) -> None:
        self.job, self.folder = job, folder
        self.order = Order(open_recordings(job.source), job)
        self.device = network_device(job.device)
        self.features = open_features(job.features, self.device, job.dtype)
        self.skipped: dict[str, str] = {}
        self.inertia: list[float] = []
        self.milliseconds = 0
        self.moved = 0

    def run(self) -> Centroids:
        """Make all steps that are missing."""
        job, order = self.job, self.order
        centroids = self._begun()
        start = centroids.step
        progress = BuildProgress(job.out, order.steps - start, row="step", rate=hours_a_second)
        batches = (order.heard(order.of_step(step), job.hearing, job.readers) for step in range(start, order.steps))
        try:
            for waves, skipped in one_ahead(batches):
                self._step(centroids, waves, skipped)
                progress.add(1, _milliseconds(waves))
                if centroids.step % job.save_every == 0:
                    self._save(centroids)
        finally:
            progress.stop()
        if not self.inertia:
            raise DataError("no step heard a frame", where=job.out, mend="give more speech")
        return centroids

    def _step(self, centroids: Centroids, waves: list[np.ndarray], skipped: list[Skipped]) -> None:
        self.skipped.update((each.id, each.reason) for each in skipped)
        self._check()
        found = [each for each in self.features.features(waves) if len(each)] if waves else []
        if not found:
            centroids.step += 1
            return
        frames = np.concatenate(found)
        self.inertia.append(centroids.update(frames, self.device))
        self.milliseconds += _milliseconds(waves)
        settling = centroids.step > REASSIGN_UNTIL * self.order.steps
        if self.job.reassign and centroids.step % REASSIGN_EVERY == 0 and not settling:
            self.moved += centroids.reassign(frames, self.job.reassign, self.job.seed)

    def _begun(self) -> Centroids:
        """The state that was saved, or centroids to begin with; features that need a sample get the same again."""
        prepare = getattr(self.features, "prepare", None)
        path = self.folder / STATE
        if path.is_file() and prepare is None:
            return self._load(path)
        waves, frames, total = list[np.ndarray](), list[np.ndarray](), 0
        for at in range(0, len(self.order.parts), self.order.runs):
            parts = self.order.of_epoch(-1)[at : at + self.order.runs]
            heard, skipped = self.order.heard(parts, self.job.hearing, self.job.readers)
            self.skipped.update((each.id, each.reason) for each in skipped)
            if prepare is not None:
                waves += heard
                total += sum(int(len(wave) / SAMPLE_RATE * self.features.rate_hz) for wave in heard)
            elif heard:
                frames += self.features.features(heard)
                total += sum(map(len, frames[-len(heard) :]))
            if total >= self.job.sample_frames:
                break
        self._check()
        if prepare is not None and waves:
            prepare(waves)
            frames = self.features.features(waves)
        if path.is_file():
            return self._load(path)
        sample = np.concatenate(frames) if frames else np.zeros((0, 1), np.float32)
        how = "k-means++" if self.job.spread else "chance"
        log.info("%s: %d units begin by %s among %s frames", self.job.out, self.job.count, how, f"{len(sample):,}")
        centroids = Centroids.begin(sample, self.job.count, self.job.seed, spread=self.job.spread)
        self._save(centroids)
        return centroids

    def _check(self) -> None:
        of = self.order.recordings
        counts = UnitCounts(recordings=of, skipped=[Skipped(*each) for each in self.skipped.items()])
        check_skipped(counts, of=of, at_most=self.job.hearing.skipped_at_most, where=self.job.out)

    def _save(self, centroids: Centroids) -> None:
        about = {"skipped": self.skipped, "milliseconds": self.milliseconds, "moved": self.moved}
        packed = io.BytesIO()
        np.savez(
            packed, points=centroids.points, counts=centroids.counts, step=centroids.step,
            inertia=np.asarray(self.inertia), about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        )  # fmt: skip
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / STATE, packed.getvalue())

    def _load(self, path: Path) -> Centroids:
        with np.load(path, allow_pickle=False) as arrays:
            centroids = Centroids(arrays["points"], arrays["counts"], int(arrays["step"]))
            self.inertia = arrays["inertia"].tolist()
            about = json.loads(arrays["about"].tobytes())
        self.skipped, self.milliseconds, self.moved = about["skipped"], about["milliseconds"], about["moved"]
        log.info("%s: continuing after step %d of %d", self.job.out, centroids.step, self.order.steps)
        return centroids


def fit_codebook(job: CodebookJob) -> bool:
    """Learn the units of `job.out`.

    Returns:
        False when the artifact was up to date already.

    Raises:
        DataError: no recordings, too little speech for so many units, or more recordings that can't be used than the
            job allows.
        CheckpointError: the network is damaged, or has no such layer.
        MachineError: no space left; no such device.
    """
    inputs = to_make(job)
    if inputs is None:
        return False
    out = Path(job.out)
    decides = [job.kind, job.format, canonical_json(job.identity()), inputs]
    folder = out.with_name(f".{out.name}.fit-{digest(decides)[:16]}")
    for other in out.parent.glob(f".{out.name}.fit-*"):
        if other != folder:
            log.info("%s: removing what a fit with other settings or recordings left", job.out)
            remove(other)
    began = time.monotonic()
    try:
        fit = Fit(job, folder)
        centroids = fit.run()
    except OSError as error:
        raise from_os_error(error, f"fitting {job.out}") from error
    with building(out) as scratch:
        codebook = fit.features.save(scratch, centroids.points)
        write_atomic(scratch / SKIPPED_FILE, skipped_table(Skipped(*each) for each in sorted(fit.skipped.items())))
        about = _about(fit, centroids, codebook.identity)
        write_manifest(scratch, job.kind, config=job.identity(), inputs=inputs, about=about)
    remove(folder)
    seconds = time.monotonic() - began
    log.info(
        "%s: %d units after %d steps in %.1f s, %s, mean squared distance %.4g at first, %.4g at last",
        job.out, job.count, centroids.step, seconds, hours_a_second(fit.milliseconds, seconds),
        about["first_inertia"], about["last_inertia"],
    )  # fmt: skip
    return True


def _about(fit: Fit, centroids: Centroids, identity: str) -> dict[str, Any]:
    some = max(1, len(fit.inertia) // 10)
    return {
        "units": fit.job.count,
        "rate_hz": fit.features.rate_hz,
        "codebook": identity,
        "steps": centroids.step,
        "hours": round(fit.milliseconds / 3.6e6, 4),
        "first_inertia": float(np.mean(fit.inertia[:some])),
        "last_inertia": float(np.mean(fit.inertia[-some:])),
        "moved_units": fit.moved,
        "skipped": len(fit.skipped),
    }


def network_device(device: str) -> str:
    """`auto` as the GPU, where there is one, or else the CPU."""
    if device != "auto":
        return device
    return best_device().type


def _milliseconds(waves: Sequence[np.ndarray]) -> int:
    return sum(round(1000 * len(wave) / SAMPLE_RATE) for wave in waves)
