"""Held-out evaluation while training: the right number, no influence on training, and the best is kept."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from slm.artifact import verify
from slm.data.held_out import hold_out, packed_documents, read_documents
from slm.data.reader import ShardSet
from slm.model.load import load_model


@pytest.fixture(scope="module")
def settings(shards):
    return {"steps": 7, "every": 100, "replay": [{"shards": shards["llm"], "ratio": 0.25}], "lr": 2e-2, "dropout": 0.1}


@pytest.fixture(scope="module")
def often(train, settings, tmp_path_factory):
    outcome = train(tmp_path_factory.mktemp("often") / "asr", eval={"every": 2, "rows": 3}, **settings)
    assert outcome.code == 0, outcome.text
    return outcome


def test_evaluating_changes_nothing(train, settings, often, tmp_path):
    once = train(tmp_path / "asr", eval={"every": 100, "rows": 3}, checkpoint={"keep_best": False}, **settings)
    assert once.code == 0, once.text
    assert ["eval_loss" in record for record in once.metrics] == [False] * 6 + [True]
    assert ["eval_loss" in record for record in often.metrics] == [False, True] * 3 + [True]
    assert [record["loss"] for record in once.metrics] == [record["loss"] for record in often.metrics]
    assert once.metrics[-1]["eval_loss"] == often.metrics[-1]["eval_loss"]
    ours, theirs = (load_file(run.out / "adapter" / "adapter_model.safetensors") for run in (once, often))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert not (once.out / "checkpoints" / "best").exists()


def test_the_losses_are_the_mean_cross_entropy_of_the_held_out_samples(often, shards):
    lm = load_model(often.out).model
    for source in ("asr", "llm"):
        shard_set = ShardSet(shards[source])
        held = hold_out(shard_set, 3, 128)
        total, count = 0.0, 0
        for row in packed_documents(held, 128):
            ids, mask, lengths = read_documents(shard_set, held, row)
            start = 0
            for length in lengths:
                own = torch.from_numpy(ids[start : start + length].astype("int64"))
                labels = torch.from_numpy(mask[start + 1 : start + length].copy())
                with torch.no_grad():
                    log_p = lm(own[None]).logits[0, :-1].log_softmax(-1)
                total -= float(log_p[torch.arange(length - 1), own[1:]][labels].double().sum())
                count += int(labels.sum())
                start += length
        assert count > 20 and often.metrics[-1][f"eval_loss/{source}"] == pytest.approx(total / count, rel=1e-5)
    losses = [often.metrics[-1][f"eval_loss/{source}"] for source in ("asr", "llm")]
    assert often.metrics[-1]["eval_loss"] == pytest.approx(sum(losses) / 2)


def test_the_best_checkpoint_is_kept(often):
    evaluated = {record["step"]: record["eval_loss"] for record in often.metrics if "eval_loss" in record}
    best = min(evaluated, key=evaluated.get)
    folder = often.out / "checkpoints"
    assert (folder / "best").read_text().strip() == f"step_{best:06d}"
    assert verify(folder / f"step_{best:06d}").about["step"] == best
    assert (folder / "latest").read_text().strip() == "step_000007"
