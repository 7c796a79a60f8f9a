"""Kimi-Audio's codec: codes by GLM-4-Voice's tokenizer, speech chunk by chunk through the checkout's detokenizer.

The detokenizer here is small and of our own, with the names, arguments and chunks of kimia_infer/models/detokenizer and
of ``KimiAudio.detokenize_audio`` (kimia_infer/api/kimia.py) in MoonshotAI/Kimi-Audio.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import glm4_checkout
import numpy as np
import pytest

from wavalign_ext.speech.codecs import load_codec

DETOKENIZER = """
import torch


class PrefixStreamingFlowMatchingDetokenizer:
    @classmethod
    def from_pretrained(cls, vocoder_config, vocoder_ckpt, fm_config, fm_ckpt, device, look_ahead_tokens=0,
                        max_prompt_chunk=2, max_kv_cache_tokens=900, use_cfg=False):
        files = [vocoder_config, vocoder_ckpt, fm_config, fm_ckpt]
        assert [file.split("/", file.count("/") - 1)[-1] for file in files] == [
            "vocoder/config.json", "vocoder/model.pt", "audio_detokenizer/config.yaml", "audio_detokenizer/model.pt"]
        assert (look_ahead_tokens, max_prompt_chunk, use_cfg) == (12, 10, False)
        made = cls()
        made.seen = ["left over"]
        return made

    def clear_states(self):
        self.seen = []

    def detokenize_streaming(self, semantic_token, is_final=False, upsample_factor=1):
        assert semantic_token.shape[0] == 1 and upsample_factor == 4 and "left over" not in self.seen
        self.seen.append((semantic_token.shape[1], is_final))
        noise = torch.randn(1, semantic_token.shape[1])
        return torch.cat([semantic_token.float() / 16384, noise * 0.01], -1)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    glm4_checkout.build(tmp_path)
    code = tmp_path / "Kimi-Audio" / "kimia_infer" / "models" / "detokenizer"
    code.mkdir(parents=True)
    for package in (code.parent.parent, code.parent):
        (package / "__init__.py").write_text("")
    (code / "__init__.py").write_text(DETOKENIZER)
    for name in (
        "audio_detokenizer/config.yaml",
        "audio_detokenizer/model.pt",
        "vocoder/config.json",
        "vocoder/model.pt",
    ):
        file = tmp_path / "Kimi-Audio-7B-Instruct" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    mine = ("kimia_infer", "speech_tokenizer", "flow_inference")
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in mine]:
        del sys.modules[name]


def test_speech_comes_in_the_published_chunks_and_is_the_same_again(folder: Path) -> None:
    codec = load_codec({"type": "kimi_audio", "path": str(folder)})
    assert (codec.sample_rate, codec.frame_rate, codec.codebook_size) == (24000, 12.5, 16384)
    wave = codec.decode(range(70))
    assert wave.dtype == np.float32 and len(wave) == 140
    assert codec._speaker.seen == [(30, False), (30, False), (10, True)]  # type: ignore[attr-defined]
    assert np.array_equal(wave, codec.decode(range(70)))
    assert np.allclose(wave[:30], np.arange(30) / 16384)
    codec.decode(range(30))
    assert codec._speaker.seen == [(30, True)]  # type: ignore[attr-defined]
    assert len(codec.decode([])) == 0


def test_it_hears_as_glm_4_voice(folder: Path) -> None:
    t = np.arange(24000) / 24000
    wave = (0.2 * np.sin(2 * np.pi * 220 * t)).astype(np.float32)
    codes = load_codec({"type": "kimi_audio", "path": str(folder)}).encode(wave)
    assert len(codes) == 13 and all(0 <= code < 16384 for code in codes)


def test_what_is_missing_is_named(folder: Path) -> None:
    (folder / "Kimi-Audio-7B-Instruct/vocoder/model.pt").unlink()
    with pytest.raises(ValueError, match=r"codec 'kimi_audio': .* has no Kimi-Audio-7B-Instruct/vocoder/model.pt"):
        load_codec({"type": "kimi_audio", "path": str(folder)})
    load_codec({"type": "kimi_audio", "path": str(folder), "decoder": False})
    code = folder / "Kimi-Audio/kimia_infer/models/detokenizer/__init__.py"
    (folder / "Kimi-Audio-7B-Instruct/vocoder/model.pt").write_text("")
    code.write_text("import flash_attn_of_nobody\n" + DETOKENIZER)
    with pytest.raises(ImportError, match="flash_attn_of_nobody"):
        load_codec({"type": "kimi_audio", "path": str(folder)})
