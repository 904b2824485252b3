from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from published_speech import convert, heard

from slm.config.speech import XlsrConfig
from slm.errors import CheckpointError, DataError, MachineError
from slm.speech import load_extractor
from slm.speech.xlsr import XlsrFeatures, XlsrKMeans, normalise
from slm.speech.xlsr_network import Network


@pytest.fixture(scope="module")
def extractor(converted) -> XlsrKMeans:
    return load_extractor(converted, "cpu")[0]


def reopened(converted, **changed) -> XlsrFeatures:
    config = XlsrConfig(**{"model": str(converted / "xlsr"), "layer": 3, **changed})
    return XlsrFeatures.open(config, "cpu")


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(int(seconds * 16_000)).astype(np.float32) * 0.1


def test_features_are_hidden_states_of_the_uncut_network(recorded, checkpoints, tmp_path):
    from transformers import Wav2Vec2Model

    whole = convert(checkpoints, tmp_path / "whole", layer=5, kmeans=None, vocoder=None, voices=None)
    cut = reopened(whole, layer=2)
    assert len(cut.network.model.encoder.layers) == 2
    model = Wav2Vec2Model.from_pretrained(whole / "xlsr").eval()
    wave = heard(recorded)[0]
    with torch.inference_mode():
        wanted = model(torch.from_numpy(normalise(wave))[None], output_hidden_states=True).hidden_states[2]
    np.testing.assert_allclose(cut.features([wave])[0], wanted[0].numpy(), atol=2e-5, rtol=0)


def test_layers_after_the_cut_are_never_read(checkpoints, tmp_path):
    from safetensors.torch import load_file, save_file

    whole = convert(checkpoints, tmp_path / "whole", layer=5, kmeans=None, vocoder=None, voices=None) / "xlsr"
    tensors = load_file(whole / "model.safetensors")
    later = [name for name in tensors if name.startswith(("encoder.layers.3.", "encoder.layers.4."))]
    assert later
    save_file({name: value for name, value in tensors.items() if name not in later}, whole / "model.safetensors")
    Network.load(whole, 3, "cpu")
    with pytest.raises(CheckpointError, match="missing"):
        Network.load(whole, 4, "cpu")


def test_a_batch_gives_what_one_by_one_gives(extractor, recorded, monkeypatch):
    monkeypatch.setattr("slm.speech.xlsr.PADDED", 99.0)  # all in one, from 0.3 to 2.2 seconds
    waves = [*heard(recorded), noise(1.7), noise(0.3, 1), noise(2.2, 2)]
    together = extractor.features(waves)
    for wave, found in zip(waves, together, strict=True):
        alone = extractor.features([wave])[0]
        np.testing.assert_allclose(found, alone, atol=2e-5, rtol=0)
    for found, wave in zip(extractor.units(waves), waves, strict=True):
        np.testing.assert_array_equal(found, extractor.units([wave])[0])


def test_little_of_a_batch_is_padding(converted):
    source = reopened(converted)
    lengths = np.random.default_rng(3).uniform(0.3, 9.0, 40)
    pieces = [piece for number, seconds in enumerate(lengths) for piece in source._pieces(number, noise(seconds))]
    found = list(source._batches(pieces))
    assert sorted(piece.wave for batch in found for piece in batch) == list(range(40))
    for batch in found:
        sizes = [piece.stop - piece.start for piece in batch]
        assert len(sizes) * max(sizes) <= 1.2 * sum(sizes)
    assert len(found) < 15


def test_batches_hold_no_more_than_batch_s_and_change_no_unit(converted, recorded):
    waves = [*heard(recorded), noise(1.2)]
    whole, split = reopened(converted), reopened(converted, batch_s=1.0)
    sizes = []
    run = Network.run

    def counted(self, batch, audible):
        sizes.append(len(batch) * max(map(len, batch)) / 16_000 if len(batch) > 1 else 0)
        return run(self, batch, audible)

    wanted = whole.features(waves)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "run", counted)
        found = split.features(waves)
    assert len(sizes) > 1 and max(sizes) <= 1.0
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5, rtol=0)


def test_the_same_wave_gives_the_same_units_bit_for_bit(extractor, recorded):
    waves = heard(recorded)
    for one, other in zip(extractor.features(waves), extractor.features(waves), strict=True):
        np.testing.assert_array_equal(one, other)


