"""A corpus of hostile names and values, through the commands themselves, against recording stand-ins.

Whatever a person, a site file or a hostfile says: ssh, srun and sbatch are given plain words, what is quoted arrives as
it was, and nothing of it is ever run.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from slm.cli.app import main
from slm.cluster.environment import read_environment
from slm.cluster.slurm import BatchJob, Place, Task, script
from slm.config.site import SiteConfig

ROOT = Path(__file__).parents[2]
JOB = str(ROOT / "data_shards/jobs/pico.yaml")
CORPUS = {
    "semicolon": "a;touch pwned",
    "backticks": "`touch pwned`",
    "substitution": "$(touch pwned)",
    "variable": "${HOME}",
    "newline": "a\ntouch pwned",
    "return": "a\rtouch pwned",
    "sbatch line": "a\n#SBATCH --wrap=touch",
    "option": "-oProxyCommand=touch pwned",
    "long option": "--wrap=touch pwned",
    "pipe": "a|touch pwned",
    "ampersand": "a&touch pwned",
    "redirection": "a>pwned",
    "space": "a touch",
    "quote": "it's",
    "double quote": 'q"q',
    "backslash": "a\\b",
    "glob": "*",
    "percent": "50%j",
    "escape": "a\x1b[31m",
    "path": "../../etc",
}
PRINTABLE = {name: value for name, value in CORPUS.items() if value.isprintable()}


def cases(corpus):
    return pytest.mark.parametrize("word", list(corpus.values()), ids=list(corpus))


@pytest.fixture(autouse=True)
def nothing_is_run(tmp_path, monkeypatch):
    """Commands run in an empty folder, in which nothing may have come to be that was not meant."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    yield
    assert not list(tmp_path.rglob("pwned")) and not list(here.iterdir())
    assert not (ROOT / "pwned").exists()


@pytest.fixture
def small(tmp_path) -> str:
    """A pipeline of one step, which is quickly planned."""
    path = tmp_path / "small.yaml"
    path.write_text(f"name: small\nsteps: {{data: {{kind: data, job: {JOB}}}}}\n")
    return str(path)


@pytest.fixture
def recorders(stand_ins):
    """ssh, pdsh and all of SLURM as programs that only write down what they were given."""
    for name in ("ssh", "pdsh", "sbatch", "srun", "scontrol", "squeue"):
        stand_ins.add(name, "print(1)")
    return stand_ins


@cases(CORPUS)
def test_a_host_of_such_a_name_is_never_asked(word, small, tmp_path, recorders, capsys):
    (tmp_path / "hosts").write_text(f"{word} slots=1\n", newline="")
    where = ["--hostfile", str(tmp_path / "hosts")]
    assert main(["doctor", *where]) == 2
    assert main(["pipeline", small, "--where", "hostfile", *where, f"runs={tmp_path}/runs"]) == 2
    assert re.search(r"hosts:\d: ", capsys.readouterr().err) and not recorders.calls()


@cases(CORPUS)
def test_a_run_of_such_a_name_is_never_submitted(word, small, tmp_path, recorders):
    (tmp_path / "hosts").write_text("n1 slots=1\n")
    own = [f"name={json.dumps(word)}", f"runs={tmp_path}/runs"]
    assert main(["pipeline", small, "--where", "slurm", *own]) == 2
    assert main(["pipeline", small, "--where", "hostfile", "--hostfile", str(tmp_path / "hosts"), *own]) == 2
    assert not recorders.calls() and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("key", ["partition", "account", "qos", "time", "extra", "forward", "nodes", "steps"])
def test_a_site_with_such_a_value_is_refused(key, small, tmp_path, recorders):
    path = tmp_path / "site.yaml"
    for name, word in CORPUS.items():
        values = {"extra": ["--constraint=" + word], "forward": [word], "steps": {"train": {"partition": word}}}
        if key == "extra" and name in ("glob", "path"):
            continue  # characters that a constraint may have; no shell ever reads them
        path.write_text(yaml.safe_dump({key: values.get(key, word)}))
        assert main(["doctor", "--slurm", "--shared", str(tmp_path), "--site", str(path)]) == 2, (name, word)
    assert main(["pipeline", small, "--where", "slurm", "--site", str(path), f"runs={tmp_path}/runs"]) == 2
    assert not recorders.calls()


@cases(CORPUS)
def test_a_folder_of_such_a_name_is_refused_or_quoted(word, small, tmp_path, recorders):
    runs = f"{tmp_path}/runs/{word}"
    code = main(["pipeline", small, "--where", "slurm", f"runs={json.dumps(runs)}"])
    submitted = [Path(argv[-1]) for argv in recorders.calls("sbatch")]
    assert (code, len(submitted)) in ((2, 0), (0, 1))
    for path in submitted:
        lines = path.read_text().splitlines()
        assert [shlex.split(line)[1] for line in lines if line.startswith("export SLM_ENV_FILE=")] == [
            f"SLM_ENV_FILE={runs}/small/.env"
        ]
        assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+|=\"[^\"]*\")?", line) for line in lines if "#SBATCH" in line)


@cases(PRINTABLE)
def test_a_value_of_the_environment_reaches_a_job_as_it_is_and_no_command_line(
    word, small, tmp_path, recorders, monkeypatch, capsys
):
    monkeypatch.setenv("HF_TOKEN", word + "-secret")
    monkeypatch.setenv("OURS", word)
    (tmp_path / "site.yaml").write_text("forward: [OURS]\n")
    argv = ["pipeline", small, "--where", "slurm", "--site", str(tmp_path / "site.yaml"), f"runs={tmp_path}/runs"]
    assert main(argv) == 0
    env_file = tmp_path / "runs/small/.env"
    assert read_environment(env_file)["OURS"] == word
    (path,) = [Path(call[-1]) for call in recorders.calls("sbatch")]
    assert word + "-secret" not in path.read_text() + json.dumps(recorders.calls()) + capsys.readouterr().out

    code = "import os, sys; sys.stdout.write(os.environ['HF_TOKEN'] + os.environ['OURS'])"
    job = BatchJob("a.b", "other", (Task(str(tmp_path), ("python", "-c", code)),), f"{tmp_path}/log")
    place = Place(str(tmp_path), str(ROOT), str(Path(sys.executable).parent), str(env_file))
    text = script(job, SiteConfig(), place)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.delenv("OURS")
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, env=variables)
    assert done.stdout.startswith(f"{word}-secret{word}") and word not in text.partition(shlex.quote(code))[0]


@cases({name: value for name, value in CORPUS.items() if not value.isprintable()})
def test_a_value_with_a_line_break_or_control_character_is_refused(
    word, small, tmp_path, recorders, monkeypatch, capsys
):
    monkeypatch.setenv("HF_TOKEN", f"{word}-secret")
    argv = ["pipeline", small, "--where", "slurm", f"runs={tmp_path}/runs"]
    assert main(argv) == 2 and not recorders.calls("sbatch")
    error = capsys.readouterr().err
    assert "HF_TOKEN has a line break or a control character" in error and "secret" not in error


def test_no_value_of_the_environment_is_on_a_command_line_of_ssh(tmp_path, recorders, monkeypatch):
    for i, word in enumerate(CORPUS.values()):
        monkeypatch.setenv(f"HF_{i}_TOKEN", f"{word}-secret-{i}")
    (tmp_path / "hosts").write_text("n1 slots=1\nn2 slots=1\n")
    assert main(["doctor", "--hostfile", str(tmp_path / "hosts"), "--shared", str(tmp_path)]) == 4
    assert len(recorders.calls("ssh")) == 2 and "secret" not in json.dumps(recorders.calls())
