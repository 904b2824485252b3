"""The command line: immediate help, usage with the files there are, exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slm.cli.app import main
from slm.pipeline.run import Outcome

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def at_the_top(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_help_imports_nothing_heavy():
    heavy = {"torch", "numpy", "yaml", "pydantic", "rich.markdown", "rich.traceback"}
    code = f"import sys, slm.cli.app as a; a.main(['--help']); print(sorted({heavy} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["pipeline"], "ds_configs/pipelines/tiny.yaml"),
        (["validate"], "ds_configs/stages/tts.yaml"),
        (["train"], "ds_configs/stages/tts.yaml"),
        (["merge"], "ds_configs/merge/dare.yml"),
        (["eval"], "ds_configs/eval/tiny.yaml"),
        (["data", "build"], "data_shards/jobs/tiny.yaml"),
        (["model", "discount"], "scale"),
        (["model", "expand"], "tokenizer"),
        (["model", "tiny-base"], "hidden_size"),
        (["report"], "usage: slm report"),
        (["status"], "usage: slm status"),
        (["generate"], "usage: slm generate"),
        (["demo"], "usage: slm demo"),
    ],
)
def test_without_its_argument_a_command_shows_its_usage(argv, shown, capsys):
    assert main(argv) == 2
    message = capsys.readouterr().err
    assert "usage: " in message and shown in message


def test_an_unknown_command_or_option_is_exit_code_2(capsys):
    assert main(["nonsense"]) == 2
    assert main(["pipeline", "--nonsense"]) == 2
    assert "No such" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("ds_configs/pipelines/*.yaml")))
def test_shipped_pipelines_are_valid(path, capsys):
    assert main(["validate", path]) == 0
    assert capsys.readouterr().out == f"{path}: a good pipeline configuration\n"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("ds_configs/stages/tts.yaml", "stage"),
        ("ds_configs/tiny/sqa.yaml", "stage"),
        ("ds_configs/eval/tiny.yaml", "evaluation"),
        ("data_shards/jobs/tiny.yaml", "data job"),
        ("ds_configs/sites/example.yaml", "site"),
    ],
)
def test_validate_knows_each_kind(path, kind, capsys):
    assert main(["validate", path]) == 0
    assert f"a good {kind} configuration" in capsys.readouterr().out


def test_validate_shows_every_value_and_its_origin(capsys):
    assert main(["validate", "ds_configs/tiny/sqa.yaml", "optim.lr=0.5", "--print-config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "optim.lr: 0.5   # command line" in lines
    assert any(line.startswith('stage: "sqa"   # ds_configs/tiny/sqa.yaml:') for line in lines)


def test_a_misspelt_key_is_told_with_its_line(capsys):
    assert main(["validate", "ds_configs/tiny/sqa.yaml", "optim.learning_rate=1"]) == 2
    assert "command line: optim.learning_rate: unknown key; did you mean 'lr'?" in capsys.readouterr().err


def test_a_file_of_no_kind(tmp_path, capsys):
    (tmp_path / "x.yaml").write_text("a: 1\n")
    assert main(["validate", str(tmp_path / "x.yaml")]) == 2
    assert "no kind of configuration has these keys" in capsys.readouterr().err


def test_dry_run_prints_commands_that_a_shell_reads_and_makes_nothing(tmp_path, capsys):
    assert main(["pipeline", "ds_configs/pipelines/pico.yaml", "--dry-run", f"runs={tmp_path}"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert len(lines) == 19 and all("python" in line or "deepspeed" in line for line in lines)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "names"),
    [(["--only", "llm"], ["llm"]), (["--from", "evaluation"], ["evaluation", "report"])],
)
def test_dry_run_shows_the_chosen_steps_alone(option, names, tmp_path, capsys):
    assert main(["pipeline", "ds_configs/pipelines/pico.yaml", "--dry-run", *option, f"runs={tmp_path}"]) == 0
    heads = [line for line in capsys.readouterr().out.splitlines() if line.startswith("#")]
    assert [line.split()[-1] for line in heads] == names


def test_only_and_from_exclude_each_other(tmp_path, capsys):
    argv = ["pipeline", "ds_configs/pipelines/pico.yaml", "--dry-run", "--only", "llm", "--from", "llm"]
    assert main([*argv, f"runs={tmp_path}"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_only_a_step_that_is_done_says_that_it_is(tmp_path, capsys, monkeypatch):
    done = Outcome(made=(), seconds=0.1)
    monkeypatch.setattr("slm.pipeline.run.run_pipeline", lambda *_, **__: done)
    assert main(["pipeline", "ds_configs/pipelines/pico.yaml", "--only", "llm", f"runs={tmp_path}"]) == 0
    assert "nothing to do: llm is up to date" in capsys.readouterr().out


def test_eval_is_the_same_as_the_module(tmp_path):
    argv = ["ds_configs/eval/tiny.yaml", f"out={tmp_path}/o", f"data={tmp_path}", "model=nowhere"]
    module, command = (
        subprocess.run([sys.executable, "-m", *name, *argv], capture_output=True, text=True)
        for name in (["slm.eval"], ["slm", "eval"])
    )
    assert module.returncode == command.returncode == 3
    assert module.stderr == command.stderr


def test_eval_shows_its_table_and_stops_on_sigterm(tmp_path, capsys, monkeypatch):
    summary = {"tasks": [], "labels": [], "scores": {}}
    monkeypatch.setattr("slm.eval.run.run_evaluation", lambda job, load: summary)
    argv = ["eval", "ds_configs/eval/tiny.yaml", f"out={tmp_path}", "data=d", "model=m"]
    before = signal.getsignal(signal.SIGTERM)
    assert main(argv) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{tmp_path}/summary.json"
    monkeypatch.setattr("slm.eval.run.run_evaluation", lambda job, load: os.kill(os.getpid(), signal.SIGTERM))
    assert main(argv) == 85
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_entry_and_the_command_are_one(tmp_path):
    argv = ["ds_configs/pipelines/pico.yaml", "--dry-run", f"runs={tmp_path}"]
    entry = subprocess.run([sys.executable, "launcher/pipeline.py", *argv], capture_output=True, text=True, check=True)
    command = subprocess.run(
        [sys.executable, "-m", "slm", "pipeline", *argv], capture_output=True, text=True, check=True
    )
    assert entry.stdout == command.stdout


def test_status_of_a_folder_no_pipeline_made(tmp_path, capsys):
    assert main(["status", str(tmp_path)]) == 2
    assert "no pipeline ran here" in capsys.readouterr().err


def test_generate_wants_one_kind_of_question(capsys):
    assert main(["generate", "runs/x"]) == 2
    assert main(["generate", "runs/x", "--text", "hello", "--audio", "a.wav"]) == 2
    assert "one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [
        (["--audio", "nowhere.wav"], 3, "audio file not found"),
        (["--audio", "README.md"], 3, "not a readable audio file"),
        (["--text", "a", "--task", "asr"], 2, "task asr takes speech"),
        (["--text", "a", "--task", "song"], 2, "task"),
        (["--text", "a", "--temperature", "-1"], 2, "command line: temperature"),
        (["--text", "a", "--out", "x"], 2, "are for many questions"),
        (["--audio", "docs"], 2, "--out FOLDER"),
        (["--data", "nowhere.jsonl", "--out", "x"], 3, "can't be loaded"),
        (["--data", "a.jsonl", "--out", "x", "--push-to-hub", "me/answers"], 2, "HF_TOKEN"),
        (["--text", "a"], 6, "no model here"),
        (["--text", "a", "--device", "cuda:9"], 4, "no such device: cuda:9"),
    ],
)
def test_what_generate_refuses_before_any_work(argv, code, told, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["generate", "runs/x", *argv]) == code
    assert told in capsys.readouterr().err


def test_demo_without_gradio_or_with_a_wrong_value(capsys, monkeypatch):
    assert main(["demo", "runs/x", "--temperature", "-1"]) == 2
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "runs/x"]) == 4
    assert "pip install 'slm[demo]'" in capsys.readouterr().err


def test_a_folder_may_have_an_equals_sign_in_its_path(tmp_path, capsys):
    assert main(["report", str(tmp_path / "lr=1e-4")]) != 0
    assert "usage" not in capsys.readouterr().err
    assert main(["report", "again=1"]) == 2
    assert "usage" in capsys.readouterr().err
