from __future__ import annotations

import re
from xml.etree import ElementTree

import hypothesis
import hypothesis.strategies as st

from slm.demo.strip import CELL, WIDEST, cells, colour, unit_strip

WORDS = st.text("ab <>&\"'é", max_size=5).map(str.strip)
WOVEN = st.lists(st.tuples(WORDS, st.lists(st.integers(0, 9999), max_size=30)), max_size=8)


def written(pairs) -> str:
    return "".join(word + "".join(f"<|{unit}|>" for unit in units) for word, units in pairs)


@hypothesis.given(pairs=WOVEN)
def test_every_unit_has_its_cell_in_order(pairs):
    text = written(pairs)
    drawn = unit_strip(text)
    units = [unit for _, row in pairs for unit in row]
    assert [int(unit) for unit in re.findall(r"<title>unit (\d+)</title>", drawn)] == units
    if units:
        root = ElementTree.fromstring(drawn)  # well-formed, whatever a model wrote
        assert all(float(rect.get("x")) < WIDEST * CELL for rect in root.iter("{http://www.w3.org/2000/svg}rect"))
    else:
        assert drawn == ""


def test_a_word_stands_over_its_first_unit():
    assert cells("the<|5|><|9|> cat<|3|> end") == [("the", 5), ("", 9), ("cat", 3), ("end", None)]
    drawn = unit_strip("the<|5|><|9|> cat<|3|>")
    words = re.findall(r'<text x="(\d+)" y="12"><title>(\w+)', drawn)
    assert words == [("0", "the"), (str(2 * CELL), "cat")]


def test_what_a_model_writes_is_text_and_no_markup():
    assert "<script" not in unit_strip("<script>alert(1)</script><|1|>")


def test_neighbours_differ_in_colour():
    assert len({colour(unit) for unit in range(200)}) > 190
    assert colour(7) == colour(7)
