"""A small wav2vec 2.0 that reads tones: every letter is a sine of its own."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import (
    HubertConfig,
    HubertForCTC,
    PretrainedConfig,
    SEWConfig,
    SEWForCTC,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMForCTC,
)  # fmt: skip

from slm.config.interleave import CtcConfig
from slm.errors import CheckpointError, ConfigError, DataError
from slm.speech.ctc import CtcAligner
from slm.speech.spelling import STAR, Spelling
from slm.tokens.alignment import check_words
from slm.tokens.interleave import WORD_BY_WORD, unweave, weave

RATE, HOP = 16_000, 320
TONES = {"A": 400, "B": 700, "C": 1150, "D": 1800, "E": 2700, "X": 3900}
VOCABULARY = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, **{letter: 5 + i for i, letter in enumerate(TONES)}}


def speak(text: str, seed: int = 0, lead_s: float = 0.1, tail_s: float = 0.1):
    """(wave, start and end of every word in seconds, label of every sample): short gaps in words, long ones between."""
    chance = np.random.default_rng(seed)
    parts, labels, times, clock = [], [], [], 0.0

    def add(seconds: float, label: int, hz: float = 0.0) -> None:
        nonlocal clock
        time = np.arange(int(seconds * RATE)) / RATE
        parts.append(0.3 * np.sin(2 * np.pi * hz * time) * np.minimum(1, 200 * np.minimum(time, time[::-1])))
        labels.append(np.full(len(time), label))
        clock += len(time) / RATE

    add(lead_s, VOCABULARY["<pad>"])
    for number, word in enumerate(text.split()):
        if number:
            add(chance.uniform(0.1, 0.16), VOCABULARY["|"])
        start = clock
        for letter in word:
            if clock > start:
                add(0.03, VOCABULARY["<pad>"])
            add(chance.uniform(0.06, 0.12), VOCABULARY.get(letter, 3), TONES[letter])
        times.append((start, clock))
    add(tail_s, VOCABULARY["<pad>"])
    wave = np.concatenate(parts) + 0.003 * chance.standard_normal(sum(map(len, parts)))
    return wave.astype(np.float32), times, np.concatenate(labels)


def random_text(chance) -> str:
    return " ".join("".join(chance.choice(list(TONES), chance.integers(1, 5))) for _ in range(chance.integers(1, 5)))


def make_config(norm: str, kind: type[PretrainedConfig] = Wav2Vec2Config) -> PretrainedConfig:
    return kind(
        vocab_size=len(VOCABULARY), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        conv_dim=(48, 48), conv_kernel=(160, 8), conv_stride=(80, 4), num_feat_extract_layers=2,
        feat_extract_norm=norm, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, pad_token_id=0,
        do_stable_layer_norm=norm == "layer", hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0,
        feat_proj_dropout=0.0, final_dropout=0.0, layerdrop=0.0, apply_spec_augment=False,
    )  # fmt: skip


def save(folder, model) -> str:
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)


def train(norm: str) -> Wav2Vec2ForCTC:
    """Taught frame by frame: the tones' times are known, so it needs seconds and no CTC loss."""
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(make_config(norm)).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    extractor, chance = Wav2Vec2FeatureExtractor(), np.random.default_rng(0)
    for step in range(120):
        wave, _, labels = speak(random_text(chance), seed=1000 + step, lead_s=0.3, tail_s=0.3)
        inputs = extractor(wave, sampling_rate=RATE, return_tensors="pt").input_values
        logits = model(inputs).logits[0]
        middles = np.arange(len(logits)) * HOP + HOP // 2
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels[middles]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("ctc"), train("layer"))


@pytest.fixture(scope="module")
def aligner(model_folder) -> CtcAligner:
    return CtcAligner.load(CtcConfig(model=model_folder, device="cpu"))


def close(words, times, tolerance_s: float = 0.04) -> bool:
    found = np.array([(word.start_s, word.end_s) for word in words])
    return found.shape == (len(times), 2) and bool((np.abs(found - np.array(times)) <= tolerance_s).all())


