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


LEAVING_AT_ONCE = """
import atexit, sys
from slm.startup import leave_with

if sys.argv[1] == "torch":
    import torch
atexit.register(print, "taken apart")
print("said")
sys.exit(leave_with(int(sys.argv[2])))
"""


@pytest.mark.parametrize(("loaded", "code", "apart"), [("torch", 4, False), ("torch", 0, False), ("nothing", 4, True)])
def test_a_rank_ends_at_once(loaded, code, apart):
    ended = subprocess.run([sys.executable, "-c", LEAVING_AT_ONCE, loaded, str(code)], capture_output=True, text=True)
    assert ended.returncode == code
    assert ended.stdout.split("\n")[:-1] == ["said", *(["taken apart"] if apart else [])]


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
