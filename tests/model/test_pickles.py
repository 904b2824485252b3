from __future__ import annotations

import os
import shutil

import pytest
import torch

from slm.errors import CheckpointError
from slm.model.load import load_base
from slm.model.reference import resolve


class Evil:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "pytorch_model.bin"])
def test_weights_that_are_pickles_are_refused_and_not_opened(tmp_path, name, pico_base):
    folder = tmp_path / "global_step10"
    folder.mkdir()
    torch.save(Evil(tmp_path / "executed"), folder / name)
    with pytest.raises(CheckpointError, match=rf"pickles \({name}\)"):
        resolve(folder)
    shutil.copy(pico_base / "config.json", folder)
    with pytest.raises(CheckpointError, match=rf"pickles \({name}\)"):
        load_base(resolve(folder).base)
    assert not (tmp_path / "executed").exists()


def test_pickles_beside_safetensors_do_not_matter(tmp_path, pico_base):
    folder = shutil.copytree(pico_base, tmp_path / "base")
    (folder / "training_args.bin").write_bytes(b"")
    assert load_base(folder).config.vocab_size
