"""Whisper and Qwen2-Audio as ears, against transformers' own classes with random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from formula_weights import speechlike
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2Config,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperModel,
)

from wavalign_ext.speech.encoders import load_encoder
from wavalign_ext.speech.encoders.whisper import Qwen2Audio, Whisper


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(0)
    ids = dict(vocab_size=50, pad_token_id=1, bos_token_id=2, eos_token_id=3, decoder_start_token_id=4)
    encoder = dict(num_mel_bins=128, d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32)
    config = WhisperConfig(**ids, **encoder, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=8)
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def qwen2_audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen2_audio")
    torch.manual_seed(0)
    ears = Qwen2AudioEncoderConfig(d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32)
    text = Qwen2Config(
        vocab_size=40, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    config = Qwen2AudioConfig(audio_config=ears, text_config=text, audio_token_index=39)
    Qwen2AudioForConditionalGeneration(config).save_pretrained(folder)
    return folder


@torch.no_grad()
def whispers_own(folder: Path, wave: np.ndarray) -> torch.Tensor:
    """(1500, size): the whole of 30 s, silence included."""
    mel = WhisperFeatureExtractor(feature_size=128)(wave, sampling_rate=16000, return_tensors="pt").input_features
    return WhisperModel.from_pretrained(folder).encoder(mel).last_hidden_state[0]


def test_whisper_hears_what_transformers_does_and_cuts_the_silence_off(whisper: Path) -> None:
    wave = speechlike(2.01)
    heard = load_encoder({"type": "whisper", "path": whisper}).encode(wave)
    assert heard.shape == (101, 16)
    torch.testing.assert_close(heard, whispers_own(whisper, wave)[:101], atol=1e-5, rtol=0)


@pytest.mark.parametrize("samples", [1, 1280, 1281, 480000, 480001])
def test_vectors_are_stacked_and_pieces_of_30_s_joined_as_kimi_audio_does(whisper: Path, samples: int) -> None:
    """kimia_infer/models/tokenizer/whisper_Lv3/whisper.py: of each piece (L - 1) // 1280 + 1 times four are kept."""
    encoder = Whisper(whisper, stack=4)
    wave = speechlike(31)[:samples]
    pieces = [wave[start : start + 480000] for start in range(0, samples, 480000)]
    kept = [whispers_own(whisper, piece)[: 4 * ((len(piece) - 1) // 1280 + 1)] for piece in pieces]
    expected = torch.cat(kept).reshape(-1, 64)
    heard = encoder.encode(wave)
    assert heard.shape == expected.shape == (encoder.frames(samples), encoder.size)
    torch.testing.assert_close(heard, expected, atol=1e-5, rtol=0)


def test_an_encoder_saved_without_its_head_is_the_same_one(whisper: Path, tmp_path: Path) -> None:
    WhisperModel.from_pretrained(whisper).save_pretrained(tmp_path)
    assert Whisper(tmp_path).fingerprint() == Whisper(whisper).fingerprint() != Whisper(whisper, 4).fingerprint()


@pytest.mark.parametrize("samples", [321, 480, 640, 641, 16000, 33333, 480000])
def test_qwen2_audios_vectors_are_what_its_projector_gets(qwen2_audio: Path, samples: int) -> None:
    wave = speechlike(30)[:samples]
    encoder = load_encoder({"type": "qwen2_audio", "path": qwen2_audio})
    model = Qwen2AudioForConditionalGeneration.from_pretrained(qwen2_audio)
    extract = WhisperFeatureExtractor(feature_size=128)
    mel = extract(wave, sampling_rate=16000, return_attention_mask=True, return_tensors="pt")
    given = []
    model.multi_modal_projector.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    frames = encoder.frames(samples)
    with torch.no_grad():  # it compares the count of placeholders with its own
        ids = torch.tensor([[1, *[39] * frames]])
        model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            input_features=mel.input_features,
            feature_attention_mask=mel.attention_mask,
        )
    heard = encoder.encode(wave)
    assert heard.shape == (frames, 16)
    torch.testing.assert_close(heard, given[0][0, :frames], atol=1e-5, rtol=0)


def test_silence_that_fills_up_is_heard_by_whisper_and_not_by_qwen2_audio(whisper: Path, qwen2_audio: Path) -> None:
    """A recording with and without a second of its own silence behind it."""
    wave = speechlike(1)
    longer = np.pad(wave, (0, 16000))
    for encoder, differs in ((Whisper(whisper), False), (Qwen2Audio(qwen2_audio), True)):
        first = encoder.encode(wave)
        off = (encoder.encode(longer)[: len(first) - 1] - first[:-1]).abs().max()
        assert bool(off > 1e-5) is differs


def test_limits_are_refused(whisper: Path, qwen2_audio: Path) -> None:
    with pytest.raises(ValueError, match="too short"):
        Whisper(whisper).frames(0)
    for samples, kind in ((320, "short"), (480001, "long")):
        with pytest.raises(ValueError, match=f"too {kind}: 0.0201 to 30 s are allowed"):
            Qwen2Audio(qwen2_audio).frames(samples)


@pytest.mark.parametrize("stack", [0, 7, True, 2.0])
def test_a_stack_that_does_not_divide_the_positions_is_refused(whisper: Path, stack: int) -> None:
    with pytest.raises(ValueError, match=rf"stack={stack!r} is not allowed: a divisor of 1500"):
        Whisper(whisper, stack=stack)


def test_a_folder_of_another_model_is_refused(whisper: Path, qwen2_audio: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a 'qwen2_audio' model: give one whose config.json says 'whisper'"):
        Whisper(qwen2_audio)
    with pytest.raises(ValueError, match="is a 'whisper' model: give one whose config.json says 'qwen2_audio'"):
        Qwen2Audio(whisper)
    with pytest.raises(ValueError, match="has no config.json"):
        Whisper(tmp_path)
    (tmp_path / "config.json").write_text((whisper / "config.json").read_text())
    with pytest.raises(ValueError, match="has no model.safetensors"):
        Whisper(tmp_path)
