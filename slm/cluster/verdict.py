"""What became of a step that a batch script ran: `status.json` and the manifest decide, the exit code comes last.

`python -m slm.cluster.verdict mark FOLDER` before the step, `… judge KIND FOLDER MARK CODE` after it: the exit code is
the verdict (0 done, 85 saved and to be run again, else failed).
"""

from __future__ import annotations

import sys
from pathlib import Path

from slm.artifact import STATUS, find_manifest, read_status
from slm.errors import ConfigError, InterruptedRunError, PreemptedError, SlmError, run_entry


def mark(folder: str | Path) -> str:
    """Tells one writing of `status.json` from the next (`-` without one), and the newest checkpoint's step."""
    return f"{_stamp(folder)}/{_saved(folder)}"


def _stamp(folder: str | Path) -> str:
    try:
        found = (Path(folder) / STATUS).stat()
    except OSError:
        return "-"
    return f"{found.st_ino}:{found.st_mtime_ns}"


def _saved(folder: str | Path) -> int:
    names = [path.name.removeprefix("step_") for path in Path(folder).glob("checkpoints/step_*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def judge(kind: str, folder: str | Path, before: str, code: int) -> tuple[int, str]:
    """What became of a step.

    Args:
        kind: `train` for steps that write `status.json`.
        before: `mark` of the folder from before the step.
        code: the command's exit code.

    Returns:
        The exit code of `slm.errors` that tells it, and a few words.
    """
    made = find_manifest(folder) is not None
    stamp, _, saved = before.partition("/")
    status = (read_status(folder) or {}) if kind == "train" and _stamp(folder) != stamp else {}
    state, step = status.get("state"), status.get("step", "?")
    if made and (state == "done" or code == 0):
        return 0, "done"
    if state == "preempted" and status.get("exit_code") == InterruptedRunError.exit_code:
        return InterruptedRunError.exit_code, f"interrupted, saved at step {step}"
    if state == "preempted":
        return PreemptedError.exit_code, f"saved at step {step}, to be continued"
    if state == "failed" and status.get("lost") and _saved(folder) > int(saved or 0):
        words = f"lost a rank or a host, and got further: continues from step {_saved(folder)}"
        return PreemptedError.exit_code, f"{words} ({status.get('reason')})"
    if state == "failed":
        words = f"failed on {status.get('host')}, rank {status.get('rank')}, step {step}: {status.get('reason')}"
        return int(status.get("exit_code") or code or 1), words
    if kind != "train" and code == PreemptedError.exit_code:
        return PreemptedError.exit_code, "stopped as asked, to be run again"
    if code == 0:
        return 1, "ended without its artifact"
    return code, f"ended with exit code {code}, without a word in {STATUS}" if kind == "train" else f"exit code {code}"


def main(argv: list[str]) -> int:
    """The command line of the batch scripts."""
    if argv[:1] == ["mark"] and len(argv) == 2:
        sys.stdout.write(mark(argv[1]) + "\n")
        return 0
    if argv[:1] == ["judge"] and len(argv) == 5 and argv[4].isdigit():
        try:
            code, words = judge(argv[1], argv[2], argv[3], int(argv[4]))
        except SlmError as error:
            code, words = int(argv[4]) or error.exit_code, error.what
        sys.stdout.write(f"{argv[2]}: {words}\n")
        return code
    raise ConfigError("usage: python -m slm.cluster.verdict mark FOLDER | judge KIND FOLDER MARK CODE")


if __name__ == "__main__":
    sys.exit(run_entry(lambda: main(sys.argv[1:])))
