"""Qwen2-Audio: converted, what transformers' own class computes; exported, bit for bit what was published."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import soundfile
import torch
from formula_weights import speechlike
from published_again import assert_bit_equal
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    WhisperFeatureExtractor,
)

from wavalign_ext.checkpoints import ears
from wavalign_ext.checkpoints.convert import convert
from wavalign_ext.checkpoints.plan import ConvertError
from wavalign_ext.data.prepare.command import main as prepare
from wavalign_ext.pocket.tokens import build_tokenizer
from wavalign_ext.speech.chat import prompt_ids
from wavalign_ext.speech.encoders import load_encoder
from wavalign_ext.speech.heard import load_features
from wavalign_ext.speech.layout import load_layout
from wavalign_ext.speech.token_names import TokenRange

SIZE = 1280
AUDIO = dict(d_model=SIZE, encoder_layers=1, encoder_attention_heads=20, encoder_ffn_dim=64, num_mel_bins=128)
TEXT = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen2_audio")
    named = replace(
        load_layout("qwen2_audio"), user_speech=TokenRange("<|AUDIO|>", 1), speech=TokenRange("<|x_{}|>", 1),
        begin="<|audio_bos|>", end="<|audio_eos|>",
    )  # fmt: skip
    tokenizer = build_tokenizer(["you are a helpful assistant what is that sound glass"], named)
    tokenizer.save_pretrained(folder)
    text = TEXT | dict(model_type="qwen2", vocab_size=len(tokenizer), rope_theta=5e5)
    token = tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    config = Qwen2AudioConfig(audio_config=AUDIO, text_config=text, audio_token_index=token)
    torch.manual_seed(0)
    model = Qwen2AudioForConditionalGeneration(config)
    with torch.no_grad():
        model.language_model.lm_head.weight.mul_(20)
        model.multi_modal_projector.linear.weight.mul_(20)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def converted(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "model"
    assert convert("qwen2-audio", published, target).layout == "qwen2_audio"
    return target


def test_it_answers_as_the_published_class_does(published: Path, converted: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.float32).eval()
    theirs = Qwen2AudioForConditionalGeneration.from_pretrained(published, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(converted)
    layout = load_layout("qwen2_audio").resolve(tokenizer, model.config.vocab_size)
    assert model.config.audio_projector == "linear" and model.config.rope_parameters["rope_theta"] == 5e5
    wave = speechlike(26)[:16161]
    heard = load_encoder({"type": "qwen2_audio", "path": converted / ears.FOLDER, "dtype": "float32"}).encode(wave)
    said = [{"role": "user", "content": f"{layout.user_speech_prompt([0] * len(heard))}what is that"}]
    ids = torch.tensor([prompt_ids(tokenizer, said)])
    extract = WhisperFeatureExtractor(feature_size=128)
    mels = extract(wave, sampling_rate=16000, return_attention_mask=True, return_tensors="pt", padding="max_length")
    with torch.no_grad():
        found = model(ids, audio_features=heard).logits
        wanted = theirs(
            input_ids=ids, input_features=mels.input_features, feature_attention_mask=mels.attention_mask,
            attention_mask=torch.ones_like(ids),
        ).logits  # fmt: skip
        other = model(ids, audio_features=heard.flip(0)).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (other - found).abs().max() > 1e-2


def test_published_again_it_is_bit_for_bit_what_it_was(published: Path, converted: Path, tmp_path: Path) -> None:
    assert_bit_equal(published, converted, tmp_path / "trained", torch.float32)


def test_dialogues_become_rows_without_speech(converted: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "q.wav", speechlike(26)[:16161], 16000)
    asked = {"messages": [{"role": "user", "content": "<|audio|>what is that"}], "audios": ["q.wav"]}
    lines = [asked | {"target_text": "glass"}, asked | {"target_text": "that glass", "target_audio": "not there.wav"}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    encoder = f"{{type: qwen2_audio, path: {converted / ears.FOLDER}}}"
    options = [
        "--layout",
        "qwen2_audio",
        "--tokenizer",
        str(converted),
        "--codec",
        "{type: none}",
        "--encoder",
        encoder,
    ]
    assert (
        prepare([str(tmp_path / "d.jsonl"), "--out", str(tmp_path / "o"), *options, "--val-share", "0", "--jobs", "1"])
        == 0
    )
    rows = pyarrow.parquet.read_table(tmp_path / "o" / "train.parquet").to_pylist()
    assert [(row["target_text"], row["target_speech"]) for row in rows] == [("glass", []), ("that glass", [])]
    (name,) = rows[0]["heard_features"]
    assert load_features([name], str(tmp_path / "o"))[0].shape == (25, SIZE)
    assert rows[0]["prompt"][-1]["content"].count("<|AUDIO|>") == 25


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2"}, "type 'qwen2', not 'qwen2_audio'"),
        ({"audio_config": {"d_model": 512}}, "audio_config.d_model=512, not 1280: give Qwen2-Audio 7B"),
    ],
)
def test_another_model_is_refused(published: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    config = json.loads((published / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ConvertError, match=message):
        convert("qwen2-audio", tmp_path, tmp_path / "new")
