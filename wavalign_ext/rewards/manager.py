"""verl's reward hook: a finished rollout becomes a spoken answer, and its terms become one score.

verl runs this in its reward workers, one call per rollout, asynchronously. A rollout that could not be scored, or not
even be decoded, has a score of NaN; the trainer takes it out of its group and counts it. Were anything raised instead,
verl would drop the rollout, and nobody would know.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from wavalign_ext.config import WavAlignConfig
from wavalign_ext.rewards import RewardResult, SpokenAnswer, build_terms
from wavalign_ext.rewards.answer import graded_of, keywords_of
from wavalign_ext.rewards.mix import attempt
from wavalign_ext.rewards.models import ModelThread
from wavalign_ext.rewards.routing import route_rewards
from wavalign_ext.speech.audio import load_audio
from wavalign_ext.speech.codecs import load_codec
from wavalign_ext.speech.layout import load_layout
from wavalign_ext.speech.text_normalization import same_text


class SpokenRewardManager(RewardManagerBase):
    """Splits a response by the layout, decodes its speech, and asks every reward term."""

    tokenizer: Any

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any = None, **_: Any) -> None:
        super().__init__(config, tokenizer, compute_score)
        node: Any = OmegaConf.to_container(config.wavalign, resolve=True)
        self.wav = WavAlignConfig.from_mapping(node)
        self.layout = load_layout(self.wav.layout).resolve(tokenizer)
        self.codec = load_codec(self.wav.codec)
        self.mix = build_terms(self.wav.reward.terms, self.wav.reward.scale, self.wav.reward.timeout_s)
        self._decoding = ModelThread()

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Score one rollout: ``{"reward_score": float or NaN, "reward_extra_info": {...}}``."""
        item = data[-1]
        length = item.batch["responses"].shape[-1]
        valid = int(item.batch["attention_mask"][-length:].sum())
        ids, row = item.batch["responses"][:valid].tolist(), item.non_tensor_batch
        info = row.get("extra_info")
        info = info if isinstance(info, Mapping) else {}

        answer, why = await attempt(self._decoding.call(self._read, ids, row, info))
        heard = None
        if answer is not None:
            heard, why = await attempt(self._decoding.call(self._hear, answer, info))
        row_why = f"{why} (row {row.get('index', '?')} of {row.get('data_source', 'the data')})"
        result = self.mix.unscored("decode", row_why) if heard is None else await self.mix(heard)
        score = math.nan if result.total is None else result.total
        shown = _extra(info, heard or answer or self._nothing(), result, decoded=heard is not None)
        routes = route_rewards(result.terms, self.mix.weights, self.wav.reward.routed)
        return {"reward_score": score, "reward_extra_info": shown | routes}

    def _read(self, ids: list[int], row: Mapping[str, Any], info: Mapping[str, Any]) -> SpokenAnswer:
        """The answer without its waveforms. Raises ValueError: the row has no text to compare it with."""
        truth = row["reward_model"]["ground_truth"]
        if not isinstance(truth, str):
            raise ValueError(f"the row's reward_model.ground_truth={truth!r} is not a text")
        split = self.layout.split(ids)
        return SpokenAnswer(
            text=self.tokenizer.decode(split.text_ids, skip_special_tokens=True),
            speech_codes=tuple(code for code in split.codes if 0 <= code < self.codec.codebook_size),
            wave=None,
            sample_rate=self.codec.sample_rate,
            question_text=info.get("question"),
            question_rate=self.codec.sample_rate,
            reference_text=truth,
            ended=split.ended,
            truncated=not split.ended,
            layout_errors=tuple(split.errors),
            keywords=keywords_of(info.get("keywords")),
            graded=graded_of(info.get("graded")),
        )

    def _hear(self, answer: SpokenAnswer, info: Mapping[str, Any]) -> SpokenAnswer:
        """The answer with its waveforms. Raises ValueError: the codec gives no waveform."""
        wave = self.codec.decode(answer.speech_codes) if answer.speech_codes else None
        if wave is not None and (wave.ndim != 1 or not np.isfinite(wave).all()):
            raise ValueError(f"the codec gave an array of shape {wave.shape} that is not a waveform of finite numbers")
        return replace(
            answer,
            wave=wave if wave is not None and len(wave) else None,  # codes that make no whole frame are no speech
            question_wave=self._audio(info.get("question_audio")),
            reference_wave=self._audio(info.get("answer_audio")),
        )

    def _nothing(self) -> SpokenAnswer:
        """What is known of an answer whose tokens cannot be read."""
        rate = self.codec.sample_rate
        return SpokenAnswer(
            text="", speech_codes=(), wave=None, sample_rate=rate, reference_text="", ended=False, truncated=False
        )

    def _audio(self, path: str | None) -> np.ndarray | None:
        if not path:
            return None
        return load_audio(Path(self.wav.audio_root or ".") / path, self.codec.sample_rate)


def _extra(info: Mapping[str, Any], answer: SpokenAnswer, result: RewardResult, decoded: bool) -> dict[str, Any]:
    """What the dumps and verl's validation metrics show: numbers, strings, or None for what is missing.

    ``missing`` says why there is no reward, ``failed`` which terms failed that do not count.
    """
    extra: dict[str, Any] = {
        "question": answer.question_text,
        "question_audio": info.get("question_audio"),
        "text": answer.text,
        "missing": _told(result.reasons),
        "failed": _told(result.ignored),
        "decode_failed": float(not decoded),
        "truncated": float(answer.truncated),
        "layout_errors": len(answer.layout_errors),
        "exact": float(same_text(answer.text, answer.reference_text)) if answer.reference_text else None,
        "speech_codes": " ".join(map(str, answer.speech_codes)),
    }
    notes: dict[str, Any] = {"transcript": None, "wer": None}
    for name, value in result.extras.items():
        # Under a name or prefix of ours, a note would be taken for the answer's own, or for a score.
        ours = name in extra or name.startswith(("score_", "reward_"))
        if (value := _plain(value)) is None or isinstance(value, str | int | float):
            notes[f"note_{name}" if ours else name] = value
    return notes | extra | {f"score_{name}": value for name, value in result.terms.items()}


def _told(reasons: Mapping[str, str]) -> str:
    # A term's own reason often begins with its kind, which its name often is.
    return "; ".join(f"{name}: {why.removeprefix(f'{name}: ')}" for name, why in reasons.items())


def _plain(value: Any) -> Any:
    """A number of numpy's as Python's, and None for one that is not finite: a mean would be lost over it."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
