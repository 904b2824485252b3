"""Run a pipeline: base, stages, merges, evaluation and report as one graph of artifacts.

    python launcher/pipeline.py ds_configs/pipelines/tiny.yaml [--dry-run] [--status] [--only STEP] [--from STEP]

Steps that are done are skipped; a run that was stopped or killed continues. `slm pipeline` is the same.
"""

from __future__ import annotations

import sys

from slm.cli.app import main

if __name__ == "__main__":
    sys.exit(main(["pipeline", *sys.argv[1:]], name="launcher/pipeline.py"))
