"""The doctor: hosts asked through a stand-in for ssh, facts judged, and the command's exit codes."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slm.cli.app import main
from slm.cluster import probe
from slm.cluster.doctor import Wanted, examine, judge
from slm.cluster.hostfile import Host
from slm.cluster.reach import Report, ask_by_srun, ask_by_ssh, ask_here, make_request, remote_command
from slm.errors import MachineError

ROOT = Path(__file__).parents[2]
RUN_HERE = "sys.exit(subprocess.call(['sh', '-c', sys.argv[-1]]))"
FACTS = {
    "host": "n1",
    "python": "3.11.7",
    "executable": "/env/bin/python",
    "versions": {"torch": "2.13.0", "deepspeed": "0.19.8"},
    "revision": "abc",
    "code": "c0de",
    "cores": 64,
    "gpus": 8,
    "towards": {"n1": "eth0", "n2": "eth0"},
    "port_free": True,
    "shared": {"path": "/runs", "exists": True, "seen": True, "writable": True},
    "disk_gib": 500.0,
    "shm_gib": 60.0,
    "locks": [],
    "tools": ["g++", "ninja", "nvcc", "git"],
}
LOCK = {"path": "/c/lock", "stale": True, "cleared": False}


def findings_of(changed, *, slots=8, clock_s=0.0, host="n1"):
    facts = copy.deepcopy(FACTS)
    for key, value in changed.items():
        facts[key] = {**facts[key], **value} if isinstance(value, dict) and key != "towards" else value
    wanted = Wanted(Report("here", copy.deepcopy(FACTS)), {host: slots}, "n1", 29500)
    return {finding.check: finding for finding in judge([Report(host, facts, clock_s=clock_s)], wanted)}


def test_a_fit_host_is_green_in_every_check():
    found = findings_of({})
    assert {finding.level for finding in found.values()} == {"ok"} and len(found) == 12
    assert not any(finding.mend for finding in found.values())


@pytest.mark.parametrize(
    ("changed", "check", "level", "words"),
    [
        ({"versions": {"torch": "2.12.0"}}, "packages", "bad", "torch 2.12.0 (here 2.13.0)"),
        ({"versions": {"deepspeed": None}}, "packages", "bad", "deepspeed missing (here 0.19.8)"),
        ({"python": "3.12.1"}, "packages", "bad", "Python 3.12.1"),
        ({"executable": "/usr/bin/python3"}, "packages", "bad", "/usr/bin/python3 is Python"),
        ({"code": "other", "revision": "def"}, "code", "bad", "other code (def, here abc)"),
        ({"code": ""}, "code", "bad", "no checkout"),
        ({"gpus": 4}, "devices", "bad", "4 GPUs, slots=8"),
        ({"gpus": 0, "cores": 2}, "devices", "bad", "2 cores, slots=8"),
        ({"gpus": 16}, "devices", "warn", "16 GPUs, slots=8"),
        ({"towards": {"n2": ""}}, "network", "bad", "no way to n2"),
        ({"towards": {"n2": "lo"}}, "network", "bad", "no way to n2"),
        ({"towards": {"n2": "eth0", "n3": "ib0"}}, "network", "warn", "eth0, ib0"),
        ({"port_free": False}, "port", "bad", "29500 is taken"),
        ({"shared": {"exists": False}}, "shared folder", "bad", "no /runs"),
        ({"shared": {"seen": False}}, "shared folder", "bad", "another folder"),
        ({"shared": {"writable": False}}, "shared folder", "bad", "can't be written"),
        ({"disk_gib": 0.5}, "disk", "bad", "0 GiB free"),
        ({"disk_gib": 5.0}, "disk", "warn", "5 GiB free"),
        ({"disk_gib": None}, "disk", "bad", "unknown"),
        ({"shm_gib": 0.06}, "/dev/shm", "warn", "0.06 GiB"),
        ({"shm_gib": None}, "/dev/shm", "warn", "none"),
        ({"locks": [LOCK]}, "operator locks", "bad", "1 stale"),
        ({"locks": [{**LOCK, "cleared": True}]}, "operator locks", "ok", "1 stale, removed"),
        ({"locks": [{**LOCK, "stale": False}]}, "operator locks", "warn", "being compiled"),
        ({"tools": ["git"]}, "compilers", "warn", "no g++, ninja, nvcc"),
    ],
)
def test_every_fault_is_found_and_says_what_to_do(changed, check, level, words):
    found = findings_of(changed)
    assert found[check].level == level and words in found[check].found
    assert bool(found[check].mend) == (level != "ok")
    assert {finding.check for finding in found.values() if finding.level != "ok"} <= {check}


@pytest.mark.parametrize(("off", "level"), [(0.5, "ok"), (-3.0, "warn"), (20.0, "bad")])
def test_clocks(off, level):
    assert findings_of({}, clock_s=off)["clock"].level == level


def test_only_rank_0s_host_needs_the_port():
    assert "port" not in findings_of({"port_free": False}, host="n2")


def request(tmp_path, **changed):
    return {**make_request(str(ROOT), str(tmp_path), "", ["127.0.0.1"], 29500, False), **changed}


def test_every_host_is_asked_and_faults_are_named(tmp_path, stand_ins):
    stand_ins.add(
        "ssh",
        "host = sys.argv[sys.argv.index('--') + 1]\n"
        "if host == 'gone': print('ssh: connect to host gone port 22: refused', file=sys.stderr); sys.exit(255)\n"
        "if host == 'hangs': import time; time.sleep(30)\n"
        "if host == 'mute': sys.exit(0)\n"
        "print('Welcome to the lab!', flush=True)\n" + RUN_HERE,
    )
    hosts = [Host(name, 1) for name in ("good", "gone", "hangs", "mute", "twin")]
    began = time.monotonic()
    reports = ask_by_ssh(hosts, request(tmp_path), patience_s=12)
    assert time.monotonic() - began < 25
    assert [report.host for report in reports] == ["good", "gone", "hangs", "mute", "twin"]
    good = reports[0]
    assert good.facts["executable"] == sys.executable and good.facts["code"] == probe.code_digest(str(ROOT))
    assert good.facts["towards"] == {"127.0.0.1": "lo"} and good.clock_s == 0.0
    assert reports[4].facts["code"] == good.facts["code"]
    assert [report.problem for report in reports[1:4]] == [
        "ssh: connect to host gone port 22: refused",
        "no answer in 12 s",
        "exit code 0, no answer",
    ]
    for argv in stand_ins.calls("ssh"):
        assert "BatchMode=yes" in argv and argv[-3] == "--"


def test_a_clock_that_is_off_is_told_by_the_time_on_the_way(tmp_path, stand_ins):
    stand_ins.add(
        "ssh",
        "import time\n"
        "print('slm-probe:' + json.dumps({'host': 'x', 'clock': time.time() - 100}), flush=True)\n"
        "print('slm-probe:' + json.dumps({'host': 'x', 'gpus': 1}), flush=True)",
    )
    (report,) = ask_by_ssh([Host("n1", 1)], request(tmp_path))
    assert -100.5 < report.clock_s < -90 and report.facts["gpus"] == 1


def test_a_host_without_the_environment_answers_by_its_own_python(tmp_path, stand_ins):
    stand_ins.add("ssh", RUN_HERE)
    command = remote_command(str(ROOT), "/nowhere/python")
    text = "import sys; print(sys.executable)"
    done = subprocess.run(["ssh", "--", "n1", command], input=text, capture_output=True, text=True, check=True)
    assert done.stdout.strip() and "/nowhere" not in done.stdout


@pytest.mark.parametrize(
    "name", ["a;touch pwned", "`touch pwned`", "$(touch pwned)", "-rf", "it's", "a b", 'q"q', "n\nl"]
)
def test_hostile_folders_are_quoted_through_ssh(name, tmp_path, stand_ins, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stand_ins.add("ssh", RUN_HERE)
    (report,) = ask_by_ssh([Host("n1", 1)], request(tmp_path, folder=f"{tmp_path}/{name}", shared=f"{tmp_path}/{name}"))
    assert report.facts["code"] == "" and report.facts["shared"]["path"] == f"{tmp_path}/{name}"
    assert list(tmp_path.iterdir()) == []


def test_srun_brings_the_answers_of_all_its_tasks(tmp_path, stand_ins, monkeypatch):
    stand_ins.add(
        "srun",
        "text = sys.stdin.read()\n"
        "for name in ('n2', 'n1'):\n"
        "    done = subprocess.run(['sh', '-c', sys.argv[-1]], input=text, capture_output=True, text=True)\n"
        '    own = \'"host": "\' + os.uname().nodename\n'
        "    print(done.stdout.replace(own, '\"host\": \"' + name), end='', flush=True)",
    )
    stand_ins.add("scontrol", "print('n1\\nlocalhost')")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    reports = ask_by_srun(["srun", "--partition=gpu"], 2, request(tmp_path, peers=[]), patience_s=60)
    assert all(set(report.facts["towards"]) == {"n1", "localhost"} for report in reports)
    assert stand_ins.calls("scontrol")[0] == ["show", "hostnames", "n[1-2]"]
    assert [report.host for report in reports] == ["n1", "n2"] and all(report.facts["cores"] for report in reports)
    assert stand_ins.calls("srun")[0][:4] == ["--partition=gpu", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    stand_ins.add("srun", "print('srun: error: invalid partition', file=sys.stderr); sys.exit(1)")
    with pytest.raises(MachineError, match="invalid partition"):
        ask_by_srun(["srun"], 1, request(tmp_path), patience_s=20)


def test_stale_locks_are_told_from_held_and_young_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    paths = {}
    for name in ("stale", "held", "young"):
        (tmp_path / "py311_cpu" / name).mkdir(parents=True)
        paths[name] = tmp_path / "py311_cpu" / name / "lock"
        paths[name].touch()
        if name != "young":
            os.utime(paths[name], (time.time() - 4000,) * 2)
    with open(paths["held"]):
        found = {lock["path"]: lock["stale"] for lock in probe.operator_locks()}
        assert found == {str(paths["stale"]): True, str(paths["held"]): False, str(paths["young"]): False}
        assert paths["stale"].exists()
        probe.operator_locks(clear=True)
    assert not paths["stale"].exists() and paths["held"].exists() and paths["young"].exists()


def test_the_token_proves_that_the_folder_is_shared_and_is_gone_afterwards(tmp_path):
    runs = tmp_path / "runs"

    def other_file_system(request):
        assert (runs / request["token"]).is_file()
        return [ask_here(request), Report("n2", {**ask_here({**request, "token": "other"}).facts})]

    found = examine(other_file_system, [], folder=ROOT, shared=runs)
    assert [(f.host, f.level) for f in found if f.check == "shared folder"] == [("here", "ok"), ("n2", "bad")]
    assert list(runs.iterdir()) == []


def test_the_command_is_green_here_in_json_and_without_torch(tmp_path):
    code = (
        "import sys, slm.cli.app as a;"
        f"code = a.main(['doctor', '--json', '--port', '1024', '--shared', {str(tmp_path)!r}]);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = json.loads(done.stdout)
    assert done.returncode == (0 if said["ok"] else 4), done.stderr
    assert {finding["host"] for finding in said["findings"]} == {"here"}
    assert next(f for f in said["findings"] if f["check"] == "code")["level"] == "ok"


def test_the_commands_exit_codes(tmp_path, stand_ins, capsys):
    stand_ins.add("ssh", "print('Permission denied (publickey)', file=sys.stderr); sys.exit(255)")
    hosts = tmp_path / "hosts"
    hosts.write_text("n1 slots=1\nn2 slots=1\n")
    assert main(["doctor", "--hostfile", str(hosts), "--shared", str(tmp_path)]) == 4
    shown = capsys.readouterr().out
    assert shown.count("Permission denied (publickey)") == 2 and "ssh n1 true" in shown and "would not work" in shown
    assert main(["doctor", "--hostfile", str(tmp_path / "nowhere")]) == 2
    hosts.write_text("n1: slots=1\n")
    assert main(["doctor", "--hostfile", str(hosts)]) == 2
    assert main(["doctor", "--hostfile", str(hosts), "--slurm"]) == 2
    assert "hosts:1: no colon after the name" in capsys.readouterr().err
