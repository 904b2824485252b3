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
    """Tells one writing of the step's `status.json` from the next; `-` without one."""
    try:
        found = (Path(folder) / STATUS).stat()
    except OSError:
        return "-"
    return f"{found.st_ino}:{found.st_mtime_ns}"


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
    status = (read_status(folder) or {}) if kind == "train" and mark(folder) != before else {}
    state, step = status.get("state"), status.get("step", "?")
    if made and (state == "done" or code == 0):
        return 0, "done"
    if state == "preempted" and status.get("exit_code") == InterruptedRunError.exit_code:
        return InterruptedRunError.exit_code, f"interrupted, saved at step {step}"
    if state == "preempted":
        return PreemptedError.exit_code, f"saved at step {step}, to be continued"
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
