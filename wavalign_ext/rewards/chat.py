"""Asking an OpenAI-compatible chat endpoint: retries with back-off, a deadline, bounded concurrency.

The key is read from the environment for each request and taken out of every text that leaves this file.
"""

import asyncio
import json
import os
import random
import re
import time
from collections.abc import AsyncIterator
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
    """What came of one question: ``text``, or None and ``failure``, the reason in words. Neither holds the key."""

    text: str | None = None
    failure: str = ""
    retries: int = 0


@dataclass(frozen=True)
class _Attempt:
    text: str | None = None
    failure: str = ""
    again: bool = False
    wait_s: float = 0.0


class ChatClient:
    """Sends chat requests to one endpoint, from one event loop at a time."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._url = endpoint.url.rstrip("/") + "/chat/completions"
        self._open: tuple[aiohttp.ClientSession, asyncio.Semaphore] | None = None
        self._users = 0
        self._random = random.Random()  # its own: a run's seed stays as it was

    async def ask(self, body: bytes) -> Reply:
        """Post ``body`` (a chat request in JSON) until there is an answer, no hope, or no time. Never raises for it."""
        reply = Reply()
        async with self._connections() as (session, places):
            ends = time.monotonic() + self.endpoint.deadline_s
            try:
                async with asyncio.timeout(self.endpoint.deadline_s):
                    await self._until_answered(session, places, body, reply, ends)
            except TimeoutError:
                last = reply.failure or "no free place"
                reply.failure = f"no answer within deadline_s={self.endpoint.deadline_s}; last: {last}"
        return reply

    async def _until_answered(
        self, session: aiohttp.ClientSession, places: asyncio.Semaphore, body: bytes, reply: Reply, ends: float
    ) -> None:
        """Fills ``reply`` as it goes, so that a deadline leaves what is known so far."""
        while True:
            async with places:
                if not reply.failure:
                    reply.failure = "its first request was under way"
                attempt = await self._attempt(session, body)
            reply.text, reply.failure = attempt.text, attempt.failure
            if attempt.text is not None or not attempt.again:
                return
            if reply.retries == self.endpoint.retries:
                reply.failure += f" (retries={self.endpoint.retries} used up)"
                return
            backoff = min(self.endpoint.backoff_s * 2**reply.retries, LONGEST_BACKOFF_S)
            wait = attempt.wait_s + backoff * self._random.uniform(0.5, 1.0)
            left = ends - time.monotonic()
            if wait >= left:
                reply.failure += f" (the wait before another try, {wait:.1f} s, is beyond deadline_s)"
                return
            await asyncio.sleep(wait)
            reply.retries += 1

    async def _attempt(self, session: aiohttp.ClientSession, body: bytes) -> _Attempt:
        try:
            async with session.post(self._url, data=body, headers=self._headers(), allow_redirects=False) as response:
                status, asked = response.status, response.headers.get("Retry-After", "")
                raw = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            failure = f"{type(error).__name__} {error}".strip()
            return _Attempt(failure=self.endpoint.redacted(failure), again=True)
        if status == 200:
            text = _content(raw)
            if text is None:
                return _Attempt(failure="the endpoint's reply is not a chat completion in JSON", again=True)
            return _Attempt(text=self.endpoint.redacted(text))
        words = " ".join(self.endpoint.redacted(raw.decode("utf-8", "replace")).split())
        again = status in PASSING or status >= 500
        return _Attempt(failure=f"HTTP {status} {words[:SHOWN]}".strip(), again=again, wait_s=_seconds(asked))

    def _headers(self) -> dict[str, str]:
        key = self.endpoint.key()
        return {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    @asynccontextmanager
    async def _connections(self) -> AsyncIterator[tuple[aiohttp.ClientSession, asyncio.Semaphore]]:
        """One session while any answer is under way: connections are shared, and none is left open behind the last."""
        if self._open is None:
            session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self.endpoint.request_s),
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


def _content(raw: bytes) -> str | None:
    """The message's text in a chat completion; "" for a message without one, None when it is no chat completion."""
    try:
        content = json.loads(raw)["choices"][0]["message"].get("content")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if isinstance(content, list):  # some servers answer in parts
        content = " ".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


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
