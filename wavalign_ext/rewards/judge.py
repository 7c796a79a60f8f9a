"""The judge: a model behind an OpenAI-compatible chat endpoint listens to an answer and rates it."""

import asyncio
import base64
import hashlib
import inspect
import io
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from wavalign_ext.rewards.answer import SpokenAnswer
from wavalign_ext.rewards.chat import ChatClient, Endpoint
from wavalign_ext.rewards.judge_prompt import HIGH, LOW, RUBRICS, chat_messages, parse_score
from wavalign_ext.rewards.registry import Scale, TermFailed, on_scale, register_term

logger = logging.getLogger(__name__)


@register_term("judge")
class Judge:
    """A judge's score for one aspect: holistic, semantic or acoustic.

    ``endpoint`` holds the arguments of :class:`Endpoint`. ``rubric`` replaces the aspect's own text. ``audio`` false
    sends texts only, for a judge that cannot listen. ``request`` adds fields to the request, and takes one out with
    null (``{temperature: null}``). ``cache`` is a folder: the same content is not asked twice.

    Notes on each answer, summed over its judges: ``judge_retries``, ``judge_cache_hits``, ``judge_failures``.
    """

    def __init__(
        self,
        scale: Scale,
        aspect: str,
        model: str,
        endpoint: Mapping[str, Any],
        audio: bool = True,
        rubric: str | None = None,
        request: Mapping[str, Any] | None = None,
        cache: str | None = None,
    ) -> None:
        if aspect not in RUBRICS:
            raise ValueError(f"judge aspect={aspect!r} is not known: one of {', '.join(RUBRICS)}")
        if not audio and aspect != "semantic":
            raise ValueError(f"judge aspect={aspect!r} with audio=False is not allowed: only 'semantic' goes by texts")
        self.scale, self.aspect, self.audio = scale, aspect, audio
        self.rubric = rubric or RUBRICS[aspect]
        self.request = {"model": model, "temperature": 0, **(request or {})}
        self.chat = ChatClient(_endpoint(endpoint))
        self.cache = ScoreCache(Path(cache)) if cache else None

    async def score(self, answer: SpokenAnswer) -> float:
        """Ask, or remember. An answer that lacks what the aspect is about gets the bottom without being asked for.

        Raises:
            TermFailed: no reply within the deadline and retries, or none with a score from 1 to 5.
        """
        _count(answer)
        heard = self.audio and answer.has_speech
        if not heard and not (answer.text and self.aspect == "semantic"):
            return self.scale[0]
        body = await asyncio.to_thread(self._body, answer)
        key = hashlib.sha256(body).hexdigest()
        score = await asyncio.to_thread(self.cache.get, key) if self.cache else None
        if score is not None:
            _count(answer, cache_hits=1)
        else:
            score = await self._ask(answer, body)
            if self.cache:
                await asyncio.to_thread(self.cache.put, key, score)
        return on_scale((score - LOW) / (HIGH - LOW), self.scale)

    async def _ask(self, answer: SpokenAnswer, body: bytes) -> float:
        reply = await self.chat.ask(body)
        score = None if reply.text is None else parse_score(reply.text)
        _count(answer, retries=reply.retries, failures=int(score is None))
        if reply.text is None:
            raise TermFailed(f"judge: {reply.failure}")
        if score is None:
            raise TermFailed(f"judge: no score from {LOW:g} to {HIGH:g} in its reply {reply.text[:100]!r}")
        return score

    def _body(self, answer: SpokenAnswer) -> bytes:
        """The request in JSON: all that the score depends on, and thereby the cache's key."""
        texts = {"question": answer.question_text, "reference": answer.reference_text, "answer": answer.text}
        recordings = {}
        if self.audio and answer.question_wave is not None:
            recordings["question"] = _wav(answer.question_wave, answer.question_rate)
        if self.audio and answer.wave is not None and answer.has_speech:
            recordings["answer"] = _wav(answer.wave, answer.sample_rate)
        messages = chat_messages(self.rubric, texts, recordings, answer.has_speech)
        fields = {name: value for name, value in self.request.items() if value is not None}
        return json.dumps({**fields, "messages": messages}, sort_keys=True).encode()


class ScoreCache:
    """Scores on disk, one small file per content, shared by processes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def get(self, key: str) -> float | None:
        """The score kept for ``key``; None when there is none that can be read."""
        try:
            score = float(json.loads(self._path(key).read_text())["score"])
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return score if LOW <= score <= HIGH else None

    def put(self, key: str, score: float) -> None:
        """Keep ``score``. A disk that refuses costs a later request, not this score: it is logged only."""
        path = self._path(key)
        try:
            path.parent.mkdir(exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as file:
                json.dump({"score": score}, file)
            os.replace(file.name, path)  # readers see the whole file or none
        except OSError as error:
            logger.warning("judge cache: %s cannot be written: %s", path, error)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def _endpoint(spec: Any) -> Endpoint:
    if not isinstance(spec, Mapping):
        raise ValueError(
            f"judge endpoint of type {type(spec).__name__} is not allowed: a mapping, {{url: https://host/v1}}"
        )
    known = list(inspect.signature(Endpoint).parameters)
    unknown = [name for name in spec if name not in known]
    if unknown:
        raise ValueError(f"judge endpoint.{unknown[0]} is not known: one of {', '.join(known)}")
    if "url" not in spec:
        raise ValueError("judge endpoint.url is missing: the API's root, as in https://host/v1")
    return Endpoint(**spec)


def _wav(wave: np.ndarray, rate: int) -> str:
    file = io.BytesIO()
    soundfile.write(file, np.clip(wave, -1, 1), rate, format="WAV", subtype="PCM_16")
    return base64.b64encode(file.getvalue()).decode()


def _count(answer: SpokenAnswer, **more: int) -> None:
    for name in ("retries", "cache_hits", "failures"):
        key = f"judge_{name}"
        answer.notes[key] = float(answer.notes.get(key, 0.0)) + more.get(name, 0)
