"""Evaluate models: `python -m slm.eval CONFIG.yaml [key=value …]`."""

from __future__ import annotations

import sys
from pathlib import Path

from slm.errors import ConfigError, run_entry

CONFIGS = Path("ds_configs/eval")


def usage() -> str:
    """What the command takes, and which configurations there are."""
    places = (CONFIGS, Path(__file__).resolve().parents[2] / CONFIGS)
    folder = next((place for place in places if place.is_dir()), CONFIGS)
    known = "\n".join(f"  {path}" for path in sorted(folder.glob("*.yaml"))) or f"  (none in {folder})"
    return (
        "usage: python -m slm.eval CONFIG.yaml [key=value …]\n"
        "example: python -m slm.eval ds_configs/eval/tiny.yaml out=runs/e data=runs/q/data model=runs/q/replay-sqa\n"
        f"configurations:\n{known}"
    )


def main(arguments: list[str]) -> int:
    """Load the configuration, evaluate, print the table.

    Raises:
        SlmError: see `run_evaluation` and `load_config`.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stderr.write(usage() + "\n")
        return 0 if arguments else ConfigError.exit_code
    from slm.engine.load import load_any
    from slm.eval.command import evaluate

    return evaluate(arguments[0], arguments[1:], load_any)


if __name__ == "__main__":
    sys.exit(run_entry(lambda: main(sys.argv[1:])))
