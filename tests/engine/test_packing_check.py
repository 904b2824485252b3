"""The packing contract is proved on the run's own engine, or the run does not start."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from slm.engine.packing_check import require_separate_documents
from slm.errors import MachineError
from slm.model import attention
from slm.model.load import load_base
from slm.model.supervised import SupervisedLM

PLACE = SimpleNamespace(device=torch.device("cpu"))


class Engine:
    """What the check uses of a DeepSpeed engine."""

    def __init__(self, base, backend):
        attention.register()
        lm = load_base(base, attention=backend)
        lm.config.use_cache = False
        self.module = SupervisedLM(lm)
        self.training, self.train, self.eval = True, self.module.train, self.module.eval

    def __call__(self, *arguments):
        return self.module(*arguments)


@pytest.mark.parametrize("backend", ["eager", "sdpa", attention.DOCUMENTS])
def test_every_backend_keeps_documents_apart(pico_base, backend):
    engine = Engine(pico_base, backend)
    require_separate_documents(engine, PLACE)
    assert engine.module.training


def test_a_backend_that_mixes_documents_is_refused(pico_base, monkeypatch):
    monkeypatch.setattr(
        "slm.model.supervised.document_arguments",
        lambda backend, lengths, device: {"document_lengths": [sum(lengths)]},
    )
    with pytest.raises(MachineError, match="see one another") as failure:
        require_separate_documents(Engine(pico_base, attention.DOCUMENTS), PLACE)
    assert attention.DOCUMENTS in failure.value.where


def test_a_cache_is_refused(pico_base):
    engine = Engine(pico_base, "sdpa")
    engine.module.lm.config.use_cache = True
    with pytest.raises(MachineError, match="keeps a cache"):
        require_separate_documents(engine, PLACE)
