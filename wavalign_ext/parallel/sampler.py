"""How vLLM's sampler draws a pair: the text as ever, then the audio, each with settings of its own.

The model's logits are those of the text, with the audio's as an attribute; a tensor without it is sampled as ever. A
request's ``extra_args`` may have ``audio_temperature``, ``audio_top_k`` and ``audio_top_p``; what is absent is as the
text's. Both streams draw from the request's own generator, one after the other, so a seed fixes both.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.logits_processor import LogitsProcessor

from wavalign_ext.parallel.pairs import Pairs

GREEDY = 1e-5  # a lower temperature is none, to vLLM
SETTINGS = {"audio_temperature": "temperature", "audio_top_k": "top_k", "audio_top_p": "top_p"}
MODES = ("raw_logprobs", "processed_logprobs")


class AudioSettings(LogitsProcessor):
    """Follows vLLM's batch to know each row's audio settings; changes no logits."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.rows: dict[int, Mapping[str, float]] = {}

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raises ValueError: a setting that is not known or out of range, or penalties, which know one stream only."""
        for name, value in (sampling_params.extra_args or {}).items():
            if name.startswith("audio_") and name not in SETTINGS:
                raise ValueError(f"{name}={value!r} is not known: give {', '.join(SETTINGS)}")
        settings = {name: (sampling_params.extra_args or {}).get(name) for name in SETTINGS}
        least = {"audio_temperature": 0, "audio_top_k": 1, "audio_top_p": 1e-6}
        most = {"audio_temperature": 100, "audio_top_k": 2**31, "audio_top_p": 1}
        for name, value in settings.items():
            if value is not None and not least[name] <= value <= most[name]:
                raise ValueError(f"{name}={value!r} is not allowed: give {least[name]} to {most[name]}")
        check_request(sampling_params)

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: Any) -> None:
        """Requests leave, come and move, in this order."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self.rows.pop(row, None)
        for row, params, *_ in batch_update.added:
            given = params.extra_args or {}
            self.rows[row] = {SETTINGS[name]: given[name] for name in SETTINGS if given.get(name) is not None}
        for source, target, direction in batch_update.moved:
            moved, replaced = self.rows.pop(source, None), self.rows.pop(target, None)
            if moved is not None:
                self.rows[target] = moved
            if replaced is not None and direction.name == "SWAP":
                self.rows[source] = replaced

    def apply(self, logits: Tensor) -> Tensor:
        return logits


def check_request(params: Any) -> None:
    """Raises ValueError: sampling settings that look at ids, of which there are two here."""
    neutral = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_tokens": 0}
    neutral |= {"logit_bias": None, "allowed_token_ids": None, "bad_words": None, "prompt_logprobs": None}
    for name, value in neutral.items():
        given = getattr(params, name, value)
        if given and given != value:
            raise ValueError(f"{name}={given!r} acts on one stream of ids and a pair has two: leave it at {value!r}")


def sample_pairs(original: Callable[..., Any], sampler: Any, logits: Any, metadata: Any, *more: Any) -> Any:
    """vLLM's ``Sampler.forward`` for logits with ``audio`` beside them: the drawn pairs, a log-prob for each stream.

    Log-probs have two columns: the pair's id with the text's, then the audio index with its own.
    """
    audio_logits, pairs, mode = logits.audio, logits.pairs, (more[1:2] or (None,))[0] or sampler.logprobs_mode
    if mode not in MODES:
        raise ValueError(f"logprobs_mode={mode!r} is not known of pairs: use {' or '.join(MODES)}")
    drawn = original(sampler, logits, _within(metadata, logits.shape[1]), *more)
    raw = sampler.compute_logprobs(audio_logits)
    settings = _within(_of_audio(metadata, len(audio_logits)), audio_logits.shape[1])
    audio, processed = sampler.sample(audio_logits.to(torch.float32, copy=True), settings)
    ids, audio = _pair(pairs, drawn.sampled_token_ids.squeeze(-1), audio.long())
    logprobs = drawn.logprobs_tensors
    if logprobs is not None:
        own = (raw if processed is None else processed).gather(-1, audio[:, None])
        logprobs = LogprobsTensors(
            torch.stack([ids, audio], 1).to(torch.int32),
            torch.cat([logprobs.logprobs[:, :1], own], 1),
            logprobs.selected_token_ranks,
        )
    return SamplerOutput(sampled_token_ids=ids.to(torch.int32)[:, None], logprobs_tensors=logprobs)


def _pair(pairs: Pairs, text: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
    """Pair ids, and the audio indices; where the audio ends, the text is over: one stop id for each end token."""
    ended = torch.isin(audio, torch.tensor(pairs.audio_end, device=audio.device))
    return pairs.encode(torch.where(ended, pairs.over, text.long()), audio), audio


def _within(metadata: Any, columns: int) -> Any:
    """``top_k`` no larger than a stream's ids: where it is off, vLLM has the whole vocabulary's size for it."""
    return metadata if metadata.top_k is None else replace(metadata, top_k=metadata.top_k.clamp(max=columns))


def _of_audio(metadata: Any, count: int) -> Any:
    """The settings of ``count`` rows with those of the audio in their place."""
    own = next((one for one in metadata.logitsprocs.all if isinstance(one, AudioSettings)), None)
    rows = {row: settings for row, settings in own.rows.items() if settings} if own is not None else {}
    if not rows:
        return metadata
    changed: dict[str, Any] = {}
    device = metadata.frequency_penalties.device
    neutral = {"temperature": (0.0, torch.float32), "top_k": (2**31 - 1, torch.int32), "top_p": (1.0, torch.float32)}
    for name, (value, dtype) in neutral.items():
        wanted = {row: settings[name] for row, settings in rows.items() if name in settings}
        if wanted:
            present = getattr(metadata, name)
            column = torch.full((count,), value, dtype=dtype, device=device) if present is None else present.clone()
            for row, setting in wanted.items():
                column[row] = setting
            changed[name] = column
    if "temperature" in changed:
        random = changed["temperature"] >= GREEDY
        changed |= {"all_random": bool(random.all()), "all_greedy": not bool(random.any())}
    return replace(metadata, **changed)
