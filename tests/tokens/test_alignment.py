from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slm.errors import DataError
from slm.tokens.alignment import Word, check_words, read_alignment, read_alignments, write_alignments
from slm.tokens.textgrid import parse_textgrid

PRAAT = Path(__file__).parent / "praat"
"""One TextGrid as Praat 6.1.38 itself saves it; `latin1` is another one."""
WORDS = [Word("don't", 0.25, 0.6), Word('“Zürich” "Süd"', 0.6, 0.9)]

LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.0
tiers? <exists>
size = {tiers}
item []:
"""
TIER = """    item [{n}]:
        class = "IntervalTier"
        name = "{name}"
        xmin = 0
        xmax = 1.0
        intervals: size = 2
        intervals [1]:
            xmin = 0
            xmax = 0.4
            text = "{first}"
        intervals [2]:
            xmin = 0.4
            xmax = 1.0
            text = "{second}"
"""


def textgrid(*names: str, first: str = "hello", second: str = "world") -> str:
    tiers = [TIER.format(n=n, name=name, first=first, second=second) for n, name in enumerate(names, 1)]
    return LONG.format(tiers=len(names)) + "".join(tiers)


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.mark.parametrize("form", ["long", "short", "short_utf16"])
def test_textgrids_as_praat_saves_them(form):
    assert read_alignment(PRAAT / f"{form}.TextGrid") == WORDS
    assert list(read_alignments(PRAAT / f"{form}.TextGrid")) == [form]
    assert read_alignment(PRAAT / f"{form}.TextGrid", tier="PHONES") == [Word("d", 0.25, 0.4)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("form", ["long", "short"])
def test_encodings_are_found_by_themselves(write, form, encoding):
    text = (PRAAT / f"{form}.TextGrid").read_text("utf-8")
    assert read_alignment(write("a.TextGrid", text.replace("\n", "\r\n").encode(encoding))) == WORDS


def test_other_encodings_have_to_be_named():
    with pytest.raises(DataError, match="not readable as utf-8") as failure:
        read_alignment(PRAAT / "latin1.TextGrid")
    assert "encoding" in failure.value.mend
    words = read_alignment(PRAAT / "latin1.TextGrid", encoding="latin-1")
    assert [word.text for word in words] == ["Zürich", "süd"]
    with pytest.raises(DataError, match="klingon"):
        read_alignment(PRAAT / "latin1.TextGrid", encoding="klingon")


def test_a_binary_textgrid_is_named():
    with pytest.raises(DataError, match="binary TextGrid"):
        read_alignment(PRAAT / "binary.TextGrid")


def test_comments_and_decoration_are_passed_over():
    text = textgrid("words").replace("xmin = 0.4", 'xmin = 0.4 ! the 2nd word, 17 "frames" in')
    text = text.replace("size = 1\n", "size = 1 tier of 3_or_so\n")
    assert [i.text for i in parse_textgrid(text, "x")[0].intervals] == ["hello", "world"]


def test_the_tier_of_the_words(tmp_path, write):
    path = write("utt.TextGrid", textgrid("phones", "Speaker 1 - words"))
    assert read_alignment(path) == [Word("hello", 0.0, 0.4), Word("world", 0.4, 1.0)]
    with pytest.raises(DataError, match="no tier 'words'; the tiers are: 'phones', 'ORT'"):
        read_alignment(write("b.TextGrid", textgrid("phones", "ORT")))
    with pytest.raises(DataError, match="several tiers 'words'; the tiers are: 'A - words', 'B - words'"):
        read_alignment(write("c.TextGrid", textgrid("A - words", "B - words")))
    assert len(read_alignment(tmp_path / "c.TextGrid", tier="b - WORDS")) == 2
    with pytest.raises(DataError, match="tier 'events' holds points"):
        read_alignment(PRAAT / "long.TextGrid", tier="events")
    empty = LONG.replace("<exists>", "<absent>").format(tiers=0)
    with pytest.raises(DataError, match="the tiers are: none"):
        read_alignment(write("d.TextGrid", empty))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: text.index("intervals [2]") + 40], "ends before its end of interval 2 of tier 'words'"),
        (lambda text: text.replace('"TextGrid"', '"PitchTier"'), "a Praat PitchTier, not a TextGrid"),
        (lambda text: text.replace("ooTextFile", "some file"), "no Praat text file"),
        (lambda text: text.replace("IntervalTier", "SpectrumTier"), "unknown class 'SpectrumTier'"),
        (lambda text: text.replace("size = 2", "size = 2.5"), "number of entries of tier 'words' is 2.5"),
        (lambda text: text.replace("size = 2", "size = -1"), "is -1"),
        (lambda text: text.replace("size = 2", "size = 1e999"), "is inf"),
        (
            lambda text: text.replace("xmax = 0.4", 'xmax = "0.4"'),
            "end of interval 1 of tier 'words' is '0.4', not a number",
        ),
        (lambda text: text.replace("xmax = 0.4", "xmax = 2"), "overlaps"),
        (lambda text: text.replace("xmax = 0.4", "xmax = -1"), "backwards"),
        (lambda text: text.replace("hello", "").replace("world", "sil"), "no word"),
        (lambda text: text.replace("hello", "<|5|>"), "unit token"),
        (lambda text: "", "ends before its file type"),
    ],
)
def test_damaged_textgrids(write, change, message):
    with pytest.raises(DataError, match=message) as failure:
        read_alignment(write("bad.TextGrid", change(textgrid("words"))))
    assert "bad.TextGrid" in failure.value.where


def test_a_wrong_value_is_found_by_its_line(write):
    text = textgrid("words").replace("xmax = 0.4", 'xmax = "0.4"')
    with pytest.raises(DataError) as failure:
        read_alignment(write("bad.TextGrid", text))
    assert failure.value.where.endswith(f"bad.TextGrid:{text[: text.index('0.4')].count(chr(10)) + 1}")


@pytest.mark.parametrize("mark", ["", " ", "sil", "SIL", "sp", "spn", "<eps>", "<sil>", "<p:>"])
def test_silences_are_left_out(write, mark):
    path = write("a.TextGrid", textgrid("words", first=mark))
    assert read_alignment(path) == [Word("world", 0.4, 1.0)]
    assert read_alignment(write("b.TextGrid", textgrid("words", first="uh")), silences=["UH"]) == [
        Word("world", 0.4, 1.0)
    ]


def test_intervals_of_no_length(write):
    text = textgrid("words", second="world").replace("xmax = 0.4", "xmax = 0").replace("xmin = 0.4", "xmin = 0")
    assert read_alignment(write("a.TextGrid", text)) == [Word("hello", 0.0, 0.0), Word("world", 0.0, 1.0)]


CTM = """;; a comment
utt-1 1 0.25 0.35 the 0.99
utt-1 1 0.60 0.10 <eps> 1.0
utt-1 1 0.70 0.20 cat

