from __future__ import annotations

from pathlib import Path

import pytest

from slm.config.loader import from_mapping, load_config
from slm.config.models import ExpandJob
from slm.config.stage import StageConfig
from slm.errors import ConfigError

GOOD = """\
out: runs/x/asr
stage: asr
model:
  base: runs/x/base
data:
  shards: data/asr
optim:
  lr: 2e-6
duration: {epochs: 1}
"""


def write(folder: Path, text: str, name: str = "a.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as failure:
        load_config(StageConfig, path, overrides)
    return failure.value.what.splitlines()


def test_yaml_bases_overlays_and_overrides_merge_in_that_order(tmp_path):
    write(tmp_path, GOOD, "base.yaml")
    child = write(tmp_path, "base: base.yaml\noptim: {clip: 0.5}\nseed: 3\n", "child.yaml")
    overlay = write(tmp_path, "seed: 4\nreplay: [{shards: data/llm, ratio: 0.1}]\n", "overlay.yaml")
    config = load_config(StageConfig, child, ["optim.lr=1e-4", "model.lora.targets=[q_proj]"], [overlay])
    assert (config.optim.lr, config.optim.clip, config.seed) == (1e-4, 0.5, 4)
    assert config.replay[0].ratio == 0.1 and config.model.lora.targets == ["q_proj"]
    assert load_config(StageConfig, child).optim.lr == 2e-6


def test_all_errors_come_at_once_with_file_and_line(tmp_path):
    path = write(tmp_path, GOOD.replace("  lr: 2e-6", "  learning_rate: 2e-6\n  clip: 'no'") + "seed: yes\n")
    known = "(known: lr, vocabulary_lr, betas, eps, weight_decay, clip, stop_after_skipped)"
    assert sorted(problems(path, "optim.lt=3", "batch.rows=0")) == sorted(
        [
            f"{path}:8: optim.learning_rate: unknown key; did you mean 'lr'? {known}",
            f"{path}:9: optim.clip: expected a valid number, got 'no'",
            f"command line: optim.lt: unknown key; did you mean 'lr'? {known}",
            f"{path}:11: seed: expected a valid integer, got True",
            "command line: batch.rows: expected greater than 0, got 0",
        ]
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stage: asr\nstage: tts\n", "a.yaml:2: stage: duplicate key"),
        ("stage: [asr\n", "not valid YAML"),
        ("- a\n", "expected a mapping"),
        ("a: &x 1\nb: *x\n", "YAML aliases are not accepted"),
        (GOOD + "token: hf_abcdefghijklmnopqrstuvwxyz\n", "token: looks like a secret"),
        (GOOD + "push_token: abc\n", "push_token: secrets come from the environment"),
        (GOOD.replace("epochs: 1", "epochs: 1, steps: 4"), "set exactly one of epochs, steps, tokens"),
        (GOOD.replace("stage: asr", "stage: ASR"), "stage: expected 'llm', 'asr', 'tts' or 'sqa', got 'ASR'"),
        (GOOD.replace("data:\n  shards: data/asr\n", ""), "data: is required"),
        ("base: a.yaml\n" + GOOD, "inherits from itself"),
        (GOOD + "x: !!python/name:os.system ''\n", "a.yaml:10: x: not a plain value"),
        (GOOD + "x: 2024-13-45\n", "a.yaml:10: x: not a plain value"),
        (GOOD + "x: !foo 1\n", "a.yaml:10: x: not a plain value"),
        (GOOD + "x: !foo [1]\n", "a.yaml:10: x: not a plain value: !foo"),
        (GOOD + "x: !!python/object:os.x {}\n", "a.yaml:10: x: not a plain value: python/object:os.x"),
        (GOOD + "x: !!bool maybe\n", "a.yaml:10: x: not a plain value"),
        (GOOD + "x: !!timestamp soon\n", "a.yaml:10: x: not a plain value"),
        (GOOD + "x: \x07\n", "a.yaml: not valid YAML: unacceptable character #x0007"),
        ("x: " + "[" * 3000 + "]" * 3000, "a.yaml:1: nested deeper than 32 levels"),
        (GOOD + "? [a]\n: 1\n", "a key has to be a plain word"),
        (GOOD.replace("lr: 2e-6", "lr: .inf"), "optim.lr: expected a finite number"),
        (GOOD.replace("lr: 2e-6", "betas: [2, -1]"), "optim.betas[0]: expected less than 1, got 2"),
        (GOOD + f"wandb_key: {'a1' * 20}\n", "wandb_key: looks like a secret"),
        ("base: gone.yaml\n", "gone.yaml: file not found; there are:"),
    ],
)
def test_bad_files(tmp_path, text, expected):
    path = write(tmp_path, text)
    assert any(expected in line for line in problems(path)), problems(path)


@pytest.mark.parametrize("key", ["revision", "tokenizer_commit", "monkey"])
def test_a_git_commit_is_no_secret(tmp_path, key):
    assert not any("looks like a secret" in line for line in problems(write(tmp_path, GOOD + f"{key}: {'a1' * 20}\n")))


@pytest.mark.parametrize("override", ["nokey", "=3", "a..b=1"])
def test_bad_overrides(tmp_path, override):
    assert f"command line: {override}: expected key.path=value" in problems(write(tmp_path, GOOD), override)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="file not found"):
        load_config(StageConfig, tmp_path / "gone.yaml")


def test_identity_leaves_out_what_does_not_change_the_bytes(tmp_path):
    path = write(tmp_path, GOOD)
    one = load_config(StageConfig, path)
    moved = load_config(StageConfig, path, ["out=elsewhere", "data.shards=there", "checkpoint.every=7", "model.base=b"])
    assert one.identity() == moved.identity()
    assert one.identity() != load_config(StageConfig, path, ["optim.lr=1"]).identity()
    assert moved.inputs() == {"base": "b", "shards": "there"}


def test_from_mapping_names_its_source():
    with pytest.raises(ConfigError, match=r"pipeline\.yaml: out: is required"):
        from_mapping(StageConfig, {"stage": "asr"}, "pipeline.yaml")


def test_keys_have_the_meanings_that_stand_under_them_inherited_ones_too():
    assert ExpandJob.meanings()["pad_to"] == "Rows are padded to a multiple of this."
    assert ExpandJob.meanings()["out"] == "Folder of the artifact."
    assert list(ExpandJob.meanings()) == list(ExpandJob.model_fields)
