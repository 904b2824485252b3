"""The hostfile's grammar: what is accepted, and every other line refused with its number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.cluster.hostfile import Host, hostfile_argument, parse_hostfile, read_hostfile
from slm.errors import ConfigError

ROOT = Path(__file__).parents[2]
HOSTILE = ["a;rm -rf x", "`id`", "$(id)", "a\nb", "-oProxyCommand=id", "a b", "a|b", "a&b", "a'b", 'a"b', "a$b", "\x00"]


def test_blank_lines_comments_crlf_and_a_byte_order_mark_are_accepted(tmp_path):
    path = tmp_path / "hosts"
    path.write_bytes(b"\xef\xbb\xbf# the lab\r\n\r\nn1 slots=8   # eight\r\n  \t\r\nnode-2.lab.org\tslots=4\r\n")
    assert read_hostfile(path) == (Host("n1", 8), Host("node-2.lab.org", 4))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("n1: slots=8", "no colon after the name: 'n1 slots=8'"),
        ("n1", "host 'n1' has no slots=N"),
        ("n1 slots = 8", "expected slots=N after the name, found 'slots'"),
        ("n1 slots=0", "slots=0: expected 1 to 1024"),
        ("n1 slots=-1", "expected slots=N after the name, found 'slots=-1'"),
        ("n1 slots=8abc", "expected slots=N after the name, found 'slots=8abc'"),
        ("n1 slots=99999999999999999999", "expected 1 to 1024"),
        ("n1 slots=8 max_slots=16", "unexpected 'max_slots=16' after slots=8"),
        ("-oProxyCommand=id slots=1", "host '-oProxyCommand=id' would be an option to ssh"),
        ("me@n1 slots=1", "'me@n1' is no host name"),
        ("slots=8", "'slots=8' is no host name"),
        ("N0 slots=2", "host 'N0' stands in line 1 already"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(line, message):
    with pytest.raises(ConfigError) as caught:
        parse_hostfile(f"n0 slots=8\n{line}\n", "hosts")
    assert caught.value.what.startswith("hosts:2: ") and message in caught.value.what
    assert "NAME slots=N" in caught.value.mend


def test_all_bad_lines_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_hostfile("a\nb slots=1\nb slots=2\nc: slots=1\n", "h")
    assert [line.split(" ")[0] for line in caught.value.what.splitlines()] == ["h:1:", "h:3:", "h:4:"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_never_become_hosts(name):
    with pytest.raises(ConfigError):
        parse_hostfile(f"{name} slots=1\n")


@given(st.text(max_size=60))
def test_whatever_is_read_the_names_are_plain(text):
    try:
        hosts = parse_hostfile(text)
    except ConfigError:
        return
    for host in hosts:
        assert host.name[0].isalnum() and set(host.name) <= set(
            "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
        )
        assert 1 <= host.slots <= 1024


def test_a_missing_an_empty_and_a_binary_file_are_errors(tmp_path):
    with pytest.raises(ConfigError, match="hostfile not found"):
        read_hostfile(tmp_path / "nowhere")
    (tmp_path / "empty").write_text("# nobody\n")
    with pytest.raises(ConfigError, match="names no host"):
        read_hostfile(tmp_path / "empty")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00n")
    with pytest.raises(ConfigError, match="can't be read"):
        read_hostfile(tmp_path / "binary")


def test_the_example_is_a_hostfile():
    assert [host.slots for host in read_hostfile(ROOT / "launcher" / "hosts.example")] == [8, 8]


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("python /env/bin/deepspeed --hostfile h --num_gpus 2 launcher/train.py", "h"),
        ("/env/bin/deepspeed --hostfile=a/h train.py", "a/h"),
        ("deepspeed -H h train.py", "h"),
        ("deepspeed train.py --hostfile h", None),
        ("python train.py --hostfile h", None),
        ("bash", None),
    ],
)
def test_the_hostfile_of_a_launchers_command_line(line, path):
    assert hostfile_argument(line.split()) == path


def test_a_hostfile_that_deepspeed_did_not_find_stops_the_training_it_started_here(tmp_path):
    """DeepSpeed itself warns, and trains on this machine alone."""
    deepspeed = str(Path(sys.executable).with_name("deepspeed"))
    script = ["launcher/train.py", "--config", "ds_configs/tiny/asr.yaml", "out=o", "model.base=b", "data.shards=s"]
    done = subprocess.run(
        [deepspeed, "--hostfile", str(tmp_path / "nowhere"), "--num_gpus", "1", *script, "--print-config"],
        cwd=ROOT,
        env={**os.environ, "LOCAL_SIZE": "1"},
        capture_output=True,
        text=True,
    )
    assert "error: hostfile not found" in done.stderr + done.stdout and done.returncode != 0
