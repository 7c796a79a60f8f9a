"""A user who is heard by codes and by vectors: one of each for every 80 ms, whatever resampling does to the last."""

from typing import Any

import numpy as np
import pytest
import torch

from wavalign_ext.data.prepare import hear
from wavalign_ext.speech.layout import load_layout
from wavalign_ext.speech.waveform import AudioError


class Encoder:
    name, sample_rate, size = "whisper", 16000, 5120

    def frames(self, samples: int) -> int:
        return -(-samples // 1280)

    def encode(self, wave: np.ndarray) -> torch.Tensor:
        return torch.arange(self.frames(len(wave)))[:, None].float()

    def fingerprint(self) -> str:
        return "ears"


class Codec:
    sample_rate, codebook_size, more = 24000, 16384, 0

    def encode(self, wave: np.ndarray) -> list[int]:
        return list(range(7, 7 + -(-len(wave) // 1920) + self.more))


@pytest.fixture
def ears(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(hear, "open_encoder", lambda *_: Encoder())
    monkeypatch.setattr(hear, "load_codec", lambda *_: Codec())
    facts = {"type": "whisper", "path": "none"}
    spec = hear.encoder_spec(load_layout("kimi_audio"), facts, {"type": "kimi_audio", "path": "none"})
    assert spec == {"encoder": facts, "most": 1500, "codec": {"type": "kimi_audio", "path": "none"}}
    return hear.Ears(spec)


@pytest.mark.parametrize(("more", "wanted"), [(0, 13), (1, 13), (-1, 12)])
def test_there_are_as_many_vectors_as_codes(ears: Any, more: int, wanted: int) -> None:
    ears.codec.more = more
    codes = ears.encode(np.zeros(16000, np.float32))
    assert ears.codebook_size == 16384 and codes == list(range(7, 7 + wanted))
    assert ears.heard[:, 0].tolist() == list(range(wanted))


def test_a_codec_of_another_rate_is_refused(ears: Any) -> None:
    ears.codec.more = 5
    with pytest.raises(AudioError, match="18 codes for 13 vectors"):
        ears.encode(np.zeros(16000, np.float32))
