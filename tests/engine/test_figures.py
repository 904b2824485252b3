"""The figures of a real run on two ranks."""

from __future__ import annotations

import pytest
import torch

from slm.engine.distributed import Place
from slm.engine.figures import peak_flops


def test_every_record_has_them_and_they_agree(train, tmp_path):
    outcome = train(tmp_path / "asr", steps=3, activation_checkpointing="all", track={"peak_tflops": 0.5})
    assert outcome.code == 0, outcome.text
    before = {"tokens": 0, "supervised_tokens": 0}
    for record in outcome.metrics:
        tokens, labels = (record[key] - before[key] for key in ("tokens", "supervised_tokens"))
        before = record
        assert record["tokens_per_s"] == pytest.approx(tokens / record["step_s"])
        assert record["supervised_tokens_per_s"] == pytest.approx(labels / record["step_s"])
        assert record["mfu"] == pytest.approx(record["tflops"] / (2 * 0.5))
        assert record["mfu"] < record["hfu"] < 1.5 * record["mfu"]  # 2n again after 4n; the head is not repeated
        assert 0 <= record["data_wait"] < 1 and 0.05 < record["peak_memory_gb"] < 20
        assert record["rank_skew_s"] >= 0 and record["rank_skew_tokens"] >= 0
        assert record["share/asr"] == 1.0
    assert "mfu" in outcome.text, "the screen shows what metrics.jsonl has"


def test_an_unknown_card_has_no_peak(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some New Card")
    assert peak_flops(Place(0, 1, 0, torch.device("cuda", 0)), bf16=True) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert peak_flops(Place(0, 1, 0, torch.device("cuda", 0)), bf16=True) == 989e12
    assert peak_flops(Place(0, 1, 0, torch.device("cuda", 0)), bf16=False) is None
