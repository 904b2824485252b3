"""What every configuration is: strict, frozen, and able to say what determines its output.

A `Job` is the typed form of one command that makes an artifact. `identity()` and `inputs()` are
what the artifact's manifest records, and they can be computed without running the command (no
torch, no files of the job opened), so the pipeline knows what is done and what is stale.
"""

from __future__ import annotations

import ast
import inspect
import logging
import textwrap
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from slm.artifact import digest, file_sha256, find_manifest, is_current, read_manifest

log = logging.getLogger(__name__)


class Strict(BaseModel):
    """A typed section: unknown keys are errors, values are frozen, `True` is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def meanings(cls) -> dict[str, str]:
        """Key -> what it means, from the docstrings under the fields; keys without one are left out.

        Read from the source only when asked: pydantic's `use_attribute_docstrings` reads it for every class that is
        imported, a fifth of the time of `pipeline --dry-run`.
        """
        found = {}
        for model in reversed(cls.__mro__):
            if issubclass(model, Strict):
                (written,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
                assert isinstance(written, ast.ClassDef)
                for field, text in pairwise(written.body):
                    if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                        found[ast.unparse(field.target)] = inspect.cleandoc(ast.literal_eval(text.value))
        return found


class Job(Strict):
    """A command that makes the artifact folder `out`.

    Class attributes:
        kind, format: what the artifact's manifest says it is.
        ignored: dotted-path-free top-level keys that never change the bytes.
    """

    kind: ClassVar[str]
    format: ClassVar[int] = 1
    ignored: ClassVar[tuple[str, ...]] = ()

    out: str
    """Folder of the artifact."""

    def inputs(self) -> dict[str, str]:
        """Name -> folder of every artifact that is read."""
        return {}

    def fingerprints(self) -> dict[str, str]:
        """Name -> fingerprint of everything that is read: of `inputs()`, and of what is no artifact.

        Raises:
            DataError: an input is missing or unfinished.
        """
        return input_fingerprints_of(self.inputs())

    def identity(self) -> dict[str, Any]:
        """The part of the configuration that changes the bytes: paths and display left out."""
        return self.model_dump(mode="json", exclude={"out", *self.ignored})


def input_fingerprints(job: Job) -> dict[str, str]:
    """The fingerprint of everything a job reads.

    Raises:
        DataError: an input is missing or unfinished.
    """
    return job.fingerprints()


def input_fingerprints_of(places: Mapping[str, str]) -> dict[str, str]:
    """Name -> fingerprint of every artifact; a downloaded model, which has no manifest, counts by its files' content.

    Raises:
        DataError: one is missing or unfinished.
    """
    return {name: _fingerprint_in(place) for name, place in places.items()}


def _fingerprint_in(place: str) -> str:
    if (Path(place) / "config.json").is_file() and find_manifest(place) is None:
        return fingerprint_of_weights(Path(place))
    return read_manifest(place).fingerprint


def fingerprint_of_weights(*folders: Path) -> str:
    """Hash of the configurations and weights of models and adapters that have no manifest."""
    found = [path for folder in folders for path in folder.glob("*.safetensors")]
    found += [folder / name for folder in folders for name in ("config.json", "adapter_config.json")]
    return digest({path.name: file_sha256(path) for path in found if path.is_file()})


def to_make(job: Job) -> dict[str, str] | None:
    """What a job has to be made from, or None when its artifact is up to date; says which, and why.

    Returns:
        The fingerprints of the job's inputs, for the manifest.

    Raises:
        DataError: an input is missing or unfinished.
    """
    inputs = input_fingerprints(job)
    current, why = is_current(job.out, job.kind, job.identity(), inputs, format=job.format)
    log.info("%s: %s", job.out, "up to date" if current else why)
    return None if current else inputs
