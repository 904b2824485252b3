"""What each rank of `test_distributed` runs: rank 0 takes longer than the process group waits.

usage: patience_job.py OUT. Each rank writes OUT-RANK: how the patient wait ended, then how the other one did.
"""

from __future__ import annotations

import datetime
import sys
import time
from pathlib import Path


def main() -> None:
    from slm.engine.distributed import find_place, prepare_environment, process_group, together

    prepare_environment()
    place = find_place()
    ends = []
    with process_group(place, timeout_minutes=5 / 60):
        for within in (datetime.timedelta(minutes=2), None):
            try:
                together(lambda: time.sleep(0 if place.rank else 9), within=within)
            except RuntimeError as error:
                ends.append(f"{type(error).__name__}: {error}")
            else:
                ends.append("together")
        Path(f"{sys.argv[1]}-{place.rank}").write_text("\n".join(line.splitlines()[0] for line in ends))


if __name__ == "__main__":
    main()
