"""Asking an OpenAI-compatible chat endpoint: retries with back-off, a deadline, bounded concurrency, bounded replies.

The key is read from the environment for each request and taken out of every text that leaves this file.
"""

import asyncio
import json
import os
import random
import re
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import aiohttp

# A server that answers with these may do better in a moment; other 4xx will not.
PASSING = {408, 409, 425, 429}
LONGEST_BACKOFF_S = 30.0
SHOWN = 200  # characters of a server's refusal that a reason quotes
MOST_BYTES = 2**21  # of a reply's body, as sent and as inflated: a chat completion with long thoughts has a tenth of it


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where to ask, and how patiently. Times in seconds.

    ``url`` is the API's root, such as ``https://host/v1``. ``api_key_env`` names the environment variable with the key;
    None sends none. ``concurrency`` bounds the requests under way per term and process (verl has
    ``reward.num_workers`` of these). ``deadline_s`` is for one answer, with its wait for a free place and all retries;
    ``request_s`` is for one request. Before retry n it waits ``backoff_s``·2ⁿ with jitter, and what Retry-After asks.
    """

    url: str
    api_key_env: str | None = None
    concurrency: int = 16
    deadline_s: float = 120.0
    request_s: float = 60.0
    retries: int = 5
    backoff_s: float = 0.5

    def __post_init__(self) -> None:
        if str(self.url) == "???":  # Hydra's mark of a value that must be given
            raise ValueError("judge endpoint.url is not given: the API's root, as in https://host/v1")
        parts = urlsplit(str(self.url))
        if "@" in str(self.url) or parts.query:  # not shown
            raise ValueError("judge endpoint.url has credentials or a query in it: put the key into api_key_env")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"judge endpoint.url={self.url!r} is not allowed: the API's root, as in https://host/v1")
        _check_number("concurrency", self.concurrency, at_least=1, whole=True)
        _check_number("retries", self.retries, at_least=0, whole=True)
        for name in ("deadline_s", "request_s", "backoff_s"):
            _check_number(name, getattr(self, name), at_least=0.001)
        self.key()

    def key(self) -> str | None:
        """The key, or None. Raises ValueError: the variable is unset, or holds what no HTTP header may."""
        if self.api_key_env is None:
            return None
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", str(self.api_key_env)):
            # Not shown: it may be the key itself, put there by mistake.
            raise ValueError("judge endpoint.api_key_env must be the NAME of an environment variable, in capitals")
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ValueError(f"judge endpoint.api_key_env={self.api_key_env!r} is not set: export it before the run")
        if not (key.isascii() and key.isprintable()):
            raise ValueError(f"the key in {self.api_key_env} has characters that a header may not have: export it anew")
        return key

    def redacted(self, text: str) -> str:
        """``text`` without the key."""
        key = self.key()
        return text.replace(key, "***") if key else text


@dataclass
class Reply:
    """What came of one question: ``text``, or None and ``failure``, the reason in words. Neither holds the key.

    ``status`` is the last reply's HTTP status, None where nothing came. ``stage`` is what was going on last.
    """

    text: str | None = None
    failure: str = ""
    status: int | None = None
    retries: int = 0
    stage: str = ""


@dataclass(frozen=True)
class _Attempt:
    text: str | None = None
    failure: str = ""
    again: bool = False
    wait_s: float = 0.0
    status: int | None = None


class ChatClient:
    """Sends chat requests to one endpoint, from one event loop at a time."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._url = endpoint.url.rstrip("/") + "/chat/completions"
        self._open: tuple[aiohttp.ClientSession, asyncio.Semaphore] | None = None
        self._users = 0
        self._random = random.Random()  # its own: a run's seed stays as it was

    async def ask(self, body: bytes, within_s: float | None = None) -> Reply:
        """Post ``body`` (a chat request in JSON) until there is an answer, no hope, or no time. Never raises for it.

        ``within_s`` is the time for it, by default and at most the endpoint's ``deadline_s``.
        """
        reply, clock = Reply(), asyncio.get_running_loop().time
        within_s = min(self.endpoint.deadline_s, within_s or self.endpoint.deadline_s)
        async with self._connections() as (session, places):
            ends = clock() + within_s
            try:
                async with asyncio.timeout(within_s):
                    await self._until_answered(session, places, body, reply, ends)
            except TimeoutError:
                last = f"; before: {reply.failure}" if reply.failure else ""
                reply.failure = f"no answer within deadline_s={self.endpoint.deadline_s:g}: {reply.stage}{last}"
        return reply

    async def _until_answered(
        self, session: aiohttp.ClientSession, places: asyncio.Semaphore, body: bytes, reply: Reply, ends: float
    ) -> None:
        """Fills ``reply`` as it goes, so that a deadline leaves what is known so far."""
        clock = asyncio.get_running_loop().time
        while True:
            queued, reply.stage = clock(), f"no free place (concurrency={self.endpoint.concurrency})"
            async with places:
                waited = clock() - queued
                late = f", sent after {waited:.1f} s without a free place," if waited > 0.1 else ""
                reply.stage = f"request {reply.retries + 1}{late} was under way"
                attempt = await self._attempt(session, body)
            reply.text, reply.failure, reply.status = attempt.text, attempt.failure, attempt.status
            if attempt.text is not None or not attempt.again:
                return
            if reply.retries == self.endpoint.retries:
                reply.failure += f" (retries={self.endpoint.retries} used up)"
                return
            backoff = min(self.endpoint.backoff_s * 2**reply.retries, LONGEST_BACKOFF_S)
            wait = attempt.wait_s + backoff * self._random.uniform(0.5, 1.0)
            left = ends - clock()
            if wait >= left:
                reply.failure += f" (the wait before another try, {wait:.1f} s, is beyond deadline_s)"
                return
            reply.stage = "waiting before another try"
            await asyncio.sleep(wait)
            reply.retries += 1

    async def _attempt(self, session: aiohttp.ClientSession, body: bytes) -> _Attempt:
        status = None
        try:
            async with session.post(self._url, data=body, headers=self._headers(), allow_redirects=False) as response:
                status, asked = response.status, response.headers.get("Retry-After", "")
                try:
                    raw = await _bounded(response)
                except _TooMuch as error:
                    response.close()  # what is still to come is not read
                    return _Attempt(failure=f"HTTP {status}, {error}", again=status >= 500, status=status)
        except (aiohttp.ClientError, TimeoutError, OSError, zlib.error) as error:
            failure = f"{type(error).__name__} {error}".strip()
            return _Attempt(failure=self._quoted(failure), again=True, status=status)
        if status == 200:
            return self._completion(raw)
        again = status in PASSING or status >= 500
        failure = f"HTTP {status} {self._quoted(_error_words(raw))}".strip()
        return _Attempt(failure=failure, again=again, wait_s=_seconds(asked), status=status)

    def _completion(self, raw: bytes) -> _Attempt:
        """The text of a chat completion, or what stands in its place."""
        try:
            choice = json.loads(raw)["choices"][0]
            message = dict(choice["message"])
        except (ValueError, LookupError, TypeError, RecursionError):
            error = self._quoted(_error_words(raw))
            return _Attempt(failure=f"the reply is not a chat completion: {error}", again=True, status=200)
        text = _text(message.get("content"))
        if text:
            return _Attempt(text=self.endpoint.redacted(text), status=200)
        if message.get("refusal"):
            return _Attempt(failure=f"the judge refuses: {self._quoted(str(message['refusal']))}", status=200)
        why = self._quoted(str(choice.get("finish_reason")))
        return _Attempt(failure=f"the judge's reply is empty (finish_reason: {why})", status=200)

    def _quoted(self, words: str) -> str:
        """``words`` on one line, without the key, and cut short after that: no piece of the key is left over."""
        words = " ".join(self.endpoint.redacted(words).split())
        return words if len(words) <= SHOWN else f"{words[:SHOWN]}…"

    def _headers(self) -> dict[str, str]:
        key = self.endpoint.key()
        # Nothing packed is asked for, and what comes packed all the same is inflated within bounds, by _bounded.
        plain = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        return plain | ({"Authorization": f"Bearer {key}"} if key else {})

    @asynccontextmanager
    async def _connections(self) -> AsyncIterator[tuple[aiohttp.ClientSession, asyncio.Semaphore]]:
        """One session while any answer is under way: connections are shared, and none is left open behind the last."""
        if self._open is None:
            session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self.endpoint.request_s),
                auto_decompress=False,
                connector=aiohttp.TCPConnector(limit=0),  # the semaphore bounds them, and waits outside request_s
            )
            self._open = session, asyncio.Semaphore(self.endpoint.concurrency)
        shared = self._open
        self._users += 1
        try:
            yield shared
        finally:
            self._users -= 1
            if not self._users:
                self._open = None
                await shared[0].close()


