"""`slm speech env seamless`: an environment for the original package, which can't live beside a modern trainer.

seamless_communication is on no package index and needs fairseq2 0.2 (torch 2.2, Python up to 3.11). Its pins are in
`seamless_pins.txt`; the package itself comes from a checkout or from its repository at `COMMIT`, without its own
requirements, most of which neither extractor nor vocoder imports.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

from slm.artifact import digest, write_json
from slm.errors import DataError, MachineError

log = logging.getLogger(__name__)

PINS = Path(__file__).with_name("seamless_pins.txt")
COMMIT = "90e2b57ac4d82fa2bfaa25caeffe39ceb8b2ebec"
"""The package's last commit, 2024-11-14."""
REPOSITORY = "https://github.com/facebookresearch/seamless_communication"
DONE_FILE = "environment.json"
NEWEST, OLDEST = (3, 11), (3, 9)
"""Pythons that have wheels of fairseq2n 0.2.1 and of the pinned numpy."""
CHECK = "import seamless_communication.models.unit_extractor, seamless_communication.models.vocoder"


def make_environment(folder: str | Path, source: str | None = None, python: str | None = None) -> Path:
    """Make the environment, unless it is finished already.

    Args:
        folder: is made; some 5 GB.
        source: checkout of the package; None takes `COMMIT` from its repository.
        python: interpreter, 3.9 … 3.11; None looks for one.

    Returns:
        The environment's interpreter.

    Raises:
        DataError: `source` is no checkout of the package.
        MachineError: no fitting Python, a package that can't be installed, or an import that fails.
    """
    folder = Path(folder)
    wanted = {"pins": digest(PINS.read_text()), "commit": _commit_of(source)}
    done = folder / DONE_FILE
    if done.is_file() and json.loads(done.read_text()) == wanted:
        log.info("%s: up to date", folder)
        return interpreter(folder)
    if folder.exists() and not done.is_file() and not (folder / "pyvenv.cfg").is_file() and any(folder.iterdir()):
        raise MachineError("the folder holds something else", where=str(folder), mend="name a folder that is new")
    done.unlink(missing_ok=True)
    chosen = python or _find_python()
    _run([chosen, "-m", "venv", "--clear", str(folder)], "making the environment")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
    log.info("%s: installing the pinned packages, some 3 GB", folder)
    _run([*pip, "-r", str(PINS)], "installing the pinned packages")
    package = str(Path(source).resolve()) if source is not None else f"git+{REPOSITORY}@{COMMIT}"
    _run([*pip, "--no-deps", package], "installing seamless_communication")
    _run([str(folder / "bin" / "python"), "-c", CHECK], "importing seamless_communication")
    write_json(done, wanted)
    log.info("%s: made", folder)
    return interpreter(folder)


def interpreter(folder: str | Path) -> Path:
    """The interpreter of a finished environment.

    Raises:
        MachineError: there is none.
    """
    folder = Path(folder)
    if not (folder / DONE_FILE).is_file():
        raise MachineError(
            "no finished environment of seamless_communication here",
            where=str(folder),
            mend=f"slm speech env seamless {folder}",
        )
    return folder.resolve() / "bin" / "python"


def _commit_of(source: str | None) -> str:
    """The commit of a checkout, as far as it tells; says so where it is another than the pinned one."""
    if source is None:
        return COMMIT
    if not (Path(source) / "src" / "seamless_communication" / "models" / "unit_extractor").is_dir():
        raise DataError(
            "no checkout of seamless_communication: no src/seamless_communication/models/unit_extractor",
            where=source,
            mend=f"git clone {REPOSITORY}",
        )
    told = subprocess.run(["git", "-C", source, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    found = told.stdout.strip() if (Path(source) / ".git").exists() and told.returncode == 0 else "unknown"
    if found != COMMIT:
        log.warning("%s is at commit %s; parity was recorded at %s", source, found, COMMIT)
    return found


def _find_python() -> str:
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return sys.executable
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        found = shutil.which(f"python3.{minor}")
        if found:
            return found
    raise MachineError(
        f"fairseq2 0.2 needs Python {OLDEST[0]}.{OLDEST[1]} … {NEWEST[0]}.{NEWEST[1]}",
        where="slm speech env seamless",
        mend="install one, or name it by --python",
    )


def _run(command: list[str], doing: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise MachineError(f"{doing} failed: {error.strerror}", where=command[0]) from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
        told = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no message")
        raise MachineError(
            f"{doing} failed: {told}",
            where=" ".join(command),
            mend="run that command by itself to see all it says; without a network give --source CHECKOUT",
        )
