"""The `slm` command: `python -m slm --help`."""

from __future__ import annotations

import sys

from slm.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
