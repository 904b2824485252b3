from __future__ import annotations

import argparse
import json
import pickle

import numpy as np
import pytest
import torch
from published_speech import conversion, convert, older_names, tensors_of

from slm.artifact import find_manifest, read_manifest, verify
from slm.config.loader import from_overrides
from slm.config.speech import SpeechConvertJob
from slm.errors import CheckpointError, ConfigError, DataError
from slm.speech import load_extractor, load_speech, load_vocoder
from slm.speech.convert import convert_speech


def weights_of(folder, part: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / part / "model.safetensors")


def write_xlsr(checkpoints, folder, tensors, key: str = "model", **beside):
    torch.save({key: tensors, **beside}, folder / "xlsr.pt")
    return {"xlsr": str(folder / "xlsr.pt"), "vocoder": None, "voices": None}


def write_vocoder(folder, tensors, key: str = "model"):
    torch.save({key: tensors}, folder / "vocoder.pt")
    return {"vocoder": str(folder / "vocoder.pt"), "xlsr": None, "kmeans": None}


def test_the_artifact_is_sealed_and_opens(converted):
    assert read_manifest(converted, "speech").inputs.keys() == {"xlsr", "kmeans", "vocoder", "voices"}
    verify(converted)
    extractor, vocoder, units = load_speech(converted)
    assert (extractor.name, vocoder.name) == ("xlsr_kmeans", "code_hifigan")
    assert (units.count, units.rate_hz, units.input, units.output) == (50, 50.0, "kept", "removed")


def test_a_second_conversion_makes_nothing_again(checkpoints, tmp_path):
    folder = convert(checkpoints, tmp_path / "speech", vocoder=None, voices=None)
    before = (folder / "speech.json").stat().st_mtime_ns
    convert(checkpoints, folder, vocoder=None, voices=None)
    assert (folder / "speech.json").stat().st_mtime_ns == before
    convert(checkpoints, folder, vocoder=None, voices=None, output="kept")
    assert json.loads((folder / "speech.json").read_text())["units"]["output"] == "kept"


def test_fairseq_s_naming_gives_the_same_network(recorded, checkpoints, converted, tmp_path):
    older = older_names(tensors_of(recorded, "xlsr"))
    assert "post_extract_proj.weight" in older and "encoder.layers.0.fc1.weight" in older
    assert not any(name.startswith("encoder_frontend") for name in older)
    folder = convert(checkpoints, tmp_path / "out", **write_xlsr(checkpoints, tmp_path, older))
    wanted, found = weights_of(converted, "xlsr"), weights_of(folder, "xlsr")
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize("key", ["model", "generator"])
def test_the_vocoder_comes_with_and_without_prefix(recorded, checkpoints, converted, tmp_path, key):
    plain = {name.removeprefix("code_generator."): value for name, value in tensors_of(recorded, "vocoder").items()}
    assert "dict.weight" in plain
    folder = convert(checkpoints, tmp_path / "out", **write_vocoder(tmp_path, plain, key))
    wanted, found = weights_of(converted, "vocoder"), weights_of(folder, "vocoder")
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_weight_norm_is_worked_out(recorded, converted):
    tensors = tensors_of(recorded, "vocoder")
    for old, new in (("ups.1", "upsampler.1"), ("resblocks.4.convs2.1", "resblocks.4.convs2.1")):
        v = tensors[f"code_generator.{old}.weight_v"].numpy()
        g = tensors[f"code_generator.{old}.weight_g"].numpy()
        wanted = g * v / np.sqrt((v**2).sum(axis=(1, 2), keepdims=True))
        found = weights_of(converted, "vocoder")[f"hifi_gan.{new}.weight"].numpy()
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: t.pop("encoder.layers.4.ffn.inner_proj.weight"), "missing: encoder.layers.4"),
        (lambda t: t.pop("encoder_frontend.model_dim_proj.weight"), "missing: feature_projection.projection.weight"),
        (
            lambda t: t.update({"encoder.layers.0.adapter.weight": torch.ones(2)}),
            "unknown tensors: encoder.layers.0.ad",
        ),
        (lambda t: t.update({"encoder.layers.0.ffn.inner_proj.bias": torch.ones(3)}), r"has shape \(3,\)"),
        (lambda t: t["encoder.layers.0.ffn.inner_proj.bias"].fill_(float("nan")), "not finite"),
        (lambda t: t.update({"post_extract_proj.weight": torch.ones(2)}), "unknown tensors: post_extract_proj"),
    ],
)
def test_networks_with_other_tensors_are_refused(recorded, checkpoints, tmp_path, change, why):
    tensors = {name: value.clone() for name, value in tensors_of(recorded, "xlsr").items()}
    change(tensors)
    with pytest.raises(CheckpointError, match=why):
        convert(checkpoints, tmp_path / "out", **write_xlsr(checkpoints, tmp_path, tensors))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: t.pop("code_generator.dict.weight"), "missing: unit_embedding.weight"),
        (lambda t: t.pop("code_generator.ups.0.weight_g"), r"missing tensor: hifi_gan.upsampler.0.weight_g"),
        (lambda t: t.pop("code_generator.ups.0.weight_v"), r"missing tensor: hifi_gan.upsampler.0.weight_v"),
        (lambda t: t.pop("code_generator.dur_predictor.proj.bias"), "missing: dur_predictor.proj.bias"),
        (lambda t: t.update({"code_generator.f0.weight": torch.ones(2)}), "unknown tensors: f0.weight"),
    ],
)
def test_vocoders_with_other_tensors_are_refused(recorded, checkpoints, tmp_path, change, why):
    tensors = tensors_of(recorded, "vocoder")
    change(tensors)
    with pytest.raises(CheckpointError, match=why):
        convert(checkpoints, tmp_path / "out", **write_vocoder(tmp_path, tensors))
    assert find_manifest(tmp_path / "out") is None


