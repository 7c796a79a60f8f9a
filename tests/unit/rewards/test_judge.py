"""The judge against a real HTTP server on loopback that answers, stalls, breaks off, refuses and talks nonsense.

The clock is a fake one (see ``fake_time``): nothing here depends on how busy the machine is.
"""

import asyncio
import base64
import io
import json
import logging
import traceback
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import fake_time
import numpy as np
import pytest
import soundfile
from aiohttp import web
from judge_server import JudgeServer, abort, always, answer, ask, in_turn, mix_of, says, timed

from wavalign_ext.rewards import RewardMix, RewardResult, TermFailed

KEY = "sk-geheim-0123456789-geheim"


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
    "shapeless": "not a chat completion: no choices here",
    "refuses": "HTTP 400 no such model",
    "scoreless": "no score from 1 to 5",
    "beyond": "no score from 1 to 5",
    "mute": "reply is empty (finish_reason: None)",
}
DEADLINE_S = 20.0


def test_two_hundred_at_once_are_all_accounted_for() -> None:
    kinds = [*SCORED, *MISSING]
    items = [answer(f"{kinds[number % len(kinds)]} {number}") for number in range(200)]
    endpoint = {"concurrency": 12, "deadline_s": DEADLINE_S, "request_s": 1.0, "retries": 2}

    async def main() -> tuple[list[tuple[RewardResult, float]], JudgeServer]:
        async with JudgeServer(any_manners).running() as server:
            mix = mix_of(server.url, endpoint)
            return await asyncio.gather(*(timed(mix, item) for item in items)), server

    results, server = fake_time.run(main())
    for item, (result, seconds) in zip(items, results, strict=True):
        kind = str(item.question_text).split()[0]
        assert seconds <= DEADLINE_S
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
    refused = sum(str(item.question_text).startswith("refuses") for item in items)  # once with and once without schema
    retries = sum(int(result.extras["judge_retries"]) for result, _ in results)
    assert len(server.asked) == len(items) + refused + retries


def test_none_is_past_the_deadline_when_the_judge_hangs() -> None:
    async def hang(server: JudgeServer, request: web.Request, question: str) -> web.StreamResponse:
        await asyncio.sleep(30)
        return says("<score>5</score>")

    async def main() -> list[tuple[RewardResult, float]]:
        async with JudgeServer(hang).running() as server:
            mix = mix_of(server.url, {"concurrency": 8, "deadline_s": 1.5, "request_s": 60})
            async with asyncio.timeout(10):
                return await asyncio.gather(*(timed(mix, answer(f"q {number}")) for number in range(200)))

    results = fake_time.run(main())
    assert all(result.total is None and seconds == pytest.approx(1.5) for result, seconds in results)
    # A place that a deadline frees goes to the next in line, so any share of them may have got to ask.
    reasons = Counter(result.reasons["judge"].partition("deadline_s=1.5: ")[2] for result, _ in results)
    assert reasons["request 1 was under way"] == 8
    late = "request 1, sent after 1.5 s without a free place, was under way"
    assert set(reasons) <= {"request 1 was under way", late, "no free place (concurrency=8)"}


def test_one_client_serves_one_event_loop_after_another() -> None:
    async def main(mix: RewardMix | None, port: int) -> tuple[RewardMix, list[RewardResult], int]:
        async with JudgeServer(always("<score>2</score>")).running(port) as server:
            mix = mix or mix_of(server.url, {"concurrency": 2})
            results = await asyncio.gather(*(mix(answer(f"q {number}")) for number in range(9)))
            return mix, results, int(server.url.split(":")[2].removesuffix("/v1"))

    mix, port = None, 0
    for _ in range(2):
        mix, results, port = fake_time.run(main(mix, port))
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
    assert seconds == 0 and len(server.asked) == 1
    assert "HTTP 503" in result.reasons["judge"] and "beyond deadline_s" in result.reasons["judge"]


def test_back_off_doubles_and_has_jitter() -> None:
    gaps = []
    for _ in range(3):
        _, _, server = ask(in_turn(lambda: web.Response(status=502)), endpoint={"backoff_s": 0.1, "retries": 3})
        gaps.append(np.diff(server.times))
    waits = np.array(gaps)  # runs × retries
    assert waits.shape == (3, 3)
    assert (waits >= 0.05 * 2 ** np.arange(3) - 1e-6).all()
    assert (waits <= 0.1 * 2 ** np.arange(3) + 1e-6).all()
    assert len(set(waits[:, 2].round(3))) > 1


# --- what it sends and reads ------------------------------------------------------------------------------------------


def test_the_judge_hears_both_recordings_at_their_rates() -> None:
    item = answer()
    result, _, server = ask(always("fine <score>4.5</score>"), item, aspect="acoustic", request={"temperature": None})
    assert result.total == 4.5
    body = server.asked[0]
    assert body["model"] == "listener" and "temperature" not in body
    assert "how an answer sounds" in body["messages"][0]["content"]
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

    texts, reasons, headers = fake_time.run(main(), debug=True)
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

    seen = fake_time.run(main())
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
