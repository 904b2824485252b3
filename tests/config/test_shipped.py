"""Every stage file that is shipped loads, and says what it means to say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slm.cli.app import main
from slm.config.loader import load_config
from slm.config.stage import StageConfig
from slm.config.zero import read_zero_json
from slm.errors import ConfigError

STAGES = Path(__file__).resolve().parents[2] / "ds_configs" / "stages"
TINY = STAGES.parent / "tiny"


FILES = sorted([*STAGES.glob("*.yaml"), *TINY.glob("[!p]*.yaml")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_stage_files_load_and_name_their_stage(path):
    config = load_config(StageConfig, path)
    assert config.stage == path.stem
    assert config.replay == [], "a stage file is the naive chain; replay is an overlay"


def test_the_paper_chain_hangs_together():
    asr, tts, sqa = (load_config(StageConfig, STAGES / f"{name}.yaml") for name in ("asr", "tts", "sqa"))
    assert (tts.model.previous, sqa.model.previous) == (asr.out, tts.out)
    assert asr.model.lora == tts.model.lora == sqa.model.lora
    assert (asr.optim.lr, asr.model.lora.rank, asr.model.lora.alpha, asr.model.lora.dropout) == (5e-5, 64, 16, 0.1)


def test_overlays_are_short_and_apply():
    for path in (STAGES / "mitigations").glob("*.yaml"):
        lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
        assert len(lines) <= 6
    config = load_config(StageConfig, STAGES / "sqa.yaml", overlays=[STAGES / "mitigations" / "replay.yaml"])
    assert [source.ratio for source in config.replay] == [0.05, 0.05, 0.05]
    config = load_config(StageConfig, STAGES / "tts.yaml", overlays=[STAGES / "mitigations" / "l2.yaml"])
    assert config.anchor is not None and (config.anchor.mode, config.anchor.weight) == ("coupled", 1e-3)


def test_what_an_anchor_and_an_evaluation_change():
    def identity(*overrides):
        return load_config(StageConfig, STAGES / "tts.yaml", overrides=list(overrides)).identity()

    assert identity("eval.every=5", "eval.rows=8") == identity("eval.every=7", "eval.rows=8")
    assert identity("eval.rows=8") != identity("eval.rows=9") != identity()
    assert identity("anchor.weight=0.1") != identity("anchor.weight=0.2") != identity()
    own = load_config(StageConfig, STAGES / "tts.yaml", overrides=["anchor.weights.vocabulary=0.5"]).anchor
    assert (own.weight_of("vocabulary"), own.weight_of("matrix")) == (0.5, 1e-3)
    with pytest.raises(ConfigError, match="lora"):
        identity("anchor.weights.lora=1")


@pytest.mark.parametrize("path", sorted((STAGES.parent / "zero").glob("*.json")), ids=lambda path: path.stem)
def test_shipped_deepspeed_files_have_only_known_keys(path):
    assert read_zero_json(str(path)) == json.loads(path.read_text())


def test_a_bad_deepspeed_file_is_found_by_validation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(STAGES.parents[1])
    bad = tmp_path / "z.json"
    bad.write_text('{"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}, "stag": 1}}')
    assert main(["validate", str(STAGES / "asr.yaml"), f"zero={bad}"]) == 2
    told = capsys.readouterr().err
    assert "offload_param: needs stage 3" in told and "stag: unknown key; did you mean 'stage'?" in told
