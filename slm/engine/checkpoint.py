"""Checkpoints that count only when they verify.

All ranks write into a scratch folder and read back what they wrote; it is hashed, sealed by a manifest,
renamed, and only then named in `latest`. Resume takes the newest checkpoint whose every file matches its
manifest and says which it passed over. DeepSpeed's files are pickles: they are loaded only after that
check, and after another one of what they may call.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from slm.artifact import (
    MANIFEST,
    Manifest,
    canonical_json,
    digest,
    file_sha256,
    find_manifest,
    verify,
    write_atomic,
    write_json,
    write_manifest,
)
from slm.engine.distributed import Place, gather_dicts, rank_seed, together
from slm.engine.pickles import require_known_pickles
from slm.engine.read_back import require_same_parameters, require_written
from slm.engine.reshard import load_resharded
from slm.engine.state import TrainState
from slm.engine.swapped import is_swapped, load_swapped, save_swapped, without_swap_files
from slm.engine.table_files import load_tables, save_tables
from slm.engine.tables import tables_of
from slm.engine.writes import explain_write, guarded_writes, sync
from slm.errors import CheckpointError, DataError, SlmError

log = logging.getLogger(__name__)

KIND = "checkpoint"
FORMAT = 1
TAG = "deepspeed"
LATEST, BEST = "latest", "best"


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        folder: `<run>/checkpoints`.
        identity: what a checkpoint must have been made with to be continued.
        keep: how many of the newest are kept, besides the best.
    """

    def __init__(self, folder: Path, place: Place, identity: dict[str, Any], keep: int) -> None:
        self.folder, self.place, self.identity, self.keep = folder, place, identity, keep

    def save(self, engine: Any, state: TrainState, *, lora: bool, best: bool = False) -> Path:
        """Write, verify and publish a checkpoint; every rank must call it at the same step.

        Args:
            lora: frozen weights are left out; they come from the base.
            best: it is kept until a better one is.

        Raises:
            MachineError: a rank could not write; nothing half-written is left and older checkpoints stand.
            CheckpointError: what was written reads back differently.
        """
        final = self.folder / f"step_{state.step:06d}"
        scratch = self.folder / f".{final.name}.tmp"
        try:
            together(lambda: self._prepare(scratch))
            together(lambda: self._write(engine, state, scratch, lora))
            entries: dict[str, dict[str, Any]] = {}
            together(lambda: entries.update(self._hash_share(scratch)))
            everything = gather_dicts(entries)
            together(lambda: self._publish(scratch, final, state, everything, best))
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
        swapped = is_swapped(engine)
        with guarded_writes(engine), without_swap_files(engine) if swapped else nullcontext():
            engine.save_checkpoint(str(scratch), tag=TAG, save_latest=False, exclude_frozen_parameters=lora)
        if swapped:
            save_swapped(engine, scratch, self.place.rank)
        tables = tables_of(engine)
        if tables is not None:
            save_tables(tables, scratch)
        random_state = {"torch": torch.get_rng_state()}
        if self.place.device.type == "cuda":
            random_state["device"] = torch.cuda.get_rng_state(self.place.device)
        try:
            torch.save(random_state, scratch / f"random_rank{self.place.rank}.pt")
        except RuntimeError as error:
            raise explain_write(error, scratch) from error
        require_written(engine, scratch, TAG)
        if self.place.is_main:
            facts = {"world_size": self.place.world_size, "zero_stage": engine.zero_optimization_stage()}
            write_json(scratch / "state.json", {**state.to_json(), **facts, "swapped": swapped})

    def _hash_share(self, scratch: Path) -> dict[str, dict[str, Any]]:
        """Manifest entries of this rank's share of the files: hashing and flushing take as long as writing."""
        files = sorted(path for path in scratch.rglob("*") if path.is_file())
        entries = {}
        for path in files[self.place.rank :: self.place.world_size]:
            sync(path)
            name = str(path.relative_to(scratch))
            entries[name] = {"size": path.stat().st_size, "sha256": file_sha256(path)}
        return entries

    def _publish(self, scratch: Path, final: Path, state: TrainState, entries: dict[str, Any], best: bool) -> None:
        if not self.place.is_main:
            return
        write_manifest(
            scratch,
            KIND,
            config=self.identity,
            about={"step": state.step},
            format=FORMAT,
            files=dict(sorted(entries.items())),
        )
        aside = self.folder / f".{final.name}.replaced"
        shutil.rmtree(aside, ignore_errors=True)
        if final.exists():  # only one that did not verify can be in the way
            os.replace(final, aside)
        os.replace(scratch, final)
        sync(self.folder)
        if best:
            write_atomic(self.folder / BEST, final.name + "\n")
        write_atomic(self.folder / LATEST, final.name + "\n")
        kept = {path.name for path in self.found()[: self.keep]} | {self.named(BEST)}
        for old in (aside, *(path for path in self.found() if path.name not in kept)):
            shutil.rmtree(old, ignore_errors=True)

    def found(self) -> list[Path]:
        """Published checkpoints, newest first; verified or not."""
        steps = {path: path.name.removeprefix("step_") for path in self.folder.glob("step_*") if path.is_dir()}
        return sorted(
            (path for path in steps if steps[path].isdigit()), key=lambda path: int(steps[path]), reverse=True
        )

    def named(self, pointer: str) -> str | None:
        """What `latest` or `best` names, None without."""
        file = self.folder / pointer
        return file.read_text().strip() if file.is_file() else None

    def newest_up_to(self, step: int) -> Path | None:
        """The newest published checkpoint of at most so many steps."""
        return next((path for path in self.found() if int(path.name.removeprefix("step_")) <= step), None)

    def newest_valid(self) -> Path | None:
        """The newest checkpoint that verifies and belongs to this configuration, None without any.

        Raises:
            CheckpointError: there are checkpoints of this configuration and none verifies, or one is of a
                newer format than this program reads.
        """
        damaged = []
        for path in self.found():
            try:
                manifest = self._manifest(path)
                if manifest is None:
                    raise CheckpointError("has no manifest: damaged, or not of this program", where=str(path))
                if self._is_other(manifest):
                    continue
                verify(path, manifest)
            except NewerFormatError:
                raise
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

    def settle_others(self, *, finished: bool) -> None:
        """Deal with checkpoints that another configuration made. Rank 0 acts.

        Those of a finished stage, which is now made anew, are moved out of the way and never deleted. Those
        of a run that was interrupted are work that would be lost.

        Raises:
            CheckpointError: the run was interrupted and its settings or inputs have changed; says how.
        """
        for path in self.found() if self.place.is_main else []:
            try:
                manifest = self._manifest(path)
            except DataError:
                continue  # `newest_valid` passes it over and says so
            if manifest is None or not self._is_other(manifest):
                continue
            changed = "; ".join(differences(manifest.config, self.identity))
            if not finished:
                raise CheckpointError(
                    f"settings or inputs changed since the run was interrupted: {changed}",
                    where=str(path),
                    mend=f"restore them, or give another out; to begin anew, move {self.folder} away",
                )
            aside = self.folder.with_name(f"{self.folder.name}-{digest(manifest.config)[:8]}")
            aside.mkdir(parents=True, exist_ok=True)
            os.replace(path, aside / path.name)
            log.warning("%s was made with other settings (%s): moved to %s", path.name, changed, aside)
            for pointer in (LATEST, BEST):
                if self.named(pointer) == path.name:
                    (self.folder / pointer).unlink()

    def set_aside_damaged(self, chosen: Path) -> None:
        """Rename what is newer than the checkpoint that was chosen, and let the pointers follow. Rank 0 acts."""
        if not self.place.is_main:
            return
        for path in self.found():
            if path == chosen:
                break
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)
            if self.named(BEST) == path.name:
                (self.folder / BEST).unlink()
        if self.named(LATEST) != chosen.name:
            write_atomic(self.folder / LATEST, chosen.name + "\n")

    def load(self, engine: Any, path: Path, seed: int) -> TrainState:
        """Restore weights, optimizer, random state and counters from a verified checkpoint. Collective.

        Another number of ranks goes through DeepSpeed's universal format; random numbers (dropout) are then
        drawn from a new state that `seed`, step and rank decide.

        Raises:
            CheckpointError: another ZeRO stage or other trained parameters, pickles that are not DeepSpeed's,
                or DeepSpeed found nothing to load.
        """
        saved = json.loads((path / "state.json").read_text())
        world_size, zero_stage = saved.pop("world_size"), saved.pop("zero_stage")
        stage = engine.zero_optimization_stage()
        if zero_stage != stage:
            raise CheckpointError(
                f"the checkpoint was saved under ZeRO-{zero_stage}, this run uses ZeRO-{stage}",
                where=str(path),
                mend="give the same ZeRO stage, or begin anew in another out",
            )
        swapped = saved.pop("swapped", False)
        if swapped != is_swapped(engine):
            raise CheckpointError(
                f"the checkpoint was saved with optimizer states {'on NVMe' if swapped else 'in memory'}",
                where=str(path),
                mend="continue it with the DeepSpeed JSON that it was started with",
            )
        together(lambda: require_known_pickles(path, self.place.rank, self.place.world_size))
        load_tables(tables_of(engine), path)
        state = TrainState(**saved)
        if world_size == self.place.world_size:
            self._load_same(engine, path)
            return state
        if swapped:
            raise CheckpointError(
                f"the checkpoint was saved by {world_size} ranks with optimizer states on NVMe, this job has "
                f"{self.place.world_size}: such states are not resharded",
                where=str(path),
                mend=f"continue it with {world_size} ranks",
            )
        log.info("%s was saved by %d ranks, this job has %d: resharding", path, world_size, self.place.world_size)
        load_resharded(engine, path, TAG, self.place)
        torch.manual_seed(rank_seed(seed, state.step, self.place.rank))
        return state

    def _load_same(self, engine: Any, path: Path) -> None:
        """Weights, optimizer and random state that as many ranks saved."""
        if is_swapped(engine):
            also = load_swapped(engine, path, TAG, self.place.rank)
        else:
            # Frozen weights are not in the file (they come from the base), hence not strict.
            loaded, also = engine.load_checkpoint(str(path), tag=TAG, load_module_strict=False)
            if loaded is None:
                raise CheckpointError("deepspeed found no checkpoint in the folder", where=str(path))
        require_same_parameters(engine, also, path)
        random_state = torch.load(path / f"random_rank{self.place.rank}.pt", weights_only=True)
        torch.set_rng_state(random_state["torch"])
        if "device" in random_state:
            torch.cuda.set_rng_state(random_state["device"], self.place.device)

    def _is_other(self, manifest: Manifest) -> bool:
        return canonical_json(manifest.config) != canonical_json(self.identity)

    def _manifest(self, path: Path) -> Manifest | None:
        manifest = find_manifest(path)
        if manifest is not None and manifest.kind == KIND and manifest.format > FORMAT:
            raise NewerFormatError(
                f"the checkpoint has format {manifest.format}, this program reads up to {FORMAT}",
                where=str(path / MANIFEST),
                mend="continue with the newer program that wrote it, or begin anew in another out",
            )
        return manifest


class NewerFormatError(CheckpointError):
    """A checkpoint that a newer program wrote: to pass it over would lose its steps."""


def differences(then: Any, now: Any, at: str = "") -> list[str]:
    """Where two JSON values differ: `stage.optim.lr: 0.01 then, 0.02 now`."""
    if isinstance(then, dict) and isinstance(now, dict):
        keys = sorted({*then, *now})
        parts = [differences(then.get(key), now.get(key), f"{at}.{key}" if at else key) for key in keys]
        return [line for part in parts for line in part]
    short = [str(value)[:12] if at.startswith("inputs.") and value else str(value) for value in (then, now)]
    return [] if canonical_json(then) == canonical_json(now) else [f"{at}: {short[0]} then, {short[1]} now"]