@pytest.mark.parametrize(("lead_s", "tail_s"), [(0.0, 0.0), (0.1, 0.1), (1.2, 0.0), (0.0, 1.5), (0.8, 0.8)])
def test_words_are_found_where_they_are_spoken(aligner, lead_s, tail_s):
    texts = ["ABC", "AA BEE CAB", "DEAD BEAD A X CABX"]
    spoken = [speak(text, seed, lead_s, tail_s) for seed, text in enumerate(texts)]
    for text, (wave, times, _), found in zip(
        texts, spoken, aligner.align([wave for wave, _, _ in spoken], texts), strict=True
    ):
        assert not found.fault and [word.text for word in found.words] == text.split()
        assert close(found.words, times), (found.words, times)
        check_words(found.words, seconds=len(wave) / RATE)
        assert all(confidence > 0.5 for confidence in found.confidences)


def test_batches_change_nothing(aligner, model_folder):
    chance = np.random.default_rng(5)
    texts = [random_text(chance) for _ in range(7)]
    waves = [speak(text, seed, tail_s=0.1 * seed)[0] for seed, text in enumerate(texts)]
    small = CtcAligner.load(CtcConfig(model=model_folder, device="cpu", batch_seconds=4.0))
    together, in_parts = aligner.align(waves, texts), small.align(waves, texts)
    alone = [aligner.align([wave], [text])[0] for wave, text in zip(waves, texts, strict=True)]
    assert [found.words for found in together] == [found.words for found in alone]
    assert [found.words for found in in_parts] == [found.words for found in alone]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a.confidences, b.confidences, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "model", "norm"),
    [
        (HubertConfig, HubertForCTC, "layer"),
        (WavLMConfig, WavLMForCTC, "layer"),
        (SEWConfig, SEWForCTC, "layer"),  # hears padding though its norm does not
        (Wav2Vec2Config, Wav2Vec2ForCTC, "group"),  # hears padding
    ],
)
def test_other_models_give_a_wave_the_same_in_any_batch(tmp_path, kind, model, norm):
    torch.manual_seed(3)
    folder = save(tmp_path, model(make_config(norm, kind)))
    aligner = CtcAligner.load(CtcConfig(model=folder, device="cpu"))
    waves, texts = [speak("ABC", 1)[0], speak("BEAD A CAB", 2)[0]], ["ABC", "BEAD A CAB"]
    alone = [aligner.align([wave], [text])[0] for wave, text in zip(waves, texts, strict=True)]
    together = aligner.align(waves, texts)
    assert [found.words for found in together] == [found.words for found in alone]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a.confidences, b.confidences, rtol=1e-5)


def test_an_unknown_word_is_where_nothing_else_explains_the_sound(aligner):
    spoken = "AB XXX CD EE"
    wave, times, _ = speak(spoken, 4, lead_s=0.5, tail_s=0.5)
    (found,) = aligner.align([wave], ["AB 42 CD EE"])
    assert close(found.words, times, 0.08), (found.words, times)
    assert found.confidences[1] is None and all(c > 0.5 for c in np.delete(found.confidences, 1))
    (found,) = aligner.align([wave], ["42 XXX CD 17"])
    assert close(found.words, times, 0.08), (found.words, times)


def test_case_accents_and_marks(aligner):
    wave, times, _ = speak("AB DEAD CE", 5)
    (found,) = aligner.align([wave], ["— “Áb”, déàd … çé! —"])
    words = {word.text: word for word in found.words}
    assert " ".join(word.text for word in found.words) == "— “Áb”, déàd … çé! —"
    assert close([words["“Áb”,"], words["déàd"], words["çé!"]], times)
    lengths = [word.end_s - word.start_s for word in found.words]
    assert [length == 0 for length in lengths] == [True, False, False, True, False, True]
    assert found.confidences[0] is None and found.confidences[3] is None
    check_words(found.words, seconds=len(wave) / RATE)


