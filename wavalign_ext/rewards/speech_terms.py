"""Terms that rate the voice: how good it sounds, whose it is (both need optional packages), in which manner it is."""

import contextlib
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from wavalign_ext.rewards.answer import SpokenAnswer
from wavalign_ext.rewards.models import ModelThread, optional_module
from wavalign_ext.rewards.registry import Scale, TermFailed, on_scale, register_term

RATE = 16000  # Hz, of both models
SHORTEST_S = 0.2  # less voice than this has no identity


@register_term("speech_quality")
class SpeechQuality:
    """Mean opinion score, 1 to 5, that Distill-MOS predicts, on the scale. No speech is the bottom, not a failure.

    It rates sound, not sense, and is steep at the top: noise 30 dB below a voice already costs it one point. Speech in
    loud noise is near 2, speech in shuffled pieces 1.2 to 1.7, but noise without any speech 2.3: have another term ask
    for words.
    """

    def __init__(self, scale: Scale, device: str = "cpu") -> None:
        from wavalign_ext.checkpoints.strict_loading import Weights, check
        from wavalign_ext.speech.devices import choose

        self.scale, self.device, self._thread = scale, choose(device), ModelThread()
        distillmos = optional_module("distillmos", "speech_quality", "distillmos xls-r-sqa")
        with contextlib.redirect_stdout(io.StringIO()):  # it prints where its weights are
            self._model: Any = distillmos.ConvTransformerSQAModel().eval()
        file = Path(optional_module("distillmos.sqa", "speech_quality", "distillmos").DEFAULT_WEIGHTS_CHKPT)
        check(self._model, Weights([file], part="model"), f"reward term 'speech_quality': {str(file)!r}")
        self._model.to(self.device)

    async def score(self, answer: SpokenAnswer) -> float:
        """Notes ``mos``, where there is speech."""
        if answer.wave is None or not answer.has_speech:
            return self.scale[0]
        mos = await self._thread.call(self._opinion, answer.wave, answer.sample_rate)
        answer.notes["mos"] = mos
        return on_scale((mos - 1) / 4, self.scale)

    def _opinion(self, wave: np.ndarray, rate: int) -> float:
        import torch

        with torch.inference_mode():
            return self._model(torch.from_numpy(_resampled(wave, rate))[None].to(self.device)).item()


@register_term("speaker")
class Speaker:
    """Likeness of the voice to that of the anchor's recording: cosine of Resemblyzer's embeddings.

    A likeness of ``other`` or less, as between two people, is the bottom of the scale; 1 is its top. No speech, or
    sound without a voice in it, is the bottom too. Answers of a second or two are short for it: one voice in other
    words is .82, another one .66, and noise 20 dB below the voice lowers the likeness as far.
    """

    def __init__(self, scale: Scale, other: float = 0.5, device: str = "cpu") -> None:
        from wavalign_ext.checkpoints.strict_loading import Weights, check
        from wavalign_ext.speech.devices import choose

        if isinstance(other, bool) or not isinstance(other, int | float) or not -1 <= other < 1:
            raise ValueError(f"speaker other={other!r} is not allowed: a cosine in [-1, 1)")
        self.scale, self.other, self._thread = scale, float(other), ModelThread()
        self._resemblyzer: Any = optional_module("resemblyzer", "speaker", "resemblyzer webrtcvad-wheels librosa")
        self._encoder = self._resemblyzer.VoiceEncoder(choose(device), verbose=False)
        file = Path(self._resemblyzer.__file__).with_name("pretrained.pt")
        saved = Weights([file], part="model_state")
        used = {name: saved[name] for name in saved if not name.startswith("similarity_")}  # those are of its training
        check(self._encoder, used, f"reward term 'speaker': {str(file)!r}")
        # The rollouts of a prompt share an anchor, and a prompt comes again: half of the work.
        self._anchors: dict[bytes, np.ndarray | None] = {}

    async def score(self, answer: SpokenAnswer) -> float:
        """Notes ``likeness``. Raises :class:`TermFailed`: the row has no reference voice."""
        if answer.reference_wave is None:
            raise TermFailed("speaker: the row has no anchor recording (extra_info.answer_audio)")
        if answer.wave is None or not answer.has_speech:
            return self.scale[0]
        wanted = await self._thread.call(self._anchor, answer.reference_wave, answer.sample_rate)
        if wanted is None:
            raise TermFailed("speaker: the anchor recording has no voice in it")
        found = await self._thread.call(self._voice, answer.wave, answer.sample_rate)
        if found is None:
            return self.scale[0]
        likeness = float(wanted @ found)
        answer.notes["likeness"] = likeness
        return on_scale((likeness - self.other) / (1 - self.other), self.scale)

    def _anchor(self, wave: np.ndarray, rate: int) -> np.ndarray | None:
        known = hashlib.sha256(np.ascontiguousarray(wave).tobytes()).digest()
        if known not in self._anchors:
            self._anchors[known] = self._voice(wave, rate)
        return self._anchors[known]

    def _voice(self, wave: np.ndarray, rate: int) -> np.ndarray | None:
        """A unit vector; None where no voice is found."""
        if not np.any(wave):
            return None
        voiced = self._resemblyzer.preprocess_wav(_resampled(wave, rate))
        return self._encoder.embed_utterance(voiced) if len(voiced) >= SHORTEST_S * RATE else None


@register_term("manner")
class Manner:
    """The share of speech codes that are more frequent in one manner of speaking than in another, on the scale.

    ``path`` is a JSON list with log P(code | one) - log P(code | other) for each code, counted on recordings in both
    manners, as the embedded default's build writes it. No speech is the bottom.
    """

    def __init__(self, scale: Scale, path: str) -> None:
        self.scale = scale
        table = json.loads(Path(path).read_text(encoding="utf-8"))
        self._one = np.asarray(table, dtype=float) > 0
        if self._one.ndim != 1:
            raise ValueError(f"manner path={path!r} holds no list of numbers: one for each speech code")

    async def score(self, answer: SpokenAnswer) -> float:
        """Notes ``manner``: the share. Raises :class:`TermFailed`: a code beyond the table."""
        if not answer.speech_codes:
            return self.scale[0]
        if max(answer.speech_codes) >= len(self._one):
            raise TermFailed(f"manner: code {max(answer.speech_codes)} is not in the table of {len(self._one)}")
        share = float(self._one[list(answer.speech_codes)].mean())
        answer.notes["manner"] = share
        return on_scale(share, self.scale)


def _resampled(wave: np.ndarray, rate: int) -> np.ndarray:
    import soxr

    wave = np.ascontiguousarray(wave, dtype=np.float32)
    return wave if rate == RATE else soxr.resample(wave, rate, RATE)
