"""verl's reward hook: a finished rollout becomes a spoken answer, and its terms become one score.

verl runs this in its reward workers, one call per rollout, asynchronously. A rollout that could not be scored has a
score of NaN; the trainer takes it out of its group and counts it.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from wavalign_ext.codec import load_audio
from wavalign_ext.codecs import load_codec
from wavalign_ext.config import WavAlignConfig
from wavalign_ext.layout import load_layout
from wavalign_ext.rewards import RewardResult, SpokenAnswer, build_terms
from wavalign_ext.rewards.models import ModelThread
from wavalign_ext.routes import route_rewards
from wavalign_ext.text_normalization import same_text


class SpokenRewardManager(RewardManagerBase):
    """Splits a response by the layout, decodes its speech, and asks every reward term."""

    tokenizer: Any

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any = None, **_: Any) -> None:
        super().__init__(config, tokenizer, compute_score)
        node: Any = OmegaConf.to_container(config.wavalign, resolve=True)
        self.wav = WavAlignConfig.from_mapping(node)
        self.layout = load_layout(self.wav.layout).resolve(tokenizer)
        self.codec = load_codec(self.wav.codec)
        self.mix = build_terms(self.wav.reward.terms, self.wav.reward.scale)
        self._decoding = ModelThread()

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Score one rollout: ``{"reward_score": float or NaN, "reward_extra_info": {...}}``."""
        item = data[-1]
        length = item.batch["responses"].shape[-1]
        valid = int(item.batch["attention_mask"][-length:].sum())
        ids = item.batch["responses"][:valid].tolist()
        answer = await self._decoding.call(self._answer, ids, item.non_tensor_batch)
        result = await self.mix(answer)
        score = math.nan if result.total is None else result.total
        info = item.non_tensor_batch.get("extra_info", {})
        routes = route_rewards(result.terms, self.mix.weights, self.wav.reward.routed)
        return {"reward_score": score, "reward_extra_info": _extra(info, answer, result) | routes}

    def _answer(self, ids: list[int], row: dict[str, Any]) -> SpokenAnswer:
        split = self.layout.split(ids)
        info = row.get("extra_info", {})
        question = self._audio(info.get("question_audio"))
        reference = self._audio(info.get("answer_audio"))
        codes = tuple(code for code in split.codes if 0 <= code < self.codec.codebook_size)
        return SpokenAnswer(
            text=self.tokenizer.decode(split.text_ids, skip_special_tokens=True),
            speech_codes=codes,
            wave=self.codec.decode(codes) if codes else None,
            sample_rate=self.codec.sample_rate,
            question_text=info.get("question"),
            question_wave=question,
            question_rate=self.codec.sample_rate,
            reference_text=row["reward_model"]["ground_truth"],
            reference_wave=reference,
            ended=split.ended,
            truncated=not split.ended,
            layout_errors=tuple(split.errors),
            keywords=_keywords(info.get("keywords")),
        )

    def _audio(self, path: str | None) -> np.ndarray | None:
        if not path:
            return None
        return load_audio(Path(self.wav.audio_root or ".") / path, self.codec.sample_rate)


def _extra(info: dict[str, Any], answer: SpokenAnswer, result: RewardResult) -> dict[str, Any]:
    """What the dumps and verl's validation metrics show: numbers, strings, or None for what is missing."""
    extra: dict[str, Any] = {
        "question": answer.question_text,
        "question_audio": info.get("question_audio"),
        "text": answer.text,
        "transcript": result.extras.get("transcript"),
        "wer": result.extras.get("wer"),
        # A term's own reason often begins with its kind, which its name often is.
        "missing": "; ".join(f"{name}: {why.removeprefix(f'{name}: ')}" for name, why in result.reasons.items()),
        "truncated": float(answer.truncated),
        "layout_errors": len(answer.layout_errors),
        "exact": float(same_text(answer.text, answer.reference_text)),
        "speech_codes": " ".join(map(str, answer.speech_codes)),
    }
    notes = {name: value for name, value in result.extras.items() if isinstance(value, str | int | float)}
    return notes | extra | {f"score_{name}": value for name, value in result.terms.items()}


def _keywords(column: Any) -> tuple[str, ...]:
    """A row's list, as parquet and verl's queue hand it over: a list, an array, or None where other rows have some."""
    return () if column is None else tuple(str(word) for word in column)