def test_spelling():
    spelling = Spelling.of({"<pad>": 0, "|": 1, "a": 2, "b": 3, "s": 4, "'": 5, "É": 6}, frozenset({0, 1}))
    assert spelling.labels("aB") == [2, 3]
    assert spelling.labels("b’a,") == [3, 5, 2]
    assert spelling.labels("ß") == [4, 4]
    assert spelling.labels("àé") == [2, 6]
    assert spelling.labels("3xa日本") == [STAR, 2, STAR]
    assert spelling.labels("—") == spelling.labels("|") == []


def test_an_utterance_that_can_not_be_aligned_leaves_the_others_alone(aligner):
    wave, times, _ = speak("ABC", 6)
    waves = [wave, wave[:1600], wave, wave, wave[:50]]
    good, short, empty, marks, click = aligner.align(waves, ["ABC", "ABCABC", "", "— !", "A"])
    assert not good.fault and close(good.words, times)
    assert short.fault == "3 frames are too few for 6 characters" and short.words == ()
    assert empty.fault == "no word" and click.fault == "0 frames are too few for 1 characters"
    assert "nothing in the text" in marks.fault
    assert aligner.align([], []) == []


def test_the_wrong_text_has_little_confidence(model_folder):
    aligner = CtcAligner.load(CtcConfig(model=model_folder, device="cpu", min_confidence=0.4))
    wave = speak("ABC CAB", 7)[0]
    right, wrong = aligner.align([wave, wave], ["ABC CAB", "DEED EDED"])
    assert not right.fault and right.confidence > 0.7
    assert "below 0.4" in wrong.fault and wrong.confidence < 0.4 and len(wrong.words) == 2


def test_aligned_words_weave(aligner):
    text = "DEAD BEAD — A CAB"
    wave, _, _ = speak("DEAD BEAD A CAB", 8, lead_s=0.5)
    (found,) = aligner.align([wave], [text])
    units = (np.arange(len(wave) // HOP) // 3).tolist()
    woven = weave(found.words, units, RATE / HOP, WORD_BY_WORD, repeats="removed", key="u")
    assert unweave(woven) == (text, sorted(set(units)))


def test_bad_waves_and_counts(aligner):
    with pytest.raises(DataError, match="2 waves but 1 texts"):
        aligner.align([np.zeros(9, np.float32)] * 2, ["A"])
    with pytest.raises(DataError, match="NaN") as failure:
        aligner.align([np.zeros(900, np.float32), np.full(900, np.nan, np.float32)], ["A", "A"])
    assert failure.value.where == "utterance 1"


def test_models_that_can_not_align(tmp_path, model_folder):
    def load(folder, device="cpu"):
        return CtcAligner.load(CtcConfig(model=str(folder), device=device))

    with pytest.raises(CheckpointError, match="no CTC model") as failure:
        load(tmp_path / "nowhere")
    assert "feature extractor" in failure.value.mend
    for name in ("headless", "broken", "slow"):
        (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match=r"missing: lm_head\.bias"):
        load(save(tmp_path / "headless", Wav2Vec2Model(make_config("layer"))))
    model = Wav2Vec2ForCTC(make_config("layer"))
    model.lm_head.bias.data[:] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        load(save(tmp_path / "broken", model)).align([speak("A")[0]], ["A"])
    Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(save(tmp_path / "slow", model))
    with pytest.raises(CheckpointError, match="8000 Hz"):
        load(tmp_path / "slow")
    with pytest.raises(ConfigError, match="abacus"):
        load(model_folder, "abacus")
    with pytest.raises(ConfigError, match="no GPU"):
        load(model_folder, "cuda:99")


def test_a_vocabulary_without_letters_and_a_model_without_ears(aligner, model_folder):
    model, extractor = aligner._model, aligner._extractor
    with pytest.raises(CheckpointError, match="no letters"):
        CtcAligner(
            model, extractor, {"<pad>": 0, "|": 4, "1": 5}, "|", [0], CtcConfig(model=model_folder, device="cpu")
        )

    class Spectral(torch.nn.Module):
        main_input_name = "input_features"
        config = model.config

    with pytest.raises(CheckpointError, match="Spectral does not hear waves"):
        CtcAligner(Spectral(), extractor, VOCABULARY, "|", [0], CtcConfig(model=model_folder, device="cpu"))
