from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.tokens.draws import Draws


def test_the_stream_never_changes():
    draws = Draws(7, "spéaker/utt-1")
    found = [draws.below(1000), draws.poisson(10.0), draws.chance(0.5), draws.below(1000), draws.poisson(0.5)]
    assert found == [417, 9, True, 498, 1]


@given(st.integers(0, 2**40), st.text(), st.integers(1, 2**40))
def test_a_stream_depends_on_seed_and_key_alone(seed, key, count):
    def some(seed: int, key: str) -> list[int]:
        draws = Draws(seed, key)
        return [draws.raw() for _ in range(3)]

    assert some(seed, key) == some(seed, key)
    assert some(seed, key) != some(seed + 1, key) and some(seed, key) != some(seed, key + "\0")
    assert 0 <= Draws(seed, key).below(count) < count


@pytest.mark.parametrize("mean", [0.2, 3.0, 10.0, 900.0])
def test_poisson_against_its_formula(mean):
    draws = Draws(0, f"poisson {mean}")
    found = [draws.poisson(mean) for _ in range(4000)]
    average = sum(found) / len(found)
    variance = sum((k - average) ** 2 for k in found) / len(found)
    assert abs(average - mean) < 5 * math.sqrt(mean / len(found))
    assert abs(variance / mean - 1) < 0.2
    most = int(mean)
    expected = math.exp(-mean + most * math.log(mean) - math.lgamma(most + 1)) if most else math.exp(-mean)
    share = found.count(most) / len(found)
    assert abs(share - expected) < 5 * math.sqrt(expected / len(found))


def test_chances_and_normals():
    draws = Draws(0, "k")
    assert not any(draws.chance(0.0) for _ in range(100)) and all(draws.chance(1.0) for _ in range(100))
    assert abs(sum(draws.chance(0.3) for _ in range(4000)) / 4000 - 0.3) < 0.04
    values = [draws.normal(2.0) for _ in range(4000)]
    assert max(map(abs, values)) <= 2.0 and abs(sum(values) / 4000) < 0.07
    within_one = sum(abs(value) < 1 for value in values) / 4000
    assert abs(within_one - 0.6827 / 0.9545) < 0.04
