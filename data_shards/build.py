"""Build training data: `python data_shards/build.py JOB.yaml [key=value …]`."""

from __future__ import annotations

import sys
from pathlib import Path

from slm.errors import ConfigError, run_entry

JOBS = {"tiny": ("slm.config.tiny:TinyDataJob", "slm.tiny.build:build_tiny")}
"""What a job file's `job:` may name -> its configuration and the function that runs it."""


def main() -> int:
    """Read the job file, find out which job it configures, run it."""
    from importlib import import_module

    from slm.config.loader import load_config, read_layers
    from slm.log import setup_logging

    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        files = sorted(str(path) for path in (Path(__file__).parent / "jobs").glob("*.yaml"))
        print(f"{__doc__}\n\njobs:\n  " + "\n  ".join(files), file=sys.stderr)
        return 0 if len(sys.argv) > 1 else ConfigError.exit_code
    path, overrides = sys.argv[1], sys.argv[2:]
    name = read_layers(path, overrides).values.get("job")
    if name not in JOBS:
        raise ConfigError(f"job: expected one of {', '.join(sorted(JOBS))}, got {name!r}", where=path)
    settings, function = (getattr(import_module(m), a) for m, a in (target.split(":") for target in JOBS[name]))
    setup_logging()
    function(load_config(settings, path, overrides))
    return 0


if __name__ == "__main__":
    sys.exit(run_entry(main))
