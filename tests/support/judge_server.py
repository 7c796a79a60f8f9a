"""A chat endpoint on loopback whose manners a test chooses, and judges that ask it, on a fake clock."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import fake_time
import numpy as np
from aiohttp import web

from wavalign_ext.rewards import RewardMix, RewardResult, SpokenAnswer, build_terms

Handler = Callable[["JudgeServer", web.Request, str], Awaitable[web.StreamResponse]]


class JudgeServer:
    """A chat endpoint whose manners a test chooses; counts what it sees."""

    def __init__(self, handle: Handler) -> None:
        self.handle, self.url = handle, ""
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.tries: Counter[str] = Counter()
        self.under_way = self.most_under_way = 0

    async def reply(self, request: web.Request) -> web.StreamResponse:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        self.times.append(asyncio.get_running_loop().time())
        try:
            body = await request.json()
            self.asked.append(body)
            self.headers.append(dict(request.headers))
            question = json.loads(body["messages"][1]["content"][0]["text"].removeprefix("Texts: "))["question"]
            self.tries[question] += 1
            return await self.handle(self, request, question)
        finally:
            self.under_way -= 1

    @asynccontextmanager
    async def running(self, port: int = 0):
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v1/chat/completions", self.reply)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            yield self
        finally:
            await runner.cleanup()


def says(text: Any) -> web.Response:
    return web.json_response({"choices": [{"message": {"role": "assistant", "content": text}}]})


def abort(request: web.Request) -> None:
    assert request.transport is not None
    request.transport.abort()


def always(text: Any) -> Handler:
    async def handle(server: JudgeServer, request: web.Request, question: str) -> web.StreamResponse:
        return says(text)

    return handle


def in_turn(*replies: Callable[[], web.StreamResponse]) -> Handler:
    """The first reply to the first request, and so on; the last to all that follow."""

    async def handle(server: JudgeServer, request: web.Request, question: str) -> web.StreamResponse:
        return replies[min(len(server.asked), len(replies)) - 1]()

    return handle


def answer(question: str = "what is three plus four", **changes: Any) -> SpokenAnswer:
    wave = np.sin(np.arange(800) / 5).astype(np.float32) / 2
    fields: dict[str, Any] = {
        "text": "three plus four is seven",
        "speech_codes": (1, 2),
        "wave": wave,
        "sample_rate": 22050,
        "question_text": question,
        "question_wave": -wave,
        "question_rate": 16000,
        "reference_text": "three plus four is seven",
        "ended": True,
        "truncated": False,
    }
    return SpokenAnswer(**fields | changes)


def mix_of(url: str, endpoint: dict[str, Any] | None = None, scale: tuple = (1, 5), **judge: Any) -> RewardMix:
    judge = {"aspect": "holistic", "model": "listener", **judge}
    return build_terms({"judge": {**judge, "endpoint": {"url": url, "backoff_s": 0.01, **(endpoint or {})}}}, scale)


async def timed(mix: RewardMix, item: SpokenAnswer) -> tuple[RewardResult, float]:
    start = asyncio.get_running_loop().time()
    return await mix(item), asyncio.get_running_loop().time() - start


def ask(handle: Handler, item: SpokenAnswer | None = None, endpoint: dict[str, Any] | None = None, **judge: Any):
    """(result, seconds, server) of one answer."""

    async def main():
        async with JudgeServer(handle).running() as server:
            return *await timed(mix_of(server.url, endpoint, **judge), item or answer()), server

    return fake_time.run(main())
