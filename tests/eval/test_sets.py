from __future__ import annotations

import json

import pytest

from slm.errors import DataError
from slm.eval.sets import choose, read_set, set_path

ITEM = {"id": "a", "stage": "llm", "example": {}, "target": {"answer": "b"}}


def write(tmp_path, *lines):
    path = set_path(tmp_path, "qa")
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_items_are_read_in_order(tmp_path):
    items = read_set(write(tmp_path, ITEM, {**ITEM, "id": "b", "audio": "x.wav", "tags": ["t"]}))
    assert [item.id for item in items] == ["a", "b"]
    assert items[1].audio == "x.wav" and items[1].tags == ("t",) and items[0].audio is None


def test_what_is_no_set(tmp_path):
    with pytest.raises(DataError, match="not an evaluation item") as caught:
        read_set(write(tmp_path, ITEM, '{"id": "b"}'))
    assert caught.value.where.endswith("qa.jsonl:2")
    for lines in ([ITEM, ITEM], []):
        with pytest.raises(DataError, match="empty or an id occurs twice"):
            read_set(write(tmp_path, *lines))
    with pytest.raises(DataError, match="no evaluation set 'other'") as caught:
        read_set(set_path(tmp_path, "other"))
    assert caught.value.mend == "there are: qa"


def test_a_choice_is_seeded_and_keeps_the_order(tmp_path):
    items = read_set(write(tmp_path, *({**ITEM, "id": f"{i:03d}"} for i in range(100))))
    chosen = choose(items, 10, seed=1)
    ids = [item.id for item in chosen]
    assert len(ids) == 10 and ids == sorted(ids)
    assert choose(items, 10, seed=1) == chosen != choose(items, 10, seed=2)
    assert choose(items, None, seed=1) == choose(items, 100, seed=1) == items
