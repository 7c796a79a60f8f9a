"""How a judge is asked for its score, and what becomes of replies that are no rating: refused, empty, huge, packed."""

import asyncio
import gzip
import json
import logging
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import fake_time
import pytest
from aiohttp import web
from judge_server import JudgeServer, always, answer, ask, in_turn, mix_of, says

from wavalign_ext.rewards.chat import MOST_BYTES, SHOWN

KEY = "sk-geheim-0123456789-geheim"
RATED = json.dumps({"choices": [{"message": {"content": "<score>4</score>"}}]}).encode()


# --- the form of a reply ----------------------------------------------------------------------------------------------


def test_a_score_is_asked_for_by_schema() -> None:
    result, _, server = ask(always('{"reason": "right", "score": 4}'))
    assert result.total == 4
    form = server.asked[0]["response_format"]
    assert form["type"] == "json_schema" and form["json_schema"]["schema"]["properties"]["score"]["enum"] == [
        *range(1, 6)
    ]
    assert '"score": N' in server.asked[0]["messages"][0]["content"]


def test_tags_are_asked_for_where_they_are_wanted() -> None:
    result, _, server = ask(always("<score>4</score>"), reply="tags")
    assert result.total == 4 and "response_format" not in server.asked[0]
    assert "<score>N</score>" in server.asked[0]["messages"][0]["content"]


@pytest.mark.parametrize("status", [400, 404, 422])
def test_an_endpoint_without_schemas_is_asked_for_tags_from_then_on(status: int, tmp_path: Path) -> None:
    async def handle(server: JudgeServer, request: web.Request, question: str) -> web.StreamResponse:
        if "response_format" in server.asked[-1]:
            return web.json_response({"detail": "response_format is not supported"}, status=status)
        return says("<score>4</score>")

    async def main() -> tuple[list, list[bool]]:
        async with JudgeServer(handle).running() as server:
            mix = mix_of(server.url, cache=str(tmp_path))
            results = [await mix(answer(question)) for question in ("one", "two", "three")]
            results.append(await mix_of(server.url, cache=str(tmp_path))(answer("two")))  # another process
            return results, ["response_format" in body for body in server.asked]

    results, by_schema = fake_time.run(main())
    assert [result.total for result in results] == [4] * 4
    assert [result.extras["judge_cache_hits"] for result in results] == [0, 0, 0, 1]
    assert by_schema == [True, False, False, False]


@pytest.mark.parametrize(("status", "tried"), [(401, 1), (403, 1), (400, 2)])
def test_what_is_not_about_the_schema_stays_refused(status: int, tried: int) -> None:
    result, _, server = ask(in_turn(lambda: web.json_response({"error": {"message": "no"}}, status=status)))
    assert result.total is None and f"HTTP {status} no" in result.reasons["judge"]
    assert len(server.asked) == tried


def test_a_schema_that_is_wanted_is_not_given_up() -> None:
    _, _, server = ask(in_turn(lambda: web.Response(status=400)), reply="schema")
    assert len(server.asked) == 1


def test_both_forms_have_one_deadline() -> None:
    async def handle(server: JudgeServer, request: web.Request, question: str) -> web.StreamResponse:
        await asyncio.sleep(3 if len(server.asked) == 1 else 30)
        return web.Response(status=400)

    result, seconds, _ = ask(handle, endpoint={"deadline_s": 5})
    assert seconds == pytest.approx(5) and "deadline_s=5" in result.reasons["judge"]


def test_a_response_format_of_the_users_own_wins() -> None:
    _, _, server = ask(always("4"), request={"response_format": {"type": "json_object"}})
    assert server.asked[0]["response_format"] == {"type": "json_object"}


def test_scores_that_disagree_are_missing_with_both() -> None:
    result, _, _ = ask(always("Score: 2\nScore: 4"))
    assert result.total is None and "'Score: 2', 'Score: 4'" in result.reasons["judge"]