utt-2 A 0.10 0.20 hello
utt-2 A 0.30 0.20
utt-3 1 0.00 0.50 sil
"""


def test_ctm(write):
    path = write("all.ctm", CTM)
    assert read_alignments(path) == {
        "utt-1": [Word("the", 0.25, 0.6), Word("cat", 0.7, 0.9)],
        "utt-2": [Word("hello", 0.1, 0.3)],
    }
    with pytest.raises(DataError, match=r"2 utterances \(utt-1, utt-2"):
        read_alignment(path)
    assert read_alignment(write("one.CTM", CTM[: CTM.index("utt-2")])) == [
        Word("the", 0.25, 0.6),
        Word("cat", 0.7, 0.9),
    ]


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("u 1 0.1 0.2 a\nu 1 x 0.2 b\n", "not a CTM line", 2),
        ("u 1 0.1\n", "not a CTM line", 1),
        ("u 1 0.1 0.2 a 0.9 lex extra\n", "8 columns", 1),
        ("u A 0.1 0.2 a\nu B 0.3 0.2 b\n", "channels A and B", 2),
        ("u 1 0.5 0.2 a\nu 1 0.3 0.1 b\n", "backwards", None),
        ("u 1 0.5 -0.2 a\n", "backwards", None),
        ("u 1 0.1 0.9 a\nu 1 0.3 0.1 b\n", "overlaps", None),
        ("u 1 nan 0.9 a\n", "nan", None),
        (";; nothing\n", "no word", None),
        ("", "no word", None),
    ],
)
def test_bad_ctm(write, text, message, line):
    with pytest.raises(DataError, match=message) as failure:
        read_alignments(write("bad.ctm", text))
    assert failure.value.where.endswith(f"bad.ctm:{line}" if line else ("utterance u" if "u 1" in text else "bad.ctm"))


ONE = [{"word": " the", "start": 0.25, "end": 0.6}, {"text": "cat", "start_s": 0.7, "end_s": 0.9}]
EXPECTED = [Word("the", 0.25, 0.6), Word("cat", 0.7, 0.9)]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (ONE, "a"),
        ({"words": ONE, "language": "en"}, "a"),
        ({"words": ONE, "id": "u"}, "u"),
        ({"u": ONE}, "u"),
        ([{"id": "u", "words": ONE}], "u"),
        (
            {"start": 0, "end": 1, "tiers": {
                "phones": {"type": "interval", "entries": []},
                "words": {"type": "interval", "entries": [[0, 0.25, ""], [0.25, 0.6, "the"], [0.7, 0.9, "cat"]]}}},
            "a",
        ),
    ],
)  # fmt: skip
def test_json(write, value, name):
    assert read_alignments(write("a.json", json.dumps(value))) == {name: EXPECTED}
    assert read_alignment(write("a.json", json.dumps(value).encode("utf-16"))) == EXPECTED


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{", "not valid JSON"),
        ("a.jsonl", '{"id": "u", "words": []}\n{', "not valid JSON"),
        ("a.json", "[]", "no word"),
        ("a.json", "{}", "no word"),
        ("a.json", "3", "words are a list, not int"),
        ("a.json", '{"u": 3}', "words are a list, not int"),
        ("a.json", '[{"text": "a"}]', "word 0 is"),
        ("a.json", '[{"text": 3, "start": 0, "end": 1}]', "word 0 is"),
        ("a.json", '[{"text": "a", "start": null, "end": 1}]', "word 0 is"),
        ("a.json", '["a"]', "word 0 is"),
        ("a.json", '[{"text": "a", "start": 0, "end": 1' + "0" * 400 + "}]", "word 0 is"),
        ("a.json", "[" * 20_000, "not valid JSON"),
        ("a.jsonl", '{"id": "u"}', "row 0 is no object"),
        ("a.jsonl", '{"id": "u", "words": []}\n{"id": "u", "words": []}', "occurs twice"),
        ("a.json", '{"tiers": {"phones": {"type": "interval", "entries": []}}}', "the tiers are: 'phones'"),
        ("a.json", '{"tiers": {"words": {"type": "point", "entries": []}}}', "holds points"),
        ("a.json", '{"tiers": {"words": {"type": "interval", "entries": [[0, 1]]}}}', "can't be read"),
        ("a.json", '{"tiers": {"words": 3}}', "can't be read"),
    ],
)
def test_bad_json(write, name, text, message):
    with pytest.raises(DataError, match=message):
        read_alignments(write(name, text))


def test_unknown_and_missing_files(tmp_path, write):
    with pytest.raises(DataError, match=r"\.textgrid, \.ctm, \.json, \.jsonl, not \.srt"):
        read_alignment(write("a.srt", "x"))
    with pytest.raises(DataError, match="not found"):
        read_alignment(tmp_path / "nowhere.ctm")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5),
        st.lists(
            st.tuples(st.text(st.characters(categories=["L", "P"]), min_size=1), st.floats(0, 3), st.floats(0, 3)),
            min_size=1,
            max_size=4,
        ),
        min_size=1,
    )
)
def test_what_is_written_is_read_again(tmp_path, plan):
    alignments = {}
    for utterance, rows in plan.items():
        words, clock = [], 0.0
        for text, gap, length in rows:
            words.append(Word(text, clock + gap, clock + gap + length))
            clock += gap + length
        alignments[utterance] = words
    write_alignments(tmp_path / "a.jsonl", alignments)
    assert read_alignments(tmp_path / "a.jsonl", silences=[]) == alignments


def test_small_overlaps_and_ends_are_forgiven():
    words = [Word("a", 0.0, 0.13), Word("b", 0.1, 0.5)]
    check_words(words)
    check_words(words, seconds=0.45)
    with pytest.raises(DataError, match=r"the words end at 0\.5 s, the audio at 0\.3 s"):
        check_words(words, seconds=0.3)
