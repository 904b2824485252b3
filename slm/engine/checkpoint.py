"""Checkpoints that count only when they verify.

All ranks write into a scratch folder; it is hashed, sealed by a manifest, renamed, and only then
named in `latest`. Resume takes the newest checkpoint whose every file matches its manifest and says
which it passed over. DeepSpeed's files are pickles: they are loaded only after that check.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from slm.artifact import canonical_json, digest, find_manifest, verify, write_atomic, write_json, write_manifest
from slm.engine.distributed import Place, together
from slm.engine.state import TrainState
from slm.engine.table_files import load_tables, save_tables
from slm.engine.tables import tables_of
from slm.errors import CheckpointError, MachineError, SlmError, from_os_error

log = logging.getLogger(__name__)

KIND = "checkpoint"
TAG = "deepspeed"


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        folder: `<run>/checkpoints`.
        identity: what a checkpoint must have been made with to be continued.
        keep: how many of the newest are kept.
    """

    def __init__(self, folder: Path, place: Place, identity: dict[str, Any], keep: int) -> None:
        self.folder, self.place, self.identity, self.keep = folder, place, identity, keep

    def save(self, engine: Any, state: TrainState, *, lora: bool) -> Path:
        """Write, verify and publish a checkpoint; every rank must call it at the same step.

        Raises:
            MachineError: a rank could not write; nothing half-written is left and older checkpoints stand.
        """
        final = self.folder / f"step_{state.step:06d}"
        scratch = self.folder / f".{final.name}.tmp"
        try:
            together(lambda: self._prepare(scratch))
            together(lambda: self._write(engine, state, scratch, lora))
            together(lambda: self._publish(scratch, final, state))
        except SlmError:
            if self.place.is_main:
                shutil.rmtree(scratch, ignore_errors=True)
            raise
        return final

    def _prepare(self, scratch: Path) -> None:
        if self.place.is_main:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)

    def _write(self, engine: Any, state: TrainState, scratch: Path, lora: bool) -> None:
        with _guarded_writes(engine):
            engine.save_checkpoint(str(scratch), tag=TAG, save_latest=False, exclude_frozen_parameters=lora)
        tables = tables_of(engine)
        if tables is not None:
            save_tables(tables, scratch)
        random_state = {"torch": torch.get_rng_state()}
        if self.place.device.type == "cuda":
            random_state["device"] = torch.cuda.get_rng_state(self.place.device)
        try:
            torch.save(random_state, scratch / f"random_rank{self.place.rank}.pt")
        except RuntimeError as error:
            raise _explain(error, scratch) from error

    def _publish(self, scratch: Path, final: Path, state: TrainState) -> None:
        if not self.place.is_main:
            return
        write_json(scratch / "state.json", {**state.to_json(), "world_size": self.place.world_size})
        for path in scratch.rglob("*"):
            if path.is_file():
                _sync(path)
        write_manifest(scratch, KIND, config=self.identity, about={"step": state.step})
        shutil.rmtree(final, ignore_errors=True)
        os.replace(scratch, final)
        _sync(self.folder)
        write_atomic(self.folder / "latest", final.name + "\n")
        for old in self.found()[self.keep :]:
            shutil.rmtree(old, ignore_errors=True)

    def found(self) -> list[Path]:
        """Published checkpoints, newest first; verified or not."""
        steps = {path: path.name.removeprefix("step_") for path in self.folder.glob("step_*") if path.is_dir()}
        return sorted(
            (path for path in steps if steps[path].isdigit()), key=lambda path: int(steps[path]), reverse=True
        )

    def newest_valid(self) -> Path | None:
        """The newest checkpoint that verifies and belongs to this configuration, None without any.

        Raises:
            CheckpointError: there are checkpoints of this configuration, and none verifies.
        """
        damaged = []
        for path in self.found():
            try:
                manifest = find_manifest(path)
                if manifest is None:
                    raise CheckpointError("has no manifest", where=str(path))
                if canonical_json(manifest.config) != canonical_json(self.identity):
                    continue
                verify(path, manifest)
            except SlmError as error:
                log.warning("checkpoint passed over: %s", str(error).replace("\n", ";"))
                damaged.append(path)
                continue
            return path
        if damaged:
            raise CheckpointError(
                "no checkpoint verifies",
                where=str(self.folder),
                mend="remove the folder to train from the start, or restore one of its checkpoints",
            )
        return None

    def set_aside_others(self) -> None:
        """Move checkpoints of another configuration out of the way; they are never deleted for it. Rank 0 acts."""
        for path in self.found() if self.place.is_main else []:
            try:
                manifest = find_manifest(path)
            except SlmError:
                continue  # `newest_valid` passes it over and says so
            if manifest is not None and canonical_json(manifest.config) != canonical_json(self.identity):
                aside = self.folder.with_name(f"{self.folder.name}-{digest(manifest.config)[:8]}")
                aside.mkdir(parents=True, exist_ok=True)
                os.replace(path, aside / path.name)
                log.warning("%s was made with another configuration: moved to %s", path.name, aside)

    def set_aside_damaged(self, chosen: Path) -> None:
        """Rename what is newer than the checkpoint that was chosen: it would count as kept. Rank 0 acts."""
        for path in self.found() if self.place.is_main else []:
            if path == chosen:
                return
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)

    def load(self, engine: Any, path: Path) -> TrainState:
        """Restore weights, optimizer, random state and counters from a verified checkpoint.

        Raises:
            CheckpointError: another number of ranks, or DeepSpeed found nothing to load.
        """
        saved = json.loads((path / "state.json").read_text())
        world_size = saved.pop("world_size")
        if world_size != self.place.world_size:
            raise CheckpointError(
                f"the checkpoint was saved by {world_size} ranks, this job has {self.place.world_size}",
                where=str(path),
                mend=f"start with {world_size} ranks",
            )
        load_tables(tables_of(engine), path)
        # Frozen weights are not in the file (they come from the base), hence not strict.
        loaded, _ = engine.load_checkpoint(str(path), tag=TAG, load_module_strict=False)
        if loaded is None:
            raise CheckpointError("deepspeed found no checkpoint in the folder", where=str(path))
        random_state = torch.load(path / f"random_rank{self.place.rank}.pt", weights_only=True)
        torch.set_rng_state(random_state["torch"])
        if "device" in random_state:
            torch.cuda.set_rng_state(random_state["device"], self.place.device)
        return TrainState(**saved)


@contextmanager
def _guarded_writes(engine: Any) -> Iterator[None]:
    """Let DeepSpeed finish its barriers although a file could not be written, then raise.

    A rank that left `save_checkpoint` in the middle would meet the others in different collectives.
    """
    writer = engine.checkpoint_engine
    failures: list[Exception] = []
    original = writer.save

    def save(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except (OSError, RuntimeError) as error:
            failures.append(error)
            return None

    writer.save = save
    try:
        yield
    finally:
        del writer.save
    if failures:
        raise _explain(failures[0], Path("checkpoint")) from failures[0]


def _explain(error: Exception, where: Path) -> SlmError:
    """torch reports a full disk as a RuntimeError of its zip writer."""
    if isinstance(error, OSError):
        return from_os_error(error, "saving a checkpoint")
    text = str(error)
    if any(sign in text for sign in ("PytorchStreamWriter", "file write", "No space left", "unexpected pos")):
        return MachineError(
            "no space left while saving a checkpoint",
            where=str(where),
            mend="free some space and start the run again; it continues from the last checkpoint",
        )
    return CheckpointError(f"a checkpoint can't be written: {type(error).__name__}: {text[:200]}", where=str(where))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
