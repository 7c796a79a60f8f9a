"""GLM-4-Voice's speech tokenizer and decoder, from a folder of the user's: its code and its weights."""

import importlib
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wavalign_ext.checkpoints.strict_loading import Weights, check, load_strictly, same_random_state
from wavalign_ext.speech.codecs.base import register_codec
from wavalign_ext.speech.codecs.imports import missing_packages, names_in

TOKENIZER_RATE = 16000  # Hz; what the tokenizer hears
LONGEST_S = 30  # what its Whisper encoder takes at once

CODE, TOKENIZER, DECODER = "GLM-4-Voice", "glm-4-voice-tokenizer", "glm-4-voice-decoder"  # what path holds
MATCHA = f"{CODE}/third_party/Matcha-TTS"
ENCODER = "model.encoder."  # before the names in a file that holds a whole Whisper


class Glm4Voice:
    """12.5 codes per second out of 16384; hears 16 kHz, speaks 22.05 kHz, which is its ``sample_rate``.

    Args:
        path: folder of ``GLM-4-Voice`` (a checkout with its submodules), ``glm-4-voice-tokenizer`` and
            ``glm-4-voice-decoder`` (weights). Nothing is downloaded.
        decoder: false where nothing will be decoded, as in ``wavalign prepare``: its folder may be missing then.
        device: where both run: auto, cpu, cuda or cuda:N (:mod:`wavalign_ext.speech.devices`).

    Raises:
        ValueError: a folder lacks a file. Weights are read at the first use, which raises it for wrong ones.
        ImportError: packages that the decoder's code imports are missing; all are named.
    """

    name = "glm4_voice"
    version = 2  # 1 computed with random weights under transformers 5
    sample_rate, frame_rate, codebook_size = 22050, 12.5, 16384

    def __init__(self, path: str | Path, decoder: bool = True, device: str = "cpu") -> None:
        self.path, self.can_decode, self.device = Path(path), decoder, torch.device(device)
        checkout = f"check out THUDM/{CODE} with its submodules there"
        code = ["modeling_whisper.py", "configuration_whisper.py"]
        self._need(f"{CODE}/speech_tokenizer", code, checkout)
        self._need(TOKENIZER, ["config.json", "preprocessor_config.json"], f"download THUDM/{TOKENIZER} to there")
        if decoder:
            self._need_decoder(checkout)

    def _need_decoder(self, checkout: str) -> None:
        self._need(CODE, ["flow_inference.py", "cosyvoice"], checkout)
        self._need(MATCHA, ["matcha"], checkout)
        self._need(DECODER, ["config.yaml", "flow.pt", "hift.pt"], f"download THUDM/{DECODER} to there")
        built = names_in((self.path / DECODER / "config.yaml").read_text(encoding="utf-8"))
        self._need_packages([self.path / CODE, self.path / MATCHA], ["flow_inference", *built])

    def _need_packages(self, roots: Sequence[Path], starts: Sequence[str]) -> None:
        missing = missing_packages(roots, starts)
        if missing:
            raise ImportError(
                f"codec {self.name!r} cannot decode: {', '.join(missing)} are not installed, its code imports them: "
                f"pip install {' '.join(missing)}"
            )

    def _need(self, folder: str, names: Sequence[str], remedy: str) -> None:
        for name in names:
            if not (self.path / folder / name).exists():
                raise ValueError(f"codec {self.name!r}: path={str(self.path)!r} has no {folder}/{name}: {remedy}")

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
            raise ValueError(f"codec {self.name!r} was loaded with decoder=False: leave that out to decode")
        if not len(codes):
            return np.zeros(0, dtype=np.float32)
        wrong = next((code for code in codes if not 0 <= code < self.codebook_size), None)
        if wrong is not None:
            raise ValueError(f"code {wrong} is out of range: {self.name} has codes 0 to {self.codebook_size - 1}")
        self._speaker  # noqa: B018  (loaded before inference mode, in which its weights would be others)
        on_gpu = self.device.type == "cuda"
        with torch.random.fork_rng([self.device] if on_gpu else []), torch.inference_mode():
            torch.default_generator.manual_seed(0)  # torch.manual_seed would seed every GPU
            if on_gpu:
                with torch.cuda.device(self.device):
                    torch.cuda.manual_seed(0)
            wave = self._speak(torch.tensor([list(codes)], device=self.device))
        return wave.reshape(-1).float().cpu().numpy()

    def _speak(self, codes: torch.Tensor) -> torch.Tensor:
        """Samples of codes (1, C), any shape."""
        return self._speaker.offline_inference(codes)

    @cached_property
    def _encoder(self) -> tuple[Any, Any]:
        """(WhisperVQEncoder, feature extractor), loaded as the checkout's ``load_quantize_encoder`` does it.

        Its class may not see ``from_pretrained``: what that does after loading writes over the weights.
        """
        from transformers import WhisperFeatureExtractor

        folder = self.path / TOKENIZER
        extractor = WhisperFeatureExtractor.from_pretrained(folder, local_files_only=True)
        kind = self._module("speech_tokenizer.configuration_whisper").WhisperVQConfig
        config = kind.from_pretrained(folder, local_files_only=True)
        weights: Any = Weights.of(folder)
        if any(name.startswith(ENCODER) for name in weights):
            config.quantize_encoder_only = True
            weights = {name: weights[ENCODER + name] for name in _used(weights, config.quantize_position)}
        with same_random_state():
            model = self._module("speech_tokenizer.modeling_whisper").WhisperVQEncoder(config)
        load_strictly(model, weights, f"codec {self.name!r}: {str(folder)!r}")
        return model.eval().to(self.device), extractor

    @cached_property
    def _speaker(self) -> Any:
        """The checkout's AudioDecoder, compared with its files.

        It keeps an unused language model of 132 million parameters, and leaves dropout on; neither stays so.
        """
        config, *files = (self.path / DECODER / name for name in ("config.yaml", "flow.pt", "hift.pt"))
        weights = [Weights([file]) for file in files]
        decoder = self._module("flow_inference").AudioDecoder
        with same_random_state():  # config.yaml seeds all of them
            try:
                speaker = decoder(str(config), *map(str, files), device=str(self.device))
            except RuntimeError as error:
                raise ValueError(
                    f"codec {self.name!r}: its decoder does not load: {' '.join(str(error).split())}"
                ) from error
        speaker.scratch_configs = {}
        for model, saved, file in zip((speaker.flow, speaker.hift), weights, files, strict=True):
            check(model.eval(), saved, f"codec {self.name!r}: {str(file)!r}")
        return speaker

    def _module(self, name: str) -> Any:
        """A module of the checkout, which is no package: its folders go on the path, as its own demo does it."""
        code = self.path / CODE
        for folder in (code, code / "cosyvoice", code / "third_party" / "Matcha-TTS"):
            if str(folder) not in sys.path:
                sys.path.append(str(folder))
        return importlib.import_module(name)


register_codec("glm4_voice")(Glm4Voice)  # no decorator: its type would be lost to who builds on it


def _used(names: Any, layers: int) -> list[str]:
    """What the encoder takes of a whole Whisper's tensors: no final norm, and no layer behind the quantizer."""
    inner = [name.removeprefix(ENCODER) for name in names if name.startswith(ENCODER)]
    behind = (name.startswith("layers.") and int(name.split(".")[1]) >= layers for name in inner)
    return [n for n, is_behind in zip(inner, behind, strict=True) if not is_behind and not n.startswith("layer_norm")]
