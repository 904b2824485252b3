"""The protocol without an engine: which checkpoint counts, which are kept, what the pointers name."""

from __future__ import annotations

import json
import os

import pytest
import torch

from slm.artifact import hash_files, read_manifest, verify, write_json, write_manifest
from slm.engine.checkpoint import FORMAT, Checkpoints, differences
from slm.engine.distributed import Place
from slm.engine.pickles import require_known_pickles
from slm.engine.state import TrainState
from slm.errors import CheckpointError

IDENTITY = {"stage": {"optim": {"lr": 0.01, "clip": 1.0}}, "inputs": {"shards": "a" * 64}}


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", Place(0, 1, 0, torch.device("cpu")), IDENTITY, keep=2)


def publish(checkpoints, step, best=False):
    final = checkpoints.folder / f"step_{step:06d}"
    scratch = checkpoints.folder / f".{final.name}.tmp"
    scratch.mkdir(parents=True)
    (scratch / "weights.pt").write_bytes(os.urandom(100))
    checkpoints._publish(scratch, final, TrainState(step=step), hash_files(scratch), best)
    return final


def names(checkpoints):
    return [path.name for path in checkpoints.found()]


def test_the_newest_and_the_best_are_kept(checkpoints):
    for step, best in [(1, True), (2, True), (3, False), (4, False), (5, False)]:
        verify(publish(checkpoints, step, best))
    assert names(checkpoints) == ["step_000005", "step_000004", "step_000002"]
    assert (checkpoints.named("latest"), checkpoints.named("best")) == ("step_000005", "step_000002")
    publish(checkpoints, 6, best=True)
    assert names(checkpoints) == ["step_000006", "step_000005"]
    assert [path.name for path in checkpoints.folder.iterdir() if path.name.startswith(".")] == []


def test_a_damaged_newest_is_passed_over_and_the_pointers_follow(checkpoints, caplog):
    good, bad = publish(checkpoints, 1), publish(checkpoints, 2, best=True)
    (bad / "weights.pt").write_bytes(b"x" * 100)
    assert checkpoints.newest_valid() == good and "step_000002" in caplog.text
    checkpoints.set_aside_damaged(good)
    assert checkpoints.named("latest") == good.name and checkpoints.named("best") is None
    assert names(checkpoints) == [good.name] and (checkpoints.folder / "damaged-step_000002").is_dir()


def test_the_last_good_one(checkpoints):
    for step in (2, 4):
        publish(checkpoints, step)
    assert checkpoints.newest_up_to(3).name == "step_000002" and checkpoints.newest_up_to(1) is None


def changed(checkpoints):
    other = {"stage": {"optim": {"lr": 0.02, "clip": 1.0}}, "inputs": {"shards": "b" * 64}}
    return Checkpoints(checkpoints.folder, checkpoints.place, other, keep=2)


def test_an_interrupted_run_with_other_settings_is_an_error_that_prints_them(checkpoints):
    path = publish(checkpoints, 1)
    with pytest.raises(CheckpointError) as failure:
        changed(checkpoints).settle_others(finished=False)
    assert "stage.optim.lr: 0.01 then, 0.02 now" in failure.value.what and "clip" not in failure.value.what
    assert f"inputs.shards: {'a' * 12} then, {'b' * 12} now" in failure.value.what
    assert path.is_dir() and checkpoints.newest_valid() == path
    checkpoints.settle_others(finished=False)  # its own are no others


def test_a_finished_stage_that_is_made_anew_moves_its_old_checkpoints(checkpoints):
    publish(checkpoints, 1, best=True)
    other = changed(checkpoints)
    other.settle_others(finished=True)
    assert other.newest_valid() is None and other.named("latest") is None and other.named("best") is None
    (aside,) = checkpoints.folder.parent.glob("checkpoints-*")
    verify(aside / "step_000001")


def test_a_newer_format_is_never_passed_over(checkpoints):
    publish(checkpoints, 1)
    newer = publish(checkpoints, 2)
    manifest = json.loads((newer / "MANIFEST.json").read_text())
    write_json(newer / "MANIFEST.json", manifest | {"format": FORMAT + 1})
    for act in (checkpoints.newest_valid, lambda: checkpoints.settle_others(finished=False)):
        with pytest.raises(CheckpointError, match=f"format {FORMAT + 1}, this program reads up to {FORMAT}"):
            act()


def test_a_folder_from_elsewhere_has_no_manifest_and_is_not_opened(checkpoints, tmp_path, caplog):
    ours = publish(checkpoints, 1)
    foreign = checkpoints.folder / "step_000009"
    foreign.mkdir()
    torch.save(Evil(tmp_path / "executed"), foreign / "model_states.pt")
    assert checkpoints.newest_valid() == ours and "has no manifest" in caplog.text
    assert not (tmp_path / "executed").exists()


class Evil:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_a_sealed_pickle_that_calls_something_is_not_loaded(tmp_path):
    folder = tmp_path / "step_000001"
    (folder / "deepspeed").mkdir(parents=True)
    torch.save({"weights": torch.ones(2)}, folder / "random_rank0.pt")
    require_known_pickles(folder)
    torch.save({"weights": Evil(tmp_path / "executed")}, folder / "deepspeed" / "optim_states.pt")
    write_manifest(folder, "checkpoint", config=IDENTITY)
    assert read_manifest(folder).files["deepspeed/optim_states.pt"]
    with pytest.raises(CheckpointError, match=r"a pickle that calls (posix|os)\.mkdir"):
        require_known_pickles(folder)
    (folder / "deepspeed" / "optim_states.pt").write_bytes(b"no zip at all")
    with pytest.raises(CheckpointError, match="not a checkpoint file"):
        require_known_pickles(folder)
    assert not (tmp_path / "executed").exists()


def test_differences_name_the_place():
    assert differences({"a": {"b": 1}, "c": [1]}, {"a": {"b": 1}, "c": [1, 2]}) == ["c: [1] then, [1, 2] now"]
    assert differences({"a": 1}, {"a": 1, "new": {"x": 2}}) == ["new: None then, {'x': 2} now"]
