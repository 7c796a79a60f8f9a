"""Kimi-Audio's speech: GLM-4-Voice's tokenizer, and a detokenizer of its own, from a folder of the user's."""

import importlib
import sys
from functools import cached_property
from typing import Any

import torch

from wavalign_ext.checkpoints.strict_loading import same_random_state
from wavalign_ext.speech.codecs.base import register_codec
from wavalign_ext.speech.codecs.glm4_voice import Glm4Voice

CODE, WEIGHTS, DETOKENIZER = "Kimi-Audio", "Kimi-Audio-7B-Instruct", "kimia_infer.models.detokenizer"
CHUNK, UPSAMPLE, AHEAD, PROMPTS = 30, 4, 12, 10  # of KimiAudio.detokenize_audio and get_audio_detokenizer
FILES = ("audio_detokenizer/config.yaml", "audio_detokenizer/model.pt", "vocoder/config.json", "vocoder/model.pt")


@register_codec("kimi_audio")
class KimiAudio(Glm4Voice):
    """12.5 codes per second out of 16384; hears 16 kHz, speaks 24 kHz, which is its ``sample_rate``.

    As MoonshotAI/Kimi-Audio decodes (kimia_infer/api/kimia.py): flow matching in chunks of 30 codes, then BigVGAN, in
    bfloat16. Its code imports flash_attn, so it decodes on a GPU only.

    Args:
        path: folder of ``GLM-4-Voice`` (its checkout), ``glm-4-voice-tokenizer``, ``Kimi-Audio`` (its checkout) and
            ``Kimi-Audio-7B-Instruct``, of which ``audio_detokenizer`` and ``vocoder`` are read. Nothing is downloaded.
        decoder: false where nothing will be decoded, as in ``wavalign prepare``: the last two may be missing then.
        device: as :class:`Glm4Voice`.

    Raises:
        ValueError: a folder lacks a file.
        ImportError: packages that the detokenizer's code imports are missing; all are named.
    """

    name, version, sample_rate = "kimi_audio", 1, 24000

    def _need_decoder(self, checkout: str) -> None:
        self._need(CODE, ["kimia_infer/models/detokenizer"], f"check out MoonshotAI/{CODE} there")
        self._need(WEIGHTS, FILES, f"download moonshotai/{WEIGHTS} to there")
        self._need_packages([self.path / CODE], [DETOKENIZER])

    @cached_property
    def _speaker(self) -> Any:
        """The checkout's PrefixStreamingFlowMatchingDetokenizer, as its ``get_audio_detokenizer`` makes it."""
        if str(self.path / CODE) not in sys.path:
            sys.path.append(str(self.path / CODE))
        kind = importlib.import_module(DETOKENIZER).PrefixStreamingFlowMatchingDetokenizer
        names = ("fm_config", "fm_ckpt", "vocoder_config", "vocoder_ckpt")
        files = {name: str(self.path / WEIGHTS / file) for name, file in zip(names, FILES, strict=True)}
        settings = {"max_prompt_chunk": PROMPTS, "use_cfg": False, "look_ahead_tokens": AHEAD}
        with same_random_state():
            return kind.from_pretrained(**files, **settings, device=self.device)

    def _speak(self, codes: torch.Tensor) -> torch.Tensor:
        speaker = self._speaker
        speaker.clear_states()
        chunks = codes.split(CHUNK, -1)
        spoken = [
            speaker.detokenize_streaming(chunk, is_final=number == len(chunks) - 1, upsample_factor=UPSAMPLE)
            for number, chunk in enumerate(chunks)
        ]
        return torch.cat([part.reshape(-1) for part in spoken])