class _TooMuch(Exception):
    """A body that is not read to its end, or not at all."""


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    """A reply's body, inflated. Raises :class:`_TooMuch`: longer than ``MOST_BYTES``, or packed in another way."""
    inflate = _inflater(response.headers.get("Content-Encoding", "identity").strip().lower())
    found = bytearray()
    async for piece in response.content.iter_any():
        found += inflate(piece, MOST_BYTES + 1 - len(found))
        if len(found) > MOST_BYTES:
            raise _TooMuch(f"its body is longer than {MOST_BYTES >> 20} MiB")
    return bytes(found)


def _inflater(encoding: str) -> Callable[[bytes, int], bytes]:
    """A function (piece, most bytes to return) for one body."""
    if encoding in ("", "identity"):
        return lambda piece, most: piece[:most]
    if encoding in ("gzip", "x-gzip", "deflate"):
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress  # finds out itself which of the two it is
    raise _TooMuch("its body has a Content-Encoding that was not asked for")  # not shown: it is the server's word


def _error_words(raw: bytes) -> str:
    """What an error's body says: OpenAI's ``error.message``, FastAPI's ``detail``, else the body itself."""
    text = raw.decode("utf-8", "replace")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return text
    for name in ("error", "detail", "message"):
        found = body.get(name) if isinstance(body, dict) else None
        if isinstance(found, dict):
            found = found.get("message") or json.dumps(found)
        if found:
            return str(found)
    return text


def _text(content: Any) -> str:
    """A message's text, which some servers send in parts."""
    if isinstance(content, list):
        content = " ".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content.strip() if isinstance(content, str) else ""


def _seconds(retry_after: str) -> float:
    """Seconds that a Retry-After header asks for, given as a number or as a date; 0 for anything else."""
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", retry_after):
        return float(retry_after)
    try:
        until = parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _check_number(name: str, value: Any, at_least: float, whole: bool = False) -> None:
    kinds = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kinds) or not at_least <= value < float("inf"):
        kind = "whole number" if whole else "number"
        raise ValueError(f"judge endpoint.{name}={value!r} is not allowed: a {kind} ≥ {at_least}")
