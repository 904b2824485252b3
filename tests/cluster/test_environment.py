"""The environment file: what a shell reads from it, what is refused, who may read it; and that no log has a secret."""

from __future__ import annotations

import logging
import os
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm.cluster.environment import (
    adopt_environment,
    forwarded,
    parse_environment,
    read_environment,
    render_environment,
    without_forwarded,
    write_environment,
)
from slm.errors import ConfigError, SlmError, run_entry
from slm.log import setup_logging

HOSTILE = [
    "a;touch x",
    "`touch x`",
    "$(touch x)",
    "$HOME",
    "-rf",
    "it's",
    'say "x"',
    "a\\b",
    "",
    " lead",
    "!!",
    "~",
    "ü",
]
CANARY = "canary-7f3b-do-not-show"


def shell_reads(path) -> dict[str, str]:
    done = subprocess.run(
        ["env", "-i", "sh", "-c", 'set -a; . "$1"; exec /usr/bin/env -0', "sh", str(path)], capture_output=True
    )
    assert done.returncode == 0 and done.stderr == b""
    pairs = (pair.partition("=") for pair in done.stdout.decode().split("\0") if pair)
    return {name: value for name, _, value in pairs if name not in ("PWD", "OLDPWD", "SHLVL", "_")}


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_values_mean_the_same_here_and_to_a_shell(value, tmp_path):
    write_environment(tmp_path / "e", {"A": value, "B": "plain"})
    assert read_environment(tmp_path / "e") == {"A": value, "B": "plain"} == shell_reads(tmp_path / "e")
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=30))
def test_every_printable_value_comes_back(value):
    assert parse_environment(render_environment({"A": value}), "f") == {"A": value}


@settings(max_examples=40, deadline=None)
@given(st.text(st.sampled_from("ab'\"$`\\ ;~#!=&|()*%:/"), max_size=8))
def test_what_is_accepted_a_shell_reads_alike(tmp_path_factory, text):
    try:
        found = parse_environment(f"A={text}", "f")
    except ConfigError:
        return
    path = tmp_path_factory.mktemp("e") / "e"
    path.write_text(f"A={text}\n")
    assert shell_reads(path) == found


def test_comments_exports_blank_lines_and_crlf_are_accepted():
    text = "# the lab\r\n\r\nexport A='x y'\r\nB=1,2:3/4\r\n  C=\"q r\"\n"
    assert parse_environment(text, "f") == {"A": "x y", "B": "1,2:3/4", "C": "q r"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("A", "f:1: expected KEY=value"),
        ("A B=1", "f:1: expected KEY=value"),
        ("-x=1", "f:1: expected KEY=value"),
        ("A=$(id)", "f:1: A: put the value in single quotes"),
        ('A="`id`"', "f:1: A: put the value in single quotes"),
        ("A=b c", "f:1: A: put the value in single quotes"),
        ("A=1;touch x", "f:1: A: put the value in single quotes"),
        ("RANK=0", "f:1: RANK is each rank's own"),
    ],
)
def test_bad_lines_are_refused_and_never_shown(line, message):
    with pytest.raises(ConfigError) as caught:
        parse_environment(line + "\n", "f")
    assert message in caught.value.what
    with pytest.raises(ConfigError) as caught:
        parse_environment(f"A=1\nA=2\nKEY={CANARY} x\n", "f")
    assert "f:2: A is set twice" in caught.value.what and CANARY not in str(caught.value)


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b", "\x1b[31m"])
def test_control_characters_are_refused(value):
    with pytest.raises(ConfigError, match="the value of A has a line break"):
        render_environment({"A": value})


def test_the_file_is_its_owners_alone(tmp_path):
    before = os.umask(0)
    try:
        write_environment(tmp_path / "e", {"A": "1"})
    finally:
        os.umask(before)
    assert (tmp_path / "e").stat().st_mode & 0o777 == 0o600
    (tmp_path / "e").chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by others"):
        read_environment(tmp_path / "e")
    with pytest.raises(ConfigError, match="can't be read"):
        read_environment(tmp_path / "nowhere")


def test_what_goes_to_all_hosts_and_what_the_launcher_must_not_show():
    shell = {
        "HF_TOKEN": "a",
        "MLFLOW_TRACKING_PASSWORD": "b",
        "PATH": "p",
        "SLM_PIPELINE_TOKEN": "t",
        "NCCL_DEBUG": "1",
    }
    assert set(forwarded(shell)) == {"HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "NCCL_DEBUG"}
    assert set(without_forwarded(shell)) == {"HF_TOKEN", "PATH", "SLM_PIPELINE_TOKEN"}
    write = {"PATH": "old"}
    with pytest.raises(ConfigError):
        adopt_environment("/nowhere", write)
    assert write == {"PATH": "old"}


def test_no_log_and_no_error_shows_a_secret(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SOME_API_KEY", CANARY)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    for handler in before:
        root.removeHandler(handler)
    try:
        setup_logging(tmp_path)
        logging.getLogger("t").warning("going to %s", f"https://user:{CANARY}@host")
        try:
            raise ValueError(f"refused: {CANARY}")
        except ValueError:
            logging.getLogger("t").exception("it failed")
    finally:
        for handler in list(root.handlers):
            root.removeHandler(handler)
            handler.close()
        for handler in before:
            root.addHandler(handler)
        root.setLevel(level)

    def fail():
        raise SlmError(f"no access with {CANARY}", where=f"https://{CANARY}@host")

    assert run_entry(fail) == 1
    shown = capsys.readouterr().err + (tmp_path / "rank0.log").read_text()
    assert CANARY not in shown and shown.count("***") >= 6
    assert "refused: ***" in shown and "error: no access with ***" in shown


def test_the_traceback_of_a_fault_shows_no_secret(monkeypatch, capsys):
    monkeypatch.setenv("OUR_TOKEN", CANARY)

    def fault():
        raise RuntimeError(f"a fault of ours with {CANARY}")

    assert run_entry(fault) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said and "a fault of ours with ***" in said and CANARY not in said
