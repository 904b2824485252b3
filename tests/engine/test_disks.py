"""Real file systems that are full or read-only (`make test-cluster`: mounting them takes root)."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from slm.artifact import verify

pytestmark = pytest.mark.cluster


@pytest.fixture
def disk(tmp_path):
    """`disk.mount(options)`: a file system of its own in `disk.folder`."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("root and mount are needed")
    folder = tmp_path / "disk"
    folder.mkdir()

    class Disk:
        def __init__(self):
            self.folder, self.mounted = folder, False

        def mount(self, options):
            remount = ["-o", f"remount,{options}"] if self.mounted else ["-t", "tmpfs", "-o", options, "tmpfs"]
            done = subprocess.run(["mount", *remount, str(folder)], capture_output=True, text=True)
            if done.returncode and not self.mounted:
                pytest.skip(f"this machine mounts no file systems: {done.stderr.strip()}")
            assert done.returncode == 0, done.stderr
            self.mounted = True

    made = Disk()
    yield made
    if made.mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_keeps_what_was_complete_and_the_next_run_continues(train, tmp_path, disk):
    straight = train(tmp_path / "straight", steps=8, every=2, seed=1)
    size = sum(path.stat().st_size for path in (straight.out / "checkpoints" / "step_000008").rglob("*"))
    disk.mount(f"size={int(size * 1.6) // 1024}k")  # one checkpoint, and not two
    out = disk.folder / "asr"
    full = train(out, steps=8, every=2, seed=1)
    assert full.code == 4 and "error: no space left" in full.text and "Traceback" not in full.text, full.text
    verify(out / "checkpoints" / (out / "checkpoints" / "latest").read_text().strip())
    assert not list((out / "checkpoints").glob(".*"))
    disk.mount(f"size={20 * size // 1024}k")
    again = train(out, steps=8, every=2, seed=1)
    assert again.code == 0 and "resumed from" in again.text, again.text
    assert [record["loss"] for record in again.metrics] == [record["loss"] for record in straight.metrics]


def test_a_read_only_folder_is_refused_before_any_work(train, disk):
    disk.mount("size=4m")
    disk.mount("ro")
    outcome = train(disk.folder / "runs" / "asr", seed=1)
    assert outcome.code == 4 and "error: no permission" in outcome.text, outcome.text
    assert "Traceback" not in outcome.text and "trainable parameters" not in outcome.text
