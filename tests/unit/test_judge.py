"""The judge against a real HTTP server on loopback that answers, stalls, breaks off, refuses and talks nonsense."""

import asyncio
import base64
import io
import json
import logging
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from aiohttp import web

from wavalign_ext.rewards import RewardMix, RewardResult, SpokenAnswer, TermFailed, build_terms

KEY = "sk-geheim-0123456789-geheim"
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
        self.times.append(time.monotonic())
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
    start = time.monotonic()
    return await mix(item), time.monotonic() - start


def ask(handle: Handler, item: SpokenAnswer | None = None, endpoint: dict[str, Any] | None = None, **judge: Any):
    """(result, seconds, server) of one answer."""

    async def main():
        async with JudgeServer(handle).running() as server:
            return *await timed(mix_of(server.url, endpoint, **judge), item or answer()), server

    return asyncio.run(main())


# --- two hundred at once ----------------------------------------------------------------------------------------------


async def any_manners(server: JudgeServer, request: web.Request, question: str) -> web.StreamResponse:
    """What ``question`` starts with; "later" ones behave on the second try."""
    kind, first = question.split()[0], server.tries[question] == 1
    await asyncio.sleep(0.01)
    if kind == "stalls" or (kind == "stalls-first" and first):
        await asyncio.sleep(30)
    if kind == "drops" or (kind == "drops-first" and first):
        abort(request)
    if kind == "breaks-off":
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"choices": [')
        abort(request)
        return response
    if kind == "busy-first" and first:
        return web.Response(status=429, headers={"Retry-After": "0"})
    if kind == "broken" or (kind == "broken-first" and first):
        return web.Response(status=500, text="oh no")
    if kind == "garbled" or (kind == "garbled-first" and first):
        return web.Response(text='{"choices": [{"mess', content_type="application/json")
    if kind == "shapeless":
        return web.json_response({"error": "no choices here"})
    if kind == "refuses":
        return web.Response(status=400, text="no such model")
    return says({"scoreless": "Nice voice!", "beyond": "<score>7</score>", "mute": None}.get(kind, "<score>4</score>"))


SCORED = ("answers", "stalls-first", "drops-first", "busy-first", "broken-first", "garbled-first")
MISSING = {  # kind → what the reason must say
    "stalls": "TimeoutError",
    "drops": "Disconnected",
    "breaks-off": "ClientPayloadError",
    "broken": "HTTP 500 oh no",
    "garbled": "not a chat completion",
    "shapeless": "not a chat completion",
    "refuses": "HTTP 400 no such model",
    "scoreless": "no score from 1 to 5",
    "beyond": "no score from 1 to 5",
    "mute": "no score from 1 to 5",
}
DEADLINE_S, SLACK_S = 20.0, 1.0


def test_two_hundred_at_once_are_all_accounted_for() -> None:
    kinds = [*SCORED, *MISSING]
    items = [answer(f"{kinds[number % len(kinds)]} {number}") for number in range(200)]
    endpoint = {"concurrency": 12, "deadline_s": DEADLINE_S, "request_s": 1.0, "retries": 2}

    async def main() -> tuple[list[tuple[RewardResult, float]], JudgeServer]:
        async with JudgeServer(any_manners).running() as server:
            mix = mix_of(server.url, endpoint)
            return await asyncio.gather(*(timed(mix, item) for item in items)), server

    results, server = asyncio.run(main())
    for item, (result, seconds) in zip(items, results, strict=True):
        kind = str(item.question_text).split()[0]
        assert seconds < DEADLINE_S + SLACK_S
        if kind in SCORED:
            assert result.total == 4.0, (kind, result.reasons)
            assert result.extras["judge_failures"] == 0
            assert result.extras["judge_retries"] == (kind != "answers")
        else:
            assert result.total is None and MISSING[kind] in result.reasons["judge"]
            assert result.extras["judge_failures"] == 1
            hopeless = kind in ("refuses", "scoreless", "beyond", "mute")
            assert result.extras["judge_retries"] == (0 if hopeless else 2)
    assert 6 < server.most_under_way <= 12
    assert len(server.asked) == len(items) + sum(int(result.extras["judge_retries"]) for result, _ in results)


def test_none_is_past_the_deadline_when_the_judge_hangs() -> None:
    async def hang(server: JudgeServer, request: web.Request, question: str) -> web.StreamResponse:
        await asyncio.sleep(30)
        return says("<score>5</score>")

    async def main() -> list[tuple[RewardResult, float]]:
        async with JudgeServer(hang).running() as server:
            mix = mix_of(server.url, {"concurrency": 8, "deadline_s": 1.5, "request_s": 60})
            async with asyncio.timeout(10):
                return await asyncio.gather(*(timed(mix, answer(f"q {number}")) for number in range(200)))

    results = asyncio.run(main())
    assert all(result.total is None and seconds < 1.5 + SLACK_S for result, seconds in results)
    # A place that a deadline frees goes to the next in line, so any share of them may have got to ask.
    last = {
        result.reasons["judge"].removeprefix("judge: no answer within deadline_s=1.5; last: ") for result, _ in results
    }
    assert last <= {"its first request was under way", "no free place"}


def test_one_client_serves_one_event_loop_after_another() -> None:
    async def main(mix: RewardMix | None, port: int) -> tuple[RewardMix, list[RewardResult], int]:
        async with JudgeServer(always("<score>2</score>")).running(port) as server:
            mix = mix or mix_of(server.url, {"concurrency": 2})
            results = await asyncio.gather(*(mix(answer(f"q {number}")) for number in range(9)))
            return mix, results, int(server.url.split(":")[2].removesuffix("/v1"))

    mix, port = None, 0
    for _ in range(2):
        mix, results, port = asyncio.run(main(mix, port))
        assert [result.total for result in results] == [2.0] * 9


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(form: str) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
    asked = {"seconds": "1", "date": date}[form]
    replies = in_turn(lambda: web.Response(status=429, headers={"Retry-After": asked}), lambda: says("Score: 3"))
    result, _, server = ask(replies)
    assert result.total == 3.0 and len(server.asked) == 2
    assert server.times[1] - server.times[0] >= 0.95


def test_a_wait_beyond_the_deadline_is_not_waited() -> None:
    busy = in_turn(lambda: web.Response(status=503, headers={"Retry-After": "600"}))
    result, seconds, server = ask(busy, endpoint={"deadline_s": 5})
    assert seconds < 2 and len(server.asked) == 1
    assert "HTTP 503" in result.reasons["judge"] and "beyond deadline_s" in result.reasons["judge"]


def test_back_off_doubles_and_has_jitter() -> None:
    gaps = []
    for _ in range(3):
        _, _, server = ask(in_turn(lambda: web.Response(status=502)), endpoint={"backoff_s": 0.1, "retries": 3})
        gaps.append(np.diff(server.times))
    waits = np.array(gaps)  # runs × retries
    assert waits.shape == (3, 3)
    assert (waits >= 0.05 * 2 ** np.arange(3) - 0.005).all()
    assert (waits.min(0) <= 0.1 * 2 ** np.arange(3) + 0.05).all()
    assert len(set(waits[:, 2].round(3))) > 1


# --- what it sends and reads ------------------------------------------------------------------------------------------


def test_the_judge_hears_both_recordings_at_their_rates() -> None:
    item = answer()
    result, _, server = ask(always("fine <score>4.5</score>"), item, aspect="acoustic", request={"temperature": None})
    assert result.total == 4.5
    body = server.asked[0]
    assert body["model"] == "listener" and "temperature" not in body
    assert "how an answer sounds" in body["messages"][0]["content"] and "<score>" in body["messages"][0]["content"]
    parts = body["messages"][1]["content"]
    assert "three plus four is seven" in parts[0]["text"]
    heard = {}
    for name, part in zip(parts[1::2], parts[2::2], strict=True):
        assert part["input_audio"]["format"] == "wav"
        heard[name["text"]] = soundfile.read(io.BytesIO(base64.b64decode(part["input_audio"]["data"])))
    wave, rate = heard["Recording of the answer:"]
    np.testing.assert_allclose(wave, np.asarray(item.wave), atol=1e-4)
    assert rate == 22050 and heard["Recording of the question:"][1] == 16000


def test_a_judge_that_cannot_listen_gets_texts_only() -> None:
    _, _, server = ask(always("<score>1</score>"), aspect="semantic", audio=False, rubric="Be kind.")
    system, user = server.asked[0]["messages"]
    assert [part["type"] for part in user["content"]] == ["text"] and system["content"].startswith("Be kind.")


@pytest.mark.parametrize("aspect", ["holistic", "acoustic"])
def test_no_speech_is_the_bottom_and_costs_nothing(aspect: str) -> None:
    for wave in (None, np.zeros(100, np.float32)):
        result, _, server = ask(always("<score>5</score>"), answer(wave=wave), aspect=aspect)
        assert result.total == 1.0 and not server.asked
    result, _, server = ask(always("<score>5</score>"), answer(wave=None), aspect="semantic")
    assert result.total == 5.0 and len(server.asked) == 1
    assert "no speech" in server.asked[0]["messages"][1]["content"][1]["text"]


def test_content_in_parts_is_read() -> None:
    assert ask(always([{"type": "text", "text": "<score>2</score>"}]))[0].total == 2.0


def test_the_judges_scale_is_stretched_to_the_recipes() -> None:
    assert ask(always("<score>4</score>"), scale=(0, 1))[0].total == 0.75


def every_text(error: BaseException | None) -> str:
    """An exception and all it hangs on, with local variables."""
    found = ""
    while error is not None:
        found += repr(error) + "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
        error = error.__cause__ or error.__context__
    return found


def test_the_key_is_sent_and_shows_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG)

    async def leak(server: JudgeServer, request: web.Request, question: str) -> web.StreamResponse:
        sent = request.headers["Authorization"]
        if question == "refused":
            return web.Response(status=401, text="x" * 140 + f" Incorrect API key provided: {sent}")
        if question == "dropped":
            abort(request)
        if question == "bad header":
            return web.Response(status=500, headers={"Retry-After": KEY}, text=KEY)
        return says(f"{sent} <score>3</score>" if question == "scored" else f"your key is {sent}")

    async def main() -> tuple[str, list[str], list[dict[str, str]]]:
        texts, reasons = "", []
        async with JudgeServer(leak).running() as server:
            endpoint = {"api_key_env": "JUDGE_KEY", "retries": 1}
            mix = mix_of(server.url, endpoint, cache=str(tmp_path / "cache"))
            texts += repr(mix.terms) + repr(vars(mix.terms["judge"])) + repr(mix.terms["judge"].chat.endpoint)  # type: ignore[attr-defined]
            for question in ("refused", "dropped", "bad header", "scoreless", "scored"):
                result = await mix(answer(question))
                texts += repr(result)
                reasons += result.reasons.values()
                try:
                    await mix.terms["judge"].score(answer(question))
                except TermFailed as error:
                    texts += every_text(error)
            return texts, reasons, server.headers

    texts, reasons, headers = asyncio.run(main(), debug=True)
    assert {header["Authorization"] for header in headers} == {f"Bearer {KEY}"}
    assert len(reasons) == 4 and "Incorrect API key" in reasons[0]
    kept = [file.read_text() for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert len(kept) == 1
    out = capsys.readouterr()
    shown = "".join([texts, *kept, caplog.text, *map(repr, (r.__dict__ for r in caplog.records)), out.out, out.err])
    assert "***" in texts
    assert "geheim" not in shown  # neither the key nor a piece of it


# --- the cache --------------------------------------------------------------------------------------------------------


def test_the_same_content_is_asked_once(tmp_path: Path) -> None:
    async def main() -> list[tuple[float | None, float, int]]:
        async with JudgeServer(always("<score>4</score>")).running() as server:
            seen = []
            for item, judge in [
                (answer(), {}),
                (answer(), {}),  # another process's judge, as it were: the same folder
                (answer(text="three plus four is eight"), {}),
                (answer(wave=answer().question_wave), {}),
                (answer(sample_rate=16000), {}),
                (answer(), {"model": "other"}),
                (answer(), {"aspect": "semantic"}),
                (answer(), {"request": {"temperature": 1}}),
            ]:
                result = await mix_of(server.url, cache=str(tmp_path), **judge)(item)
                seen.append((result.total, result.extras["judge_cache_hits"], len(server.asked)))
            return seen

    seen = asyncio.run(main())
    assert [total for total, _, _ in seen] == [4.0] * 8
    assert [hits for _, hits, _ in seen] == [0, 1, 0, 0, 0, 0, 0, 0]
    assert [asked for _, _, asked in seen] == [1, 1, 2, 3, 4, 5, 6, 7]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 7 and all(json.loads(file.read_text()) == {"score": 4.0} for file in files)


def test_a_failure_is_not_kept(tmp_path: Path) -> None:
    for _ in range(2):
        result, _, server = ask(always("no idea"), cache=str(tmp_path))
        assert result.total is None and len(server.asked) == 1
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
