"""Artifacts: folders whose `MANIFEST.json` is written last.

A folder without a manifest is not an artifact, so "does the manifest exist and match?" is the one
question behind resume, skipping, and "what made this?". The *fingerprint* covers what determines
the bytes: kind, format, the configuration that changes them, the fingerprints of the inputs, and
the sha256 of the files. Times, hosts, paths and versions are recorded beside it, never in it.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from slm.errors import CheckpointError, DataError, SlmError, from_os_error
from slm.remote import is_url, join, read_whole

MANIFEST = "MANIFEST.json"
STATUS = "status.json"
VERSIONED = ("torch", "deepspeed", "transformers", "peft", "webdataset", "mergekit", "scikit-learn", "numpy")


@dataclass(frozen=True)
class Manifest:
    """What a finished artifact says of itself.

    Attributes:
        kind: what it is (`shards`, `base`, `adapter`, …).
        format: version of that kind's layout.
        fingerprint: hex sha256, see the module docstring.
        config: the configuration that changes the bytes.
        inputs: name -> fingerprint of each artifact that was read.
        files: relative path -> {"size": bytes, "sha256": hex}.
        about: facts for people and programs that do not change the bytes (counts, realised
            shares, seconds, the resolved configuration).
        versions: packages that made it.
        created: ISO time, UTC.
    """

    kind: str
    format: int
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, dict[str, Any]]
    about: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """Hex sha256 of a JSON value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_sha256(path: str | Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_of(
    kind: str, format: int, config: Mapping[str, Any], inputs: Mapping[str, str], files: Mapping[str, Mapping[str, Any]]
) -> str:
    """The identity of an artifact (design §4)."""
    hashes = {name: entry["sha256"] for name, entry in files.items()}
    return digest({"kind": kind, "format": format, "config": dict(config), "inputs": dict(inputs), "files": hashes})


def package_versions() -> dict[str, str]:
    """Versions of the packages that shape an artifact, those that are installed."""
    found = {}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_atomic(path: str | Path, data: str | bytes) -> None:
    """Write a whole file so that a reader sees the old content or the new, never a part.

    Raises:
        MachineError: no space or no permission; nothing half-written is left.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")  # two threads may write it
    try:
        with open(part, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise from_os_error(error, f"writing {path}") from error


def write_json(path: str | Path, value: Any) -> None:
    """`write_atomic` of indented JSON."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise DataError("file not found", where=str(path)) from None
    except ValueError as error:
        raise DataError(f"not valid JSON: {error}", where=str(path)) from None


def hash_files(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file below `folder`, the manifest and hidden files left out."""
    folder = Path(folder)
    found = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not hidden and str(relative) != MANIFEST:
            found[str(relative)] = {"size": path.stat().st_size, "sha256": file_sha256(path)}
    return found


def write_manifest(
    folder: str | Path,
    kind: str,
    *,
    config: Mapping[str, Any],
    inputs: Mapping[str, str] | None = None,
    about: Mapping[str, Any] | None = None,
    format: int = 1,
    files: Mapping[str, Mapping[str, Any]] | None = None,
) -> Manifest:
    """Seal a folder: hash its files (unless given) and write `MANIFEST.json` last."""
    entries = dict(files) if files is not None else hash_files(folder)
    inputs = dict(inputs or {})
    manifest = Manifest(
        kind=kind,
        format=format,
        fingerprint=fingerprint_of(kind, format, config, inputs, entries),
        config=dict(config),
        inputs=inputs,
        files={name: dict(entry) for name, entry in entries.items()},
        about=dict(about or {}),
        versions=package_versions(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    write_json(Path(folder) / MANIFEST, asdict(manifest))
    return manifest


def find_manifest(folder: str | Path) -> Manifest | None:
    """The folder's manifest, or None when it is no artifact (missing or unfinished).

    Args:
        folder: a path, or a URL: then the manifest is asked for each time, so that a set that was
            built again is seen.
    """
    path = join(str(folder), MANIFEST) if is_url(str(folder)) else str(Path(folder) / MANIFEST)
    if is_url(path):
        try:
            raw = json.loads(read_whole(path))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DataError(f"not valid JSON: {error}", where=path) from None
    elif Path(path).is_file():
        raw = read_json(path)
    else:
        return None
    try:
        return Manifest(**raw)
    except TypeError:
        raise DataError("not a manifest of this program", where=path) from None


def read_manifest(folder: str | Path, kind: str | tuple[str, ...] | None = None) -> Manifest:
    """The folder's manifest.

    Raises:
        DataError: no finished artifact there, or one of another kind.
    """
    manifest = find_manifest(folder)
    kinds = (kind,) if isinstance(kind, str) else kind
    wanted = " or ".join(kinds) if kinds else "artifact"
    if manifest is None:
        raise DataError(
            f"no finished {wanted} here", where=str(folder), mend="make it first, or check the path (no MANIFEST.json)"
        )
    if kinds and manifest.kind not in kinds:
        raise DataError(f"expected {wanted}, found {manifest.kind}", where=str(folder))
    return manifest


def verify(
    folder: str | Path, manifest: Manifest | None = None, *, error: type[SlmError] = CheckpointError
) -> Manifest:
    """Check every file of an artifact against its manifest.

    Raises:
        error: names the first file that is missing or differs.
    """
    manifest = manifest or read_manifest(folder)
    for name, entry in manifest.files.items():
        path = Path(folder) / name
        if not path.is_file():
            raise error("file of the artifact is missing", where=str(path))
        if path.stat().st_size != entry["size"]:
            raise error(f"size is {path.stat().st_size}, manifest says {entry['size']}", where=str(path))
        if file_sha256(path) != entry["sha256"]:
            raise error("content differs from the manifest (sha256)", where=str(path))
    return manifest


def is_current(
    folder: str | Path, kind: str, config: Mapping[str, Any], inputs: Mapping[str, str], *, format: int = 1
) -> tuple[bool, str]:
    """Whether the artifact in `folder` was made from this very configuration and these inputs.

    Returns:
        (True, "") or (False, why it has to be made).
    """
    manifest = find_manifest(folder)
    if manifest is None:
        return False, "not made yet"
    if (manifest.kind, manifest.format) != (kind, format):
        return False, f"is {manifest.kind} format {manifest.format}"
    if canonical_json(manifest.config) != canonical_json(dict(config)):
        changed = sorted(
            key
            for key in {*manifest.config, *config}
            if canonical_json(manifest.config.get(key)) != canonical_json(config.get(key))
        )
        return False, f"configuration changed: {', '.join(changed)}"
    if manifest.inputs != dict(inputs):
        changed = sorted(key for key in {*manifest.inputs, *inputs} if manifest.inputs.get(key) != inputs.get(key))
        return False, f"input changed: {', '.join(changed)}"
    for name, entry in manifest.files.items():
        try:
            size = os.stat(os.path.join(folder, name)).st_size  # one call each: corpora have thousands
        except OSError:
            return False, f"file missing: {name}"
        if size != entry["size"]:
            return False, f"file changed size: {name}"
    return True, ""


def remove(folder: str | Path) -> None:
    """Remove an artifact, its manifest first: killed in the middle, what is left does not look finished."""
    (Path(folder) / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def building(folder: str | Path) -> Iterator[Path]:
    """A scratch folder that becomes `folder` when the block succeeds, and vanishes when it fails.

    An older `folder` is replaced: moved aside whole, then removed, so that what stands under the
    name is at any moment an old artifact, a new one, or nothing. The block is expected to call
    `write_manifest` on the scratch folder as its last act.

    Raises:
        MachineError: no space or no permission; the older artifact is as it was.
    """
    folder = Path(folder)
    scratch = folder.with_name(f".{folder.name}.building-{os.getpid()}")
    aside = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
    for left in (*folder.parent.glob(f".{folder.name}.building-*"), *folder.parent.glob(f".{folder.name}.replaced-*")):
        owner = left.name.rpartition("-")[2]
        if owner.isdigit() and (int(owner) == os.getpid() or not _is_alive(int(owner))):
            remove(left)
    try:
        scratch.mkdir(parents=True)
        yield scratch
        if folder.exists():
            os.replace(folder, aside)
        os.replace(scratch, folder)
        remove(aside)
    except OSError as error:
        if aside.exists() and not folder.exists():
            os.replace(aside, folder)
        raise from_os_error(error, f"making {folder}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True  # another user's
    except (ProcessLookupError, OverflowError):
        return False
    return True


def write_status(
    folder: str | Path,
    state: str,
    *,
    exit_code: int = 0,
    step: int = 0,
    steps: int = 0,
    reason: str = "",
    rank: int = 0,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Record what became of a run: launchers lose or change exit codes, this file does not.

    Args:
        state: running, done, preempted or failed.
        rank: that is spoken of.
        about: what is known of it besides, and its `host` and `pid` where they are not this process's own. `lost`: it
            died or hangs, so that the same command may well succeed.
    """
    status = {"state": state, "exit_code": exit_code, "step": step, "steps": steps, "reason": reason}
    place = {"host": socket.gethostname(), "rank": rank, "pid": os.getpid()}
    write_json(Path(folder) / STATUS, {**status, **place, **(about or {})})


def read_status(folder: str | Path) -> dict[str, Any] | None:
    """The run's last `write_status`, None when there is none."""
    path = Path(folder) / STATUS
    return read_json(path) if path.is_file() else None