class Runs:
    """A pickle that would run code."""

    def __reduce__(self):
        return (exec, ("raise AssertionError('code of the checkpoint ran')",))


def test_settings_beside_the_tensors_are_passed_over_and_no_code_runs(recorded, checkpoints, converted, tmp_path):
    beside = {"args": argparse.Namespace(arch="wav2vec2"), "cfg": Runs(), "extra": [Runs()]}
    changed = write_xlsr(checkpoints, tmp_path, tensors_of(recorded, "xlsr"), **beside)
    folder = convert(checkpoints, tmp_path / "out", **changed)
    assert weights_of(folder, "xlsr").keys() == weights_of(converted, "xlsr").keys()


def test_what_is_no_checkpoint_is_refused(checkpoints, tmp_path):
    path = tmp_path / "xlsr.pt"
    plain = {"xlsr": str(path), "vocoder": None, "voices": None}
    whole = (checkpoints / "xlsr.pt").read_bytes()
    for content in (b"", b"not a checkpoint", whole[: len(whole) // 2], pickle.dumps({"model": 3})):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"not a readable checkpoint|no tensors"):
            convert(checkpoints, tmp_path / "out", **plain)
    torch.save({"optimizer": {"lr": 1.0}}, path)
    with pytest.raises(CheckpointError, match="no tensors under model"):
        convert(checkpoints, tmp_path / "out", **plain)


def test_a_checkpoint_that_is_not_there_is_refused_before_any_work(checkpoints, tmp_path):
    with pytest.raises(DataError, match="xlsr: no such file"):
        convert(checkpoints, tmp_path / "out", xlsr=str(tmp_path / "none.pt"))


def test_codebooks_that_do_not_fit_are_refused(checkpoints, tmp_path):
    path = tmp_path / "kmeans.npy"
    changed = {"kmeans": str(path), "vocoder": None, "voices": None}
    np.save(path, np.zeros((50, 40), np.float32))
    with pytest.raises(DataError, match="width 40, the network 32"):
        convert(checkpoints, tmp_path / "out", **changed)
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="not a readable array"):
        convert(checkpoints, tmp_path / "out", **changed)


def test_a_vocoder_of_other_units_is_refused(checkpoints, tmp_path):
    np.save(tmp_path / "kmeans.npy", np.load(checkpoints / "kmeans.npy")[:49])
    with pytest.raises(DataError, match="there are 49 units, the vocoder speaks 50"):
        convert(checkpoints, tmp_path / "out", kmeans=str(tmp_path / "kmeans.npy"))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"layer": 6}, "layer 6 is wanted, the network has 5"),
        ({"heads": 5}, "5 heads do not divide"),
        ({"conv_stride": [5, 2]}, "7 convolutions, conv_stride 2"),
        ({"upsample_rates": [5, 4]}, "5 upsampling blocks, upsample_rates 2"),
    ],
)
def test_numbers_that_do_not_fit_the_tensors_are_refused(checkpoints, tmp_path, changed, why):
    with pytest.raises(CheckpointError, match=why):
        convert(checkpoints, tmp_path / "out", **changed)


