"""Build training data: `python data_shards/build.py JOB.yaml [--workers N] [--task I/N | --join] [key=value …]`.

`slm data build` is the same.
"""

from __future__ import annotations

import sys

from slm.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["data", "build", *sys.argv[1:]], name="data_shards/build.py"))
