from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from slm.startup import importing

LEAVING = """
import atexit, gc, sys
from slm.errors import run_entry

def told():
    print(gc.get_freeze_count() > 0)

atexit.register(told)  # last in, first out: called after what run_entry registers
for _ in range(2):
    run_entry(lambda: 0)
print(gc.get_freeze_count() > 0)
"""


def test_the_collector_rests_while_modules_load_and_comes_back():
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with importing():
            pass
        assert not gc.isenabled()  # as it was found
    finally:
        gc.enable()


def test_a_process_leaves_without_a_last_collection_and_frees_memory_until_then():
    shown = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["False", "True"]