@pytest.mark.parametrize(
    ("pairs", "why"),
    [
        (["out=o"], "nothing to convert"),
        (["out=o", "vocoder=v", "kmeans=k"], "kmeans needs xlsr"),
        (["out=o", "xlsr=x", "voices=v"], "voices needs vocoder"),
        (["out=o", "xlsr=x", "kmeans=k", "extractor=seamless"], "environment"),
        (["out=o", "xlsr=x", "layers=3"], "layers"),
    ],
)
def test_jobs_that_make_no_sense_are_refused(pairs, why):
    with pytest.raises(ConfigError, match=why):
        from_overrides(SpeechConvertJob, pairs)


def test_the_architectures_of_the_published_checkpoints_are_transformers_own(tmp_path):
    """Names and shapes of XLS-R 1B and vocoder_v2 as published, without their weights, convert to full-size models."""
    from slm.speech.convert import generator_shape, network_shape

    with torch.device("meta"):
        network = {
            **{
                f"feature_extractor.conv_layers.{n}.conv.weight": torch.empty(512, 512 if n else 1, kernel)
                for n, kernel in enumerate([10, 3, 3, 3, 3, 2, 2])
            },
            "feature_projection.projection.weight": torch.empty(1280, 512),
            "encoder.pos_conv_embed.conv.parametrizations.weight.original1": torch.empty(1280, 80, 128),
            **{
                f"encoder.layers.{n}.feed_forward.intermediate_dense.weight": torch.empty(5120, 1280) for n in range(48)
            },
        }
        generator = {
            "unit_embedding.weight": torch.empty(10_000, 1280),
            "language_embedding.weight": torch.empty(36, 256),
            "speaker_embedding.weight": torch.empty(200, 256),
            "hifi_gan.conv_pre.weight": torch.empty(512, 1792, 7),
            **{
                f"hifi_gan.upsampler.{n}.weight": torch.empty(512 >> n, 256 >> n, k)
                for n, k in enumerate([11, 8, 8, 4, 4])
            },
            **{f"hifi_gan.resblocks.{n}.convs1.0.weight": torch.empty(256, 256, k) for n, k in enumerate([3, 7, 11])},
            "dur_predictor.conv1.weight": torch.empty(1280, 1280, 3),
        }
    job = SpeechConvertJob(out="o", xlsr="x", vocoder="v")
    found = network_shape(job, network, "x")
    assert (found["hidden_size"], found["num_hidden_layers"], found["num_attention_heads"]) == (1280, 48, 16)
    assert (found["num_conv_pos_embeddings"], found["num_conv_pos_embedding_groups"]) == (128, 16)
    from transformers import SeamlessM4Tv2Config

    published = SeamlessM4Tv2Config()
    for key, value in generator_shape(job, generator, "v").items():
        known = getattr(published, key)
        assert value == (
            [list(each) if isinstance(each, tuple) else each for each in known] if isinstance(known, tuple) else known
        )


def test_networks_and_vocoders_convert_by_themselves(checkpoints, tmp_path):
    folder = convert(checkpoints, tmp_path / "v", xlsr=None, kmeans=None)
    assert sorted(path.name for path in folder.iterdir()) == ["MANIFEST.json", "vocoder"]
    with pytest.raises(DataError, match="not found"):
        load_vocoder(folder)


def test_an_artifact_without_a_vocoder_opens_for_its_extractor(checkpoints, tmp_path):
    folder = convert(checkpoints, tmp_path / "s", vocoder=None, voices=None)
    assert load_extractor(folder, "cpu")[1].count == 50
    with pytest.raises(DataError, match="no vocoder"):
        load_speech(folder)


def test_what_is_converted_is_part_of_the_fingerprint(checkpoints, tmp_path):
    convert(checkpoints, tmp_path / "one", vocoder=None, voices=None)
    np.save(tmp_path / "kmeans.npy", np.load(checkpoints / "kmeans.npy") * 1.5)
    job = conversion(checkpoints, tmp_path / "two", vocoder=None, voices=None, kmeans=str(tmp_path / "kmeans.npy"))
    convert_speech(job)
    assert read_manifest(tmp_path / "one").fingerprint != read_manifest(tmp_path / "two").fingerprint
