"""`slm data info | verify | preview | stats | mix`: what a person sees, what a script gets, exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from shard_sets import make_samples, make_set

from slm.artifact import write_manifest
from slm.cli.app import main
from slm.cli.data_view import histogram_lines, mix_notes, show_samples, show_verification, size_text
from slm.data.build import set_facts
from slm.data.inspect import read_samples, runs_of
from slm.data.reader import ShardSet
from slm.data.verify import verify_shards
from slm.data.writer import ShardWriter

ROOT = Path(__file__).parents[2]


@pytest.fixture
def plain_set(tmp_path):
    return make_set(tmp_path / "plain", make_samples(100), shard_bytes=20_000)


@pytest.fixture
def speech_set(tmp_path, pico_tokenizer):
    """Two samples with text and units in prompt and answer, beside their tokenizer."""
    from slm.tokens.vocabulary import load_tokenizer, save_tokenizer

    tokenizer, vocabulary = load_tokenizer(pico_tokenizer)
    save_tokenizer(tmp_path / "world" / "tokenizer", tokenizer, vocabulary)
    folder = tmp_path / "world" / "shards" / "asr"
    folder.mkdir(parents=True)
    with ShardWriter(folder, vocabulary=vocabulary, group_size=8) as writer:
        for units, answer in (([1, 2, 3], "paris"), (range(16), "the cat\x1b[31m")):
            prompt = [*tokenizer("write down", add_special_tokens=False).input_ids, *vocabulary.to_ids(units)]
            label = [*tokenizer(answer, add_special_tokens=False).input_ids, *vocabulary.to_ids([5, 6])]
            writer.add([*prompt, *label], [False] * len(prompt) + [True] * len(label))
    write_manifest(folder, "shards", config={}, about=set_facts(writer.entries, writer.length_counts, vocabulary))
    return folder


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 8
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("command", ["info", "verify", "preview", "stats", "mix"])
def test_without_its_argument_a_command_shows_its_usage(command, capsys):
    assert main(["data", command]) == 2
    assert f"usage: slm data {command}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["info", "preview", "stats"])
def test_a_folder_that_is_no_shard_set(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["data", command, str(tmp_path)]) == 3
    assert "no finished shards here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_info_of_several_sets(plain_set, speech_set, capsys):
    assert main(["data", "info", str(plain_set), str(speech_set)]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    counts = [re.search(r"([\d,]+) +([\d,]+) +[\d.]+ %", line).groups() for line in lines[1:4]]
    assert [samples for samples, _ in counts] == ["100", "2", "102"]
    tokens = [int(tokens.replace(",", "")) for _, tokens in counts]
    assert tokens[0] + tokens[1] == tokens[2]
    assert lines[3].startswith("all") and str(plain_set) in out and str(speech_set) in out
    assert out.isascii()  # no terminal: nothing but ASCII
    assert main(["data", "info", str(plain_set), str(speech_set), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["samples"], second["samples"]) == (100, 2)
    assert sum(second["kinds"].values()) == pytest.approx(1) and second["kinds"]["label units"] > 0


def test_a_histogram_joins_bins_and_loses_no_sample():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 50, 32).tolist()
    edges = [i * 7 for i in range(33)]
    for ascii_only in (False, True):
        lines = histogram_lines({"edges": edges, "counts": counts}, ascii_only=ascii_only)
        assert len(lines) <= 16
        assert sum(int(line.split()[-3].replace(",", "")) for line in lines) == sum(counts)
        assert all(line.isascii() for line in lines) == ascii_only
        assert max(line.count("#" if ascii_only else "█") for line in lines) == 40
    (line,) = histogram_lines({"edges": [0, 1, 2, 3], "counts": [0, 5, 0]})
    assert line.split()[0] == "2" and line.split()[-3:] == ["5", "100.0", "%"]
    tiny = histogram_lines({"edges": [0, 1, 2], "counts": [1, 100000]}, ascii_only=True)
    assert "#" in tiny[0]  # one sample is still seen


def test_verify_good_sets(plain_set, speech_set, capsys):
    for options in ([], ["--full"]):
        assert main(["data", "verify", str(plain_set), str(speech_set), *options]) == 0
        assert capsys.readouterr().out.count("\n  good") == 2


def test_verify_names_every_bad_place_of_every_set_and_exits_3(plain_set, speech_set, tmp_path, capsys):
    flip(plain_set / "shard-000000.tar", 5000)
    flip(plain_set / "shard-000001.tar", 5000)
    (plain_set / "shard-000002.tar").unlink()
    argv = ["data", "verify", str(plain_set), str(tmp_path / "none"), str(speech_set)]
    assert main(argv) == 3
    out = capsys.readouterr().out
    assert "shard-000002.tar" in out and "missing" in out and "shard-000000.tar" not in out
    assert main([*argv, "--full"]) == 3
    out = capsys.readouterr().out
    assert "3 bad places in 3 files" in out and "no finished shards here" in out and "  good" in out
    assert "s000000g00000000" in out and "s000001g00000000" in out
    assert "shard-000000.tar shard-000001.tar shard-000002.tar" in out
    assert main([*argv, "--full", "--json"]) == 3
    bad, none, good = json.loads(capsys.readouterr().out)
    assert [damage["file"] for damage in bad["damages"]] == [f"shard-00000{i}.tar" for i in range(3)]
    assert bad["damages"][0]["group"] == 0 and bad["damages"][0]["offset"] == 1024
    assert (bad["ok"], none["ok"], good["ok"]) == (False, False, True) and none["error"] == "no finished shards here"


def test_a_damaged_index_is_told_by_info_and_verify(plain_set, capsys):
    flip(plain_set / "shard-000001.idx", 80)
    assert main(["data", "info", str(plain_set)]) == 3
    assert "shard-000001.idx" in capsys.readouterr().err
    assert main(["data", "verify", str(plain_set)]) == 3
    assert "shard-000001.idx" in capsys.readouterr().out


def test_files_unknown_to_the_manifest_are_a_note(plain_set, capsys):
    (plain_set / "shard-000077.tar").write_bytes(b"")
    assert main(["data", "verify", str(plain_set)]) == 0
    assert "shard-000077.tar" in capsys.readouterr().out


def test_preview_marks_the_labels_without_colours(speech_set, capsys):
    assert main(["data", "preview", str(speech_set), "-n", "1"]) == 0
    out = capsys.readouterr().out
    assert "write down<1 2 3>[[paris<5 6>]]" in out and "\x1b" not in out
    assert "5 units" in out and "shard-000000.tar group 0" in out


def test_preview_cuts_long_runs_and_tames_what_a_terminal_would_obey(speech_set, capsys):
    assert main(["data", "preview", str(speech_set), "--at", "1", "--units", "4"]) == 0
    out = capsys.readouterr().out
    assert "<0 1 2 3 ... +12>" in out and "the cat\\x1b[31m" in out and "\x1b" not in out
    assert main(["data", "preview", str(speech_set), "--at", "1", "--units", "0"]) == 0
    assert "<0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15>" in capsys.readouterr().out


def preview_on_a_terminal(folder, environ, marks=False):
    shards = ShardSet(folder)
    console = Console(force_terminal=True, width=100, color_system="truecolor", highlight=False, markup=False,
                      _environ=environ)  # fmt: skip
    with console.capture() as captured:
        pairs = [(sample, runs_of(sample, shards.vocabulary)) for sample in read_samples(shards, [0])]
        show_samples(pairs, shards, lambda ids: "text", 12, console, marks=marks)
    return captured.get().splitlines()[-1]


def test_preview_colours_by_the_loss_mask_on_a_terminal(speech_set):
    body = preview_on_a_terminal(speech_set, {})
    spans = re.findall(r"\x1b\[([\d;]+)m([^\x1b]*)\x1b\[0m", body)
    assert [text for _, text in spans] == ["text", "⟨1 2 3⟩", "text", "⟨5 6⟩"]
    styles = [style for style, _ in spans]
    assert len({*styles}) == 4 and all("32" in style.split(";") for style in styles[2:])
    assert not any("32" in style.split(";") for style in styles[:2])


def test_no_color_and_plain_mark_the_labels_by_brackets(speech_set):
    for environ, marks in (({"NO_COLOR": "1"}, False), ({}, True)):
        assert "text<1 2 3>[[text<5 6>]]" in preview_on_a_terminal(speech_set, environ, marks)


def test_preview_without_a_tokenizer_shows_ids(plain_set, capsys):
    assert main(["data", "preview", str(plain_set), "--random", "1"]) == 0
    out = capsys.readouterr().out
    assert "no tokenizer was found" in out and out.count("\nsample ") == 3


def test_preview_with_another_tokenizer_or_number(plain_set, pico_tokenizer, speech_set, capsys):
    assert main(["data", "preview", str(plain_set), "--tokenizer", str(pico_tokenizer)]) == 3
    assert "another tokenizer" in capsys.readouterr().err
    assert main(["data", "preview", str(plain_set), "--tokenizer", str(plain_set)]) == 3
    assert "no tokenizer.json here" in capsys.readouterr().err
    assert main(["data", "preview", str(speech_set), "--at", "2"]) == 2
    assert "there is no sample 2" in capsys.readouterr().err


def test_stats_is_one_page_that_needs_nothing_else(plain_set, speech_set, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["data", "stats", str(plain_set), str(speech_set), "--out", str(page)]) == 0
    assert capsys.readouterr().out.strip() == str(page)
    html = page.read_text()
    assert "<svg" in html and not re.search(r"(src|href)=\"(?!#)", html) and "@import" not in html
    assert "102 samples" in html


MIX = ["ds_configs/tiny/asr.yaml", "data.pack.length=128", "data.pack.window=4"]


def test_mix_of_a_stage_with_replay_overrides_and_overlay(plain_set, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    old = make_set(tmp_path / "old", make_samples(20, seed=1))
    overlay = tmp_path / "replay.yaml"
    overlay.write_text(f"replay:\n  - {{shards: {old}, ratio: 0.25}}\n")
    argv = ["data", "mix", *MIX, f"data.shards={plain_set}", "duration.steps=50", "--with", str(overlay)]
    argv.append(f"model.base={tmp_path}/none")
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "50 steps of 4 rows of 128 tokens: 200 rows" in out
    assert "every 5 rows hold exactly 4 of plain, 1 of old" in out and "compared with each other only" in out
    assert "old: small for its ratio" in out
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [source["rows"] for source in found["sources"]] == [160, 40]
    assert sum(source["share"] for source in found["sources"]) == pytest.approx(1)
    assert found["compared_with_model"] is False


def test_mix_compares_with_the_base_when_it_is_there(plain_set, speech_set, pico_tokenizer, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    argv = ["data", "mix", *MIX, "duration.steps=2", f"model.base={pico_tokenizer}"]
    assert main([*argv, f"data.shards={speech_set}"]) == 0
    assert "compared with" not in capsys.readouterr().out
    assert main([*argv, f"data.shards={plain_set}"]) == 3
    assert "another tokenizer" in capsys.readouterr().err


def test_mix_needs_no_folder_that_a_pipeline_fills_in(plain_set, tmp_path, capsys):
    config = tmp_path / "stage.yaml"
    config.write_text("stage: asr\nduration: {steps: 3}\n")
    assert main(["data", "mix", str(config), f"data.shards={plain_set}"]) == 0
    assert "3 steps" in capsys.readouterr().out


def test_mix_of_missing_shards_and_of_a_bad_config(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["data", "mix", *MIX, f"data.shards={tmp_path}/none"]) == 3
    assert f"{tmp_path}/none" in capsys.readouterr().err
    assert main(["data", "mix", *MIX, "data.shard=x"]) == 2
    assert "did you mean 'shards'?" in capsys.readouterr().err


def test_notes_say_what_is_never_read():
    source = {"name": "a", "weight": 1, "epochs": 0.25}
    assert mix_notes({"sources": [source]}) == ["a: 75.0 % of its rows are never read"]
    assert mix_notes({"sources": [source | {"epochs": 3.0}]}) == []
    assert mix_notes({"sources": [source | {"epochs": 3.0, "dropped": 7}]}) == [
        "a: 7 samples are longer than a row and left out"
    ]
    pair = [source | {"epochs": 2.0, "weight": 4}, source | {"name": "b"}]
    assert mix_notes({"sources": pair, "block": 10}) == ["every 10 rows hold exactly 8 of a, 2 of b"]


def test_sizes():
    assert [size_text(n) for n in (0, 999, 1000, 3_200_000, 5e9, 2e12)] == [
        "0 B", "999 B", "1.0 kB", "3.2 MB", "5.0 GB", "2.00 TB",
    ]  # fmt: skip


def test_a_finding_is_not_cut_off_by_a_narrow_terminal(plain_set):
    flip(plain_set / "shard-000000.tar", 5000)
    console = Console(force_terminal=True, width=60, color_system=None, highlight=False, markup=False)
    with console.capture() as captured:
        show_verification(verify_shards(plain_set, full=True), console)
    text = re.sub(r"\s+", "", captured.get())
    assert "shard-000000.tar" in text and "s000000g00000000" in text and "indexsays" in text and "…" not in text


@pytest.mark.parametrize("command", ["info", "verify", "preview", "mix"])
def test_looking_at_shards_imports_neither_torch_nor_matplotlib(command, plain_set, tmp_path):
    config = tmp_path / "stage.yaml"
    config.write_text(f"stage: asr\nduration: {{steps: 3}}\ndata: {{shards: {plain_set}}}\n")
    argv = ["data", command, str(config if command == "mix" else plain_set)]
    heavy = "{'torch', 'matplotlib', 'transformers', 'deepspeed'}"
    code = f"import sys; from slm.cli.app import main; r = main({argv!r}); print(r, sorted({heavy} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
