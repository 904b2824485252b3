"""A checkpoint gives the very model that its stage exports at the same step."""

from __future__ import annotations

import json

import pytest
import torch

from slm.artifact import verify
from slm.cli.app import main
from slm.engine.checkpoint_model import is_checkpoint, load_checkpoint
from slm.errors import CheckpointError
from slm.model.load import load_model

MODES = {
    "lora, tables split over the ranks": {"model": {"vocabulary_parallel": True}},
    "lora, new rows alone": {"model": {"vocabulary": "new_rows"}},
    "lora, a whole module, ZeRO-2": {
        "model": {"vocabulary_parallel": False, "also_train": [r"model\.layers\.1\.self_attn\.v_proj"]},
        "zero": "zero2.json",
    },
    "all weights": {"mode": "full", "model": {"vocabulary_parallel": False}},
}


@pytest.mark.parametrize("mode", sorted(MODES))
def test_the_last_checkpoint_is_the_finished_step(mode, train, tmp_path):
    outcome = train(tmp_path / "asr", steps=2, every=2, **MODES[mode])
    assert outcome.code == 0, outcome.text
    checkpoint = outcome.out / "checkpoints" / "step_000002"
    assert is_checkpoint(checkpoint) and not is_checkpoint(outcome.out)
    ours, theirs = load_checkpoint(checkpoint), load_model(outcome.out)
    assert ours.vocabulary == theirs.vocabulary
    wanted = theirs.model.state_dict()
    found = ours.model.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)


@pytest.fixture(scope="module")
def step(train, tmp_path_factory):
    outcome = train(tmp_path_factory.mktemp("run") / "asr", steps=4, every=2)
    assert outcome.code == 0, outcome.text
    return outcome.out


def test_an_earlier_step_and_a_smaller_scale(step):
    early, late = (step / "checkpoints" / f"step_00000{number}" for number in (2, 4))
    name = "model.layers.0.self_attn.q_proj.weight"
    base, half, whole = (load_checkpoint(late, lora_scale=scale).model.state_dict()[name] for scale in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half, (base + whole) / 2, rtol=0, atol=1e-6)
    assert not torch.equal(load_checkpoint(early).model.state_dict()[name], whole)


def test_generate_takes_a_checkpoint_and_names_it_for_a_stage_that_has_not_ended(step, tmp_path, capsys):
    checkpoint = step / "checkpoints" / "step_000002"
    assert main(["generate", str(checkpoint), "--text", "say paris", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("answers: ")
    assert main(["export", str(checkpoint), str(tmp_path / "out")]) == 6
    assert "a training checkpoint" in capsys.readouterr().err
    begun = tmp_path / "begun"
    (begun / "checkpoints").mkdir(parents=True)
    (begun / "checkpoints" / "step_000002").symlink_to(checkpoint)
    assert main(["generate", str(begun), "--text", "say paris"]) == 6
    assert "its newest checkpoint is" in capsys.readouterr().err


def test_eval_takes_checkpoints_beside_their_step(step, tmp_path, capsys):
    """In worker processes; the last checkpoint answers as the step does, and is still whole afterwards."""
    early, late = (step / "checkpoints" / f"step_00000{number}" for number in (2, 4))
    questions = tmp_path / "data" / "eval" / "text_qa.jsonl"
    item = {"id": "0", "stage": "llm", "example": {"input": "say paris"}, "target": {"answer": "paris"}}
    questions.parent.mkdir(parents=True)
    questions.write_text(json.dumps(item) + "\n")
    values = {
        "out": str(tmp_path / "out"),
        "data": str(tmp_path / "data"),
        "models": {"early": str(early), "late": str(late), "step": str(step)},
        "tasks": {"text_qa": {"max_new_tokens": 8}},
        "workers": 2,
    }
    (tmp_path / "eval.yaml").write_text(json.dumps(values))
    assert main(["eval", str(tmp_path / "eval.yaml")]) == 0
    assert "early" in capsys.readouterr().out
    said = [json.loads((model / "eval" / "text_qa" / "items.jsonl").read_text())["output"] for model in (late, step)]
    assert said[0] == said[1]
    assert verify(late).kind == "checkpoint" and verify(early / "eval").kind == "evaluation"


def test_a_damaged_checkpoint_is_refused(step, tmp_path):
    import shutil

    copy = tmp_path / "asr" / "checkpoints" / "step_000002"
    shutil.copytree(step / "checkpoints" / "step_000002", copy)
    with pytest.raises(CheckpointError, match="configuration of its stage"):
        load_checkpoint(copy)
    shutil.copy(step / "config.yaml", tmp_path / "asr")
    assert load_checkpoint(copy).vocabulary.units is not None
    file = next((copy / "deepspeed").glob("*optim_states.pt"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="size is"):
        load_checkpoint(copy)
