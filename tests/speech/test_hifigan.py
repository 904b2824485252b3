from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from published_speech import convert

from slm.errors import CheckpointError, DataError
from slm.speech import load_vocoder
from slm.speech.hifigan import CodeHifiGan, load_generator
from slm.speech.hifigan_voices import PUBLISHED, Voices

SAID = [3, 1, 4, 1, 5]
PERIOD = 320


@pytest.fixture(scope="module")
def vocoder(converted) -> CodeHifiGan:
    return load_vocoder(converted, "cpu")


@pytest.fixture(scope="module")
def kept(checkpoints, tmp_path_factory) -> CodeHifiGan:
    return load_vocoder(convert(checkpoints, tmp_path_factory.mktemp("kept") / "speech", output="kept"), "cpu")


@pytest.fixture
def folder(converted, tmp_path):
    return shutil.copytree(converted, tmp_path / "copy")


def edit(path, **changed) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_durations_are_predicted_only_where_repeats_are_removed(vocoder, kept):
    assert len(kept.wave(SAID)) == len(SAID) * PERIOD
    assert len(vocoder.wave(SAID)) > len(SAID) * PERIOD
    with torch.inference_mode():
        codes = vocoder.model.unit_embedding(torch.tensor([SAID]))
        periods = torch.exp(vocoder.model.dur_predictor(codes)) - 1
    assert len(vocoder.wave(SAID)) == int(np.maximum(np.round(periods.numpy()), 1).sum()) * PERIOD


def test_kept_repeats_sound_like_given_durations(vocoder, kept):
    np.testing.assert_array_equal(kept.wave([7, 7, 7, 2, 2]), vocoder.wave([7, 2], [3, 2]))


def test_the_wave_is_transformers_own_where_it_predicts_durations(vocoder):
    # its own call needs two units or more that are not its padding unit, 1
    said = [3, 9, 4, 2, 5]
    with torch.inference_mode():
        wanted, _ = vocoder.model(
            torch.tensor([said]), torch.tensor([[vocoder.voice.speaker]]), torch.tensor([[vocoder.voice.language]])
        )
    np.testing.assert_allclose(vocoder.wave(said), wanted[0].numpy(), atol=1e-6)


def test_the_same_units_give_the_same_wave(vocoder):
    wave = vocoder.wave(SAID)
    assert wave.dtype == np.float32 and np.abs(wave).max() <= 1
    np.testing.assert_array_equal(wave, vocoder.wave(SAID))


def test_fractions_of_periods_carry_over(vocoder):
    assert len(vocoder.wave([1, 2], [3, 2.5])) == 6 * PERIOD
    assert len(vocoder.wave([1, 2, 3], [1, 0, 1])) == 2 * PERIOD
    assert vocoder.wave([1], [0]).shape == vocoder.wave([]).shape == (0,)


def test_voices_are_chosen_by_language_and_speaker(vocoder):
    assert (vocoder.voice.language, vocoder.voice.speaker) == (1, 3)  # English, its own voice
    other = vocoder.speaking_as("fra")
    assert (other.voice.language, other.voice.speaker) == (2, 2)
    assert vocoder.speaking_as("fra", 4).voice.speaker == 4
    durations = [2.0] * len(SAID)
    waves = [each.wave(SAID, durations) for each in (vocoder, other, vocoder.speaking_as("eng", 1))]
    assert all(np.abs(one - two).max() > 1e-4 for one, two in ((waves[0], waves[1]), (waves[0], waves[2])))


@pytest.mark.parametrize(("language", "speaker", "why"), [("xyz", None, "language 'xyz'"), ("eng", 5, "speaker 5")])
def test_voices_that_are_not_there_are_refused(vocoder, language, speaker, why):
    with pytest.raises(DataError, match=why):
        vocoder.speaking_as(language, speaker)


def test_a_vocoder_without_voices_has_no_choice_of_them(codebook, tmp_path):
    codebook.save(tmp_path)
    with pytest.raises(DataError, match="no choice of language"):
        load_vocoder(tmp_path, language="eng")


@pytest.mark.parametrize("units", [[50], [-1], [[1, 2]]])
def test_units_outside_the_codebook_are_refused(vocoder, units):
    with pytest.raises(DataError, match="0 to 49"):
        vocoder.wave(units)


@pytest.mark.parametrize("durations", [[1.0], [1.0, -1.0], [1.0, float("nan")]])
def test_durations_that_do_not_fit_are_refused(vocoder, durations):
    with pytest.raises(DataError, match="durations"):
        vocoder.wave([1, 2], durations)


def test_units_that_the_network_has_no_sound_for_are_refused(folder):
    units = json.loads((folder / "speech.json").read_text())["units"]
    edit(folder / "speech.json", units={**units, "count": 49})
    with pytest.raises(DataError, match="there are 49 units, the vocoder speaks 50"):
        load_vocoder(folder, "cpu")
    edit(folder / "speech.json", units={**units, "rate_hz": 25.0})
    with pytest.raises(DataError, match="50 units a second, these are 25"):
        load_vocoder(folder, "cpu")


def test_damaged_vocoders_are_refused(folder):
    edit(folder / "vocoder" / "config.json", auto_map={"AutoModel": "x"})
    with pytest.raises(CheckpointError, match="trust_remote_code"):
        load_generator(folder / "vocoder")
    shutil.rmtree(folder / "vocoder")
    with pytest.raises(CheckpointError, match="no vocoder here"):
        load_vocoder(folder, "cpu")


def test_a_vocoder_with_weights_left_over_or_missing_is_refused(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "vocoder" / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "stray": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="left over: stray"):
        load_vocoder(folder, "cpu")
    tensors.pop("hifi_gan.conv_pre.bias")
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"missing: hifi_gan\.conv_pre\.bias"):
        load_vocoder(folder, "cpu")


def test_the_published_voices_are_whole():
    assert len(PUBLISHED) == 36 and list(PUBLISHED) == sorted(PUBLISHED)
    speakers = [speaker for each in PUBLISHED.values() for speaker in each]
    assert sorted(speakers) == list(range(75))
    published = Voices.default(36, 200)
    assert published.choose().speaker == 10 and published.choose("rus").speaker == 43
    assert list(Voices.default(2, 3).languages) == ["0", "1"]


@pytest.mark.parametrize("text", ["[1]", "{}", '{"eng": []}', '{"eng": [5]}', '{"eng": [true]}', '{"eng": 1}', "{"])
def test_files_of_voices_are_checked(tmp_path, text):
    (tmp_path / "voices.json").write_text(text)
    with pytest.raises(DataError):
        Voices.read(tmp_path / "voices.json", 3, 5)