# --- replies that are no rating ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "status", "quoted"),
    [
        ({"error": {"message": "quota exceeded", "type": "insufficient_quota"}}, 403, "HTTP 403 quota exceeded"),
        ({"error": "model not loaded"}, 400, "HTTP 400 model not loaded"),
        ({"detail": [{"loc": ["body"], "msg": "field required"}]}, 422, "field required"),
        ({"message": "no access"}, 403, "HTTP 403 no access"),
        ({"error": {"code": 429, "message": "slow down"}}, 200, "slow down"),
        ({"error": {"message": "x" * 999}}, 402, "x" * SHOWN + "…"),
        ({"choices": [{"message": {"content": None, "refusal": "I won't."}}]}, 200, "the judge refuses: I won't."),
        ({"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}, 200, "content_filter"),
        ({"choices": [{"message": {}, "finish_reason": "length"}]}, 200, "is empty (finish_reason: length)"),
        ({"choices": []}, 200, "not a chat completion"),
        ([1, 2], 200, "not a chat completion"),
        ("<html>Bad gateway</html>", 404, "Bad gateway"),
    ],
)  # fmt: skip
def test_what_stands_in_a_ratings_place_is_quoted(reply: object, status: int, quoted: str) -> None:
    result, _, _ = ask(in_turn(lambda: web.json_response(reply, status=status)), endpoint={"retries": 0})
    assert result.total is None and quoted in result.reasons["judge"]
    assert result.extras["judge_unanswered"] == result.extras["judge_failures"] == 1


def test_a_judge_that_does_not_answer_is_told_from_one_that_gives_no_score() -> None:
    result, _, _ = ask(always("I cannot hear anything."))
    assert result.extras["judge_failures"] == 1 and result.extras["judge_unanswered"] == 0


def test_a_silent_judge_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with JudgeServer(in_turn(lambda: web.Response(status=401, text="bad key"))).running() as server:
            mix = mix_of(server.url)
            await asyncio.gather(*(mix(answer(f"q {number}")) for number in range(9)))

    caplog.set_level(logging.WARNING)
    fake_time.run(main())
    assert len(caplog.records) == 1 and "HTTP 401 bad key" in caplog.text


# --- replies that are too much ----------------------------------------------------------------------------------------


def streamed(piece: bytes, count: int, status: int = 200, encoding: str = "identity") -> Callable:
    async def handle(server: JudgeServer, request: web.Request, question: str) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers={"Content-Encoding": encoding})
        await response.prepare(request)
        for _ in range(count):
            await response.write(piece)
        return response

    return handle


def packed(encoding: str, size: int) -> bytes:
    zeros = zlib.compressobj(9, zlib.DEFLATED, 31 if encoding == "gzip" else 15)
    return b"".join(zeros.compress(bytes(2**20)) for _ in range(size >> 20)) + zeros.flush()


@pytest.mark.parametrize(
    "handle",
    [
        streamed(b"x" * 2**16, 2**13),  # half a GiB
        streamed(b'{"choices": [' + b" " * 2**16, 2**13, 500),
        streamed(packed("gzip", 2**29), 1, encoding="gzip"),
        streamed(packed("deflate", 2**29), 1, encoding="deflate"),
    ],
    ids=["long", "long error", "gzip bomb", "deflate bomb"],
)
def test_a_reply_without_end_costs_little_memory(handle: Callable) -> None:
    tracemalloc.start()
    try:
        result, _, server = ask(handle, endpoint={"retries": 0})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result.total is None and "longer than 2 MiB" in result.reasons["judge"]
    assert peak < 8 * MOST_BYTES


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress], ids=["gzip", "deflate"])
def test_a_packed_reply_is_read_although_none_was_asked_for(pack: Callable) -> None:
    encoding = "gzip" if pack is gzip.compress else "deflate"
    result, _, server = ask(streamed(pack(RATED), 1, encoding=encoding))
    assert result.total == 4 and server.headers[0]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip"])
def test_a_reply_that_cannot_be_unpacked_is_missing(encoding: str) -> None:
    result, _, _ = ask(streamed(b"no such thing", 1, encoding=encoding), endpoint={"retries": 0})
    assert result.total is None and "judge" in result.reasons


def test_a_reply_just_within_the_bound_is_read() -> None:
    assert ask(always("word " * (MOST_BYTES // 6) + "\nScore: 4"))[0].total == 4


@pytest.mark.parametrize("status", [200, 400, 500])
def test_no_piece_of_the_key_is_left_where_a_reply_is_cut(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    for filler in (SHOWN - 8, MOST_BYTES - 8):
        text = " " * filler if filler > SHOWN else "x" * filler
        result, _, _ = ask(
            in_turn(lambda text=text: web.Response(status=status, text=text + KEY)),
            endpoint={"api_key_env": "JUDGE_KEY", "retries": 0},
        )
        assert result.total is None and "geheim" not in repr(result) and "sk-" not in repr(result)