def test_long_audio_is_cut_with_context_and_loses_no_frame(converted):
    wave = noise(9.0)
    whole = reopened(converted).features([wave])[0]
    pieces = reopened(converted, chunk_s=2.0, context_s=0.5).features([wave])[0]
    assert pieces.shape == whole.shape == (449, 32)
    blind = reopened(converted, chunk_s=2.0, context_s=0.0).features([wave])[0]
    # attention sees the whole piece, so cuts are no identity; context brings them nearer
    assert np.abs(pieces - whole).mean() < np.abs(blind - whole).mean() < 0.5


def test_pieces_do_not_depend_on_what_they_are_batched_with(converted):
    source = reopened(converted, chunk_s=1.0, context_s=0.2)
    waves = [noise(3.3), noise(0.5, 1), noise(1.7, 2)]
    for wave, found in zip(waves, source.features(waves), strict=True):
        np.testing.assert_allclose(found, source.features([wave])[0], atol=2e-5, rtol=0)


def test_a_wave_too_short_for_a_unit_has_none_and_the_shortest_has_one(extractor):
    short, shortest, silent = extractor.units([noise(0.1)[:399], noise(0.1)[:400], np.zeros(1600, np.float32)])
    assert short.shape == (0,) and short.dtype == np.int32
    assert shortest.shape == (1,)
    assert len(set(silent.tolist())) <= len(silent) == 4


def test_units_are_the_nearest_centroids_by_euclidean_distance(extractor, recorded):
    wave = heard(recorded)[4]
    features = extractor.features([wave])[0].astype(np.float64)
    distances = ((features[:, None] - extractor.centroids[None].astype(np.float64)) ** 2).sum(axis=2)
    np.testing.assert_array_equal(extractor.units([wave])[0], distances.argmin(axis=1))


def test_loudness_and_offset_do_not_matter(extractor):
    wave = noise(1.0)
    np.testing.assert_array_equal(extractor.units([wave])[0], extractor.units([0.3 * wave + 0.2])[0])


@pytest.mark.parametrize(
    ("wave", "why"),
    [
        (np.zeros(0, np.float32), "empty"),
        (np.array([0.1, np.nan] * 400, np.float32), "NaN"),
        (np.zeros((800, 8), np.float32), "one channel"),
        (np.zeros(800, np.int16), "floating point"),
    ],
)
def test_unusable_waves_are_refused_by_position(extractor, wave, why):
    with pytest.raises(DataError, match=why) as caught:
        extractor.units([noise(0.1), wave])
    assert "wave 1 of 2" in str(caught.value)


@pytest.mark.parametrize("rate", [8_000, 192_000])
def test_other_sample_rates_are_refused(extractor, rate):
    with pytest.raises(DataError, match=f"{rate} Hz"):
        extractor.units([noise(0.1)], rate)


def test_bfloat16_gives_nearly_the_same_units(converted, extractor, recorded):
    low, _ = load_extractor(converted, "cpu", "bfloat16")
    assert low.identity == extractor.identity
    wanted, found = (np.concatenate(each.units(heard(recorded))) for each in (extractor, low))
    assert 0.8 < (wanted == found).mean() <= 1.0


def test_identity_follows_layer_codebook_and_chunks(checkpoints, converted, extractor, tmp_path):
    assert extractor.identity == load_extractor(converted, "cpu")[0].identity
    same = convert(checkpoints, tmp_path / "same", vocoder=None, voices=None, output="kept")
    assert load_extractor(same, "cpu")[0].identity == extractor.identity
    np.save(tmp_path / "kmeans.npy", np.load(checkpoints / "kmeans.npy") + 0.01)
    others = [
        convert(checkpoints, tmp_path / "layer", layer=2),
        convert(checkpoints, tmp_path / "codebook", kmeans=str(tmp_path / "kmeans.npy")),
        convert(checkpoints, tmp_path / "chunk", chunk_s=30.0),
    ]
    found = {load_extractor(folder, "cpu")[0].identity for folder in others}
    assert len(found | {extractor.identity}) == 4


@pytest.fixture
def folder(converted, tmp_path):
    return shutil.copytree(converted, tmp_path / "copy")


def edit(path, **changed) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_a_codebook_of_another_width_is_refused(folder):
    np.save(folder / "centroids.npy", np.zeros((50, 31), np.float32))
    with pytest.raises(DataError, match="width 31, the network 32"):
        load_extractor(folder, "cpu")


