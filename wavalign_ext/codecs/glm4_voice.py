"""GLM-4-Voice's speech tokenizer and decoder, from a folder of the user's: its code and its weights."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wavalign_ext.codec import register_codec

TOKENIZER_RATE = 16000  # Hz; what the tokenizer hears
LONGEST_S = 30  # what its Whisper encoder takes at once


CODE, TOKENIZER, DECODER = "GLM-4-Voice", "glm-4-voice-tokenizer", "glm-4-voice-decoder"  # what path holds


@register_codec("glm4_voice")
class Glm4Voice:
    """12.5 codes per second out of 16384; hears 16 kHz, speaks 22.05 kHz, which is its ``sample_rate``.

    Args:
        path: folder of ``GLM-4-Voice`` (a checkout with its submodules), ``glm-4-voice-tokenizer`` and
            ``glm-4-voice-decoder`` (weights). Nothing is downloaded.
        decoder: false where nothing will be decoded, as in ``wavalign prepare``: its folder may be missing then.
        device: where both run; by default cuda where there is one.

    Raises:
        ValueError: a folder lacks a file.
        ImportError: the decoder's package hyperpyyaml is missing.
    """

    sample_rate, frame_rate, codebook_size = 22050, 12.5, 16384

    def __init__(self, path: str | Path, decoder: bool = True, device: str | None = None) -> None:
        self.path, self.can_decode = Path(path), decoder
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        checkout = f"check out THUDM/{CODE} with its submodules there"
        self._need(CODE, ["speech_tokenizer/modeling_whisper.py"], checkout)
        self._need(TOKENIZER, ["config.json", "preprocessor_config.json"], f"download THUDM/{TOKENIZER} to there")
        if decoder:
            self._need(CODE, ["flow_inference.py", "cosyvoice", "third_party/Matcha-TTS/matcha"], checkout)
            self._need(DECODER, ["config.yaml", "flow.pt", "hift.pt"], f"download THUDM/{DECODER} to there")
            if importlib.util.find_spec("hyperpyyaml") is None:
                raise ImportError("codec 'glm4_voice' needs hyperpyyaml to decode: pip install hyperpyyaml")

    def _need(self, folder: str, names: Sequence[str], remedy: str) -> None:
        for name in names:
            if not (self.path / folder / name).exists():
                raise ValueError(f"codec 'glm4_voice': path={str(self.path)!r} has no {folder}/{name}: {remedy}")

    def encode(self, wave: np.ndarray) -> list[int]:
        """One code per 80 ms."""
        import soxr

        if not len(wave):
            return []
        heard = soxr.resample(np.asarray(wave, dtype=np.float32), self.sample_rate, TOKENIZER_RATE)
        step = LONGEST_S * TOKENIZER_RATE
        return [code for start in range(0, len(heard), step) for code in self._encode(heard[start : start + step])]

    @torch.inference_mode()
    def _encode(self, heard: np.ndarray) -> list[int]:
        model, extractor = self._encoder
        downsampling = model.conv1.stride[0] * model.conv2.stride[0]  # features per encoder frame
        pooling = model.config.pooling_kernel_size or 1  # encoder frames per code
        features = extractor(
            heard,
            sampling_rate=TOKENIZER_RATE,
            return_attention_mask=True,
            return_tensors="pt",
            padding="longest",
            pad_to_multiple_of=downsampling * pooling * extractor.hop_length,
        ).to(self.device)
        codes = model(**features).quantized_token_ids[0]
        return codes[features.attention_mask[0, :: downsampling * pooling].bool()].tolist()

    def decode(self, codes: Sequence[int]) -> np.ndarray:
        """Equal codes give equal audio: the flow's noise is seeded, and the random state left as it was."""
        if not self.can_decode:
            raise ValueError("codec 'glm4_voice' was loaded with decoder=False: leave that out to decode")
        if not len(codes):
            return np.zeros(0, dtype=np.float32)
        wrong = next((code for code in codes if not 0 <= code < self.codebook_size), None)
        if wrong is not None:
            raise ValueError(f"code {wrong} is out of range: glm4_voice has codes 0 to {self.codebook_size - 1}")
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(0)
            wave = self._speaker.offline_inference(torch.tensor([list(codes)], device=self.device))
        return wave.reshape(-1).float().cpu().numpy()

    @cached_property
    def _encoder(self) -> tuple[Any, Any]:
        from transformers import WhisperFeatureExtractor

        model, weights = self._module("speech_tokenizer.modeling_whisper").WhisperVQEncoder, self.path / TOKENIZER
        extractor = WhisperFeatureExtractor.from_pretrained(weights, local_files_only=True)
        return model.from_pretrained(weights, local_files_only=True).eval().to(self.device), extractor

    @cached_property
    def _speaker(self) -> Any:
        files = (str(self.path / DECODER / name) for name in ("config.yaml", "flow.pt", "hift.pt"))
        return self._module("flow_inference").AudioDecoder(*files, device=self.device)

    def _module(self, name: str) -> Any:
        """A module of the checkout, which is no package: its folders go on the path, as its own demo does it."""
        code = self.path / CODE
        for folder in (code, code / "cosyvoice", code / "third_party" / "Matcha-TTS"):
            if str(folder) not in sys.path:
                sys.path.append(str(folder))
        return importlib.import_module(name)
