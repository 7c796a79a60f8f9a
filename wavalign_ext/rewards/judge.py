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
from wavalign_ext.rewards.chat import ChatClient, Endpoint, Reply
from wavalign_ext.rewards.judge_prompt import RESPONSE_FORMAT, RUBRICS, chat_messages
from wavalign_ext.rewards.judge_reply import HIGH, LOW, read_score
from wavalign_ext.rewards.registry import Scale, TermFailed, on_scale, register_term

logger = logging.getLogger(__name__)

REPLIES = ("auto", "schema", "tags")
REFUSES_SCHEMA = {400, 404, 415, 422}  # what endpoints answer to a response_format that they do not know


@register_term("judge")
class Judge:
    """A judge's score for one aspect: holistic, semantic or acoustic.

    ``endpoint`` holds the arguments of :class:`Endpoint`. ``rubric`` replaces the aspect's own text. ``audio`` false
    sends texts only, for a judge that cannot listen. ``reply`` is how it is asked to answer: ``schema`` holds it to a
    JSON schema, ``tags`` asks for ``<score>N</score>``, ``auto`` tries the schema until the endpoint refuses it and
    takes tags instead. ``request`` adds fields to the request, and takes one out with null (``{temperature: null}``).
    ``cache`` is a folder: the same content is not asked twice.

    Notes on each answer, summed over its judges: ``judge_retries``, ``judge_cache_hits``, ``judge_failures`` (no
    score), ``judge_unanswered`` (no score because nothing came, or a refusal such as HTTP 401).
    """

    def __init__(
        self,
        scale: Scale,
        aspect: str,
        model: str,
        endpoint: Mapping[str, Any],
        audio: bool = True,
        rubric: str | None = None,
        reply: str = "auto",
        request: Mapping[str, Any] | None = None,
        cache: str | None = None,
    ) -> None:
        if aspect not in RUBRICS:
            raise ValueError(f"judge aspect={aspect!r} is not known: one of {', '.join(RUBRICS)}")
        if not audio and aspect != "semantic":
            raise ValueError(f"judge aspect={aspect!r} with audio=False is not allowed: only 'semantic' goes by texts")
        if reply not in REPLIES:
            raise ValueError(f"judge reply={reply!r} is not known: one of {', '.join(REPLIES)}")
        self.scale, self.aspect, self.audio, self.reply = scale, aspect, audio, reply
        self.rubric = rubric or RUBRICS[aspect]
        self.request = {"model": model, "temperature": 0, **(request or {})}
        self.chat = ChatClient(_endpoint(endpoint))
        self.cache = ScoreCache(Path(cache)) if cache else None
        self._form = "tags" if reply == "tags" else "schema"
        self._warned = False

    async def score(self, answer: SpokenAnswer) -> float:
        """Ask, or remember. An answer that lacks what the aspect is about gets the bottom without being asked for.

        Raises:
            TermFailed: no reply within the deadline and retries, or none with a score from 1 to 5.
        """
        _count(answer)
        if not self.asks_about(answer):
            return self.scale[0]
        exchange = await asyncio.to_thread(self._exchange, answer)
        key = await asyncio.to_thread(self._key, exchange)
        score = await asyncio.to_thread(self.cache.get, key) if self.cache else None
        if score is not None:
            _count(answer, cache_hits=1)
        else:
            score = await self._ask(answer, exchange)
            if self.cache:
                await asyncio.to_thread(self.cache.put, key, score)
        return on_scale((score - LOW) / (HIGH - LOW), self.scale)

    def asks_about(self, answer: SpokenAnswer) -> bool:
        """Whether the answer has what the aspect is about, so that it costs a request."""
        return bool((self.audio and answer.has_speech) or (answer.text and self.aspect == "semantic"))

    async def _ask(self, answer: SpokenAnswer, exchange: dict[str, Any]) -> float:
        reply = await self._reply(exchange)
        reading = None if reply.text is None else read_score(reply.text)
        score = reading.score if reading else None
        _count(answer, retries=reply.retries, failures=int(score is None), unanswered=int(reading is None))
        if reading is None:
            if not self._warned:
                self._warned = True
                where = f"the judge {self.request.get('model')} at {self.chat.endpoint.url}"
                logger.warning("%s gave no answer: %s; more of this is counted, not said", where, reply.failure)
            raise TermFailed(f"judge: {reply.failure}")
        if score is None:
            raise TermFailed(f"judge: {reading.reason}")
        return score

    async def _reply(self, exchange: dict[str, Any]) -> Reply:
        """The endpoint's reply; where it is the schema that it refuses, its reply to the same request without one."""
        form, clock = self._form, asyncio.get_running_loop().time
        ends = clock() + self.chat.endpoint.deadline_s
        reply = await self.chat.ask(await asyncio.to_thread(self._body, exchange, form))
        if form == "tags" or self.reply != "auto" or reply.status not in REFUSES_SCHEMA or clock() >= ends:
            return reply
        again = await self.chat.ask(await asyncio.to_thread(self._body, exchange, "tags"), ends - clock())
        again.retries += reply.retries
        if again.text is not None and self._form == "schema":
            self._form = "tags"
            logger.info("judge: %s takes no schema (%s): asked for tags", self.chat.endpoint.url, reply.failure)
        return again

    def _exchange(self, answer: SpokenAnswer) -> dict[str, Any]:
        """What is rated, as arguments of :func:`chat_messages`."""
        texts = {"question": answer.question_text, "reference": answer.reference_text, "answer": answer.text}
        recordings = {}
        if self.audio and answer.question_wave is not None:
            recordings["question"] = _wav(answer.question_wave, answer.question_rate)
        if self.audio and answer.wave is not None and answer.has_speech:
            recordings["answer"] = _wav(answer.wave, answer.sample_rate)
        return {"texts": texts, "recordings": recordings, "has_speech": answer.has_speech}

    def _key(self, exchange: dict[str, Any]) -> str:
        """Of all that the score depends on. What ``auto`` has found out is no part of it: it is so in every run."""
        return hashlib.sha256(self._body(exchange, "tags") + self.reply.encode()).hexdigest()

    def _body(self, exchange: dict[str, Any], form: str) -> bytes:
        """The request in JSON."""
        held = {"response_format": RESPONSE_FORMAT} if form == "schema" else {}
        fields = {name: value for name, value in {**held, **self.request}.items() if value is not None}
        messages = chat_messages(self.rubric, form, **exchange)
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
    for name in ("retries", "cache_hits", "failures", "unanswered"):
        key = f"judge_{name}"
        answer.notes[key] = float(answer.notes.get(key, 0.0)) + more.get(name, 0)