@pytest.mark.parametrize("array", [np.zeros(5, np.float32), np.zeros((5, 32), np.int64), np.full((5, 32), np.nan)])
def test_what_is_no_codebook_is_refused(folder, array):
    np.save(folder / "centroids.npy", array)
    with pytest.raises(DataError, match="centroids"):
        load_extractor(folder, "cpu")


def test_a_changed_codebook_does_not_pass_for_the_old_one(folder):
    np.save(folder / "centroids.npy", np.load(folder / "centroids.npy") + 0.1)
    with pytest.raises(DataError, match="do not belong together"):
        load_extractor(folder, "cpu")


def test_a_damaged_or_missing_codebook_is_refused(folder):
    (folder / "centroids.npy").write_bytes(b"\x93NUMPY garbage")
    with pytest.raises(DataError, match="can't be read"):
        load_extractor(folder, "cpu")
    (folder / "centroids.npy").unlink()
    with pytest.raises(DataError, match="not found"):
        load_extractor(folder, "cpu")


def test_a_layer_that_is_not_there_is_refused(converted):
    with pytest.raises(CheckpointError, match="layer 4 is wanted, the network has 3"):
        reopened(converted, layer=4)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"auto_map": {"AutoModel": "modeling.Evil"}}, "trust_remote_code"),
        ({"model_type": "hubert"}, "hubert"),
        ({"feat_extract_norm": "group"}, "feat_extract_norm"),
        ({"hidden_size": 64}, "another shape"),
    ],
)
def test_networks_that_cannot_be_used_are_refused(folder, changed, why):
    edit(folder / "xlsr" / "config.json", **changed)
    with pytest.raises(CheckpointError, match=why):
        Network.load(folder / "xlsr", 3, "cpu")


def test_damaged_and_pickled_weights_are_refused(folder):
    weights = folder / "xlsr" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="can't be loaded"):
        Network.load(folder / "xlsr", 3, "cpu")
    weights.rename(folder / "xlsr" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safetensors"):
        Network.load(folder / "xlsr", 3, "cpu")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Network.load(folder, 3, "cpu")


@pytest.mark.parametrize("device", ["cuda:17", "abacus"])
def test_a_device_that_is_not_there_is_refused(converted, device):
    with pytest.raises(MachineError, match="no such device"):
        load_extractor(converted, device)


def test_a_codebook_of_one_s_own_is_saved_with_the_cut_network(checkpoints, tmp_path):
    whole = convert(checkpoints, tmp_path / "whole", layer=5, kmeans=None, vocoder=None, voices=None)
    assert not (whole / "speech.json").exists()
    source = reopened(whole, layer=2)
    chance = np.random.default_rng(0)
    (tmp_path / "own").mkdir()
    saved = source.save(tmp_path / "own", chance.standard_normal((7, source.width)))
    loaded, units = load_extractor(tmp_path / "own", "cpu")
    assert (loaded.identity, units.count, units.rate_hz) == (saved.identity, 7, 50.0)
    assert json.loads((tmp_path / "own" / "xlsr" / "config.json").read_text())["num_hidden_layers"] == 2
    np.testing.assert_array_equal(loaded.units([noise(1.0)])[0], saved.units([noise(1.0)])[0])


def test_a_folder_with_a_pretraining_head_and_several_files_will_do(tmp_path):
    from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    heads = {"codevector_dim": 8, "proj_codevector_dim": 8, "num_codevectors_per_group": 4}
    norms = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
    convolutions = {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    model = Wav2Vec2ForPreTraining(Wav2Vec2Config(**shape, **heads, **norms, **convolutions)).eval()
    model.save_pretrained(tmp_path / "hub", max_shard_size="100KB")
    assert len(list((tmp_path / "hub").glob("*.safetensors"))) > 1
    source = XlsrFeatures.open(XlsrConfig(model=str(tmp_path / "hub"), layer=2), "cpu")
    wave = noise(1.0)
    with torch.inference_mode():
        told = model.wav2vec2(torch.from_numpy(normalise(wave))[None], output_hidden_states=True)
    np.testing.assert_allclose(source.features([wave])[0], told.hidden_states[2][0].numpy(), atol=2e-5)
    (tmp_path / "own").mkdir()
    source.save(tmp_path / "own", np.random.default_rng(0).standard_normal((5, 32)))
    loaded, _ = load_extractor(tmp_path / "own", "cpu")
    np.testing.assert_allclose(loaded.features([wave])[0], source.features([wave])[0], atol=1e-6)
