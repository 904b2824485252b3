from __future__ import annotations

import numpy as np
import pytest

from slm.errors import DataError
from slm.speech.codebook_vocoder import CodebookVocoder
from slm.speech.mel_kmeans import MelKMeans
from slm.tokens.vocabulary import remove_repeats


def edit_rate(reference: list[int], found: list[int]) -> float:
    row = list(range(len(found) + 1))
    for i, a in enumerate(reference, 1):
        corner, row[0] = row[0], i
        for j, b in enumerate(found, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (a != b))
    return row[-1] / len(reference)


@pytest.fixture(scope="module")
def vocoder(codebook) -> CodebookVocoder:
    return CodebookVocoder(codebook)


def test_spoken_units_are_heard_again(codebook, vocoder, waves):
    rates = []
    for wave in waves[:6]:
        said = remove_repeats(codebook.units([wave])[0])
        heard = remove_repeats(codebook.units([vocoder.wave(said)])[0])
        rates.append(edit_rate(said, heard))
    chance = edit_rate(said, remove_repeats(codebook.units([waves[20]])[0]))
    assert np.mean(rates) < 0.4 < chance


def test_speech_is_audible_and_not_clipped(codebook, vocoder, waves):
    for wave in waves[:3]:
        spoken = vocoder.wave(remove_repeats(codebook.units([wave])[0]))
        assert spoken.dtype == np.float32
        level = np.sqrt((spoken**2).mean()) / np.sqrt((wave**2).mean())
        assert 0.4 < level < 1.5
        assert np.abs(spoken).max() <= 0.951
        assert len(spoken) == pytest.approx(len(wave), rel=0.35)


def test_the_same_units_give_the_same_wave(vocoder):
    np.testing.assert_array_equal(vocoder.wave([3, 1, 4, 1, 5]), vocoder.wave([3, 1, 4, 1, 5]))


def test_durations_set_the_length(vocoder):
    assert len(vocoder.wave([1, 2], [3, 2.5])) == 6 * 640  # 5.5 periods, rounded half up
    assert len(vocoder.wave([1, 2, 3], [1, 0, 1])) == 2 * 640
    periods = vocoder.codebook.durations[[1, 2]].sum()
    assert len(vocoder.wave([1, 2])) == int(periods + 0.5) * 640


def test_where_repeats_are_kept_each_unit_lasts_a_period(codebook):
    kept = MelKMeans(
        codebook.config.model_copy(update={"output": "kept"}),
        codebook.projection,
        codebook.centroids,
        codebook.mel,
        codebook.durations,
    )
    assert len(CodebookVocoder(kept).wave([1, 1, 2])) == 3 * 640


def test_no_units_are_no_sound_and_one_unit_is_some(vocoder):
    assert vocoder.wave([]).shape == (0,)
    assert np.isfinite(vocoder.wave([0], [1])).all()


@pytest.mark.parametrize("units", [[16], [-1], [[1, 2]]])
def test_units_out_of_range_are_refused(vocoder, units):
    with pytest.raises(DataError, match="0 to 15"):
        vocoder.wave(units)


@pytest.mark.parametrize("durations", [[1.0], [1.0, -1.0], [1.0, float("nan")]])
def test_durations_that_do_not_fit_are_refused(vocoder, durations):
    with pytest.raises(DataError, match="durations"):
        vocoder.wave([1, 2], durations)
