"""Reading a score from what judges write: replies from reports, own members of each kind, properties."""

import json
from pathlib import Path

import pytest
from field import field
from hypothesis import given, settings
from hypothesis import strategies as st

from wavalign_ext.rewards.judge_reply import read_score

FIELD = Path(__file__).parents[2] / "fixtures" / "judge_replies.jsonl"


@pytest.mark.parametrize("row", [*map(json.loads, FIELD.read_text().splitlines())], ids=lambda row: row["reply"][:40])
def test_reported_replies(row: dict) -> None:
    reading = read_score(row["reply"])
    assert reading.score in row["accept"]
    assert (reading.score is None) is bool(reading.reason)


def test_most_reported_scores_are_read() -> None:
    """Missing is always safe, and a reader that finds nothing is useless."""
    rows = [json.loads(line) for line in FIELD.read_text().splitlines()]
    scored = [row for row in rows if row["accept"] != [None]]
    assert sum(read_score(row["reply"]).score is not None for row in scored) >= len(scored) - 1


def test_the_field_s_replies_are_read_or_missing() -> None:
    for row in map(json.loads, field("judge_replies.jsonl").read_text().splitlines()):
        assert read_score(row["reply"]).score in row["accept"], row["reply"]


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        # structured
        ('```json\n{"reason": "clear", "score": 5}\n```', 5),
        ('Here you go:\n{"score": 4, "reason": "1 word lost"}', 4),
        ('{"rating": "3"}', 3),
        ('{"score": 4, "confidence": 5}', 4),
        ('{"score": 4, "max_score": 5}', 4),
        ('{"result": {"overall_rating": 2, "notes": ["score: 5"]}}', 2),
        ('{"reason": "he said {\\"score\\": 5}", "score": 2}', 2),
        ('{"score": "2 out of 5"}', 2),
        ("{'reason': 'it is fine', 'score': 2}", 2),
        ('{reason: "fine", rating: 2}', 2),
        ('[{"score": 3}]', 3),
        ('{"得分": "4分"}', 4),
        # tagged
        ("It is right. <score>4</score>", 4),
        ("<SCORE> 4.5 </SCORE>", 4.5),
        ("<rating>3</rating>", 3),
        ("<final_score>`3`</final_score>", 3),
        ("In the form <score>N</score>: <score>3</score>", 3),
        ("&lt;rating&gt;3&lt;/rating&gt;", 3),
        ("Rating: [[3]]", 3),
        ("$\\boxed{3}$", 3),
        ('The speaker says "my score: 5". <score>1</score>', 1),
        ("<confidence_score>5</confidence_score><score>2</score>", 2),
        ("<score>3 out of 5</score>", 3),
        ("<score>３</score>", 3),
        # labelled
        ("Score: 4/5", 4),
        ("**Score:** 5", 5),
        ("**Score**: *3*", 3),
        ("Final Rating: 2 / 5", 2),
        ("Score – 4", 4),
        ("Score (out of 5): 3", 3),
        ("| Score | 3 |", 3),
        ("Score = 3", 3),
        ("Score: [3]", 3),
        ("Score: 3,5", 3.5),
        ("Score: 2,5/5", 2.5),
        ("Score: ３．５", 3.5),
        ("Overall score: 3 stars", 3),
        ("First score: 2. Final score: 4.", 4),
        ("Score: 3, confidence 5", 3),
        ("Score: 3 (confidence: 5/5)", 3),
        ("Score: 3, confidence: 0.9", 3),
        ("Certainty score: 5\nScore: 3", 3),
        ("置信度评分：5\n评分：3", 3),
        ("评分：3分", 3),
        ("综合评分 = 3.5 分", 3.5),
        ("得分为2", 2),
        ("スコア：3点", 3),
        ("점수: 3점", 3),
        ("Bewertung: 3,5", 3.5),
        ("Score: 4, because the right answer is 7.", 4),
        ("Score: 4. Two of 5 words are rough.", 4),
        ("Score: 2. 5 would need the city.", 2),
        ("Score: 2. A score of 4 would need all three.", 2),
        ("Score: 5 would need the city. Score: 2", 2),
        ("Score: 3. If it had named the city, score: 5.", 3),
        ("Had it been clear, Score: 5. Score: 3", 3),
        ("To get score: 5 it must name the city.\nScore: 3", 3),
        ("Score: 4 (5 words of 6)", 4),
        ("Score: 4 points out of 5", 4),
        ("Score: 3 of 5", 3),
        ("__Score__: 4", 4),
        # in a sentence
        ("On a scale from 1 to 5, my rating is 4.", 4),
        ("I'd give a score of 3 out of 5", 3),
        ("The overall rating would be 2, since words are lost.", 2),
        ("I would rate this a 3.", 3),
        ("It is not a 5. I give it a 4.", 4),
        ("这个回答我给3分。", 3),
        # alone
        ("4", 4),
        (" **5**. ", 5),
        ("3 out of 5 for two lost words", 3),
        ("It said 7, the answer is 7, so 4/5.", 4),
        ("3 – small flaw", 3),
        ("Clear voice.\n\n3", 3),
        ("３分", 3),
        # thoughts
        ("<think>score: 1? or 2</think>\n<score>5</score>", 5),
        ("maybe <score>2</score></think><score>5</score>", 5),
        ("[THINK]Score: 2[/THINK]Score: 5", 5),
        ("<|channel|>analysis<|message|>Score: 2<|end|><|start|>assistant<|channel|>final<|message|>Score: 5", 5),
        ("<reasoning>first <think> score 2</think> Score: 1</reasoning>5", 5),
    ],
)
def test_a_score_is_read(reply: str, score: float) -> None:
    assert read_score(reply).score == score, read_score(reply).reason


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "It sounds nice.",
        "The answer is 4.",  # not said to be a score
        "He repeats 3 of 5 words.",
        "3 out of 5 words are clear.",
        "Only 2/5 of it can be understood.",
        "He says: give me 4 apples",
        "Rate from 1 to 5.",
        "1. Correct.\n2. Natural.",
        "Score: seven",
        "Score: 45",
        "score: " + "9" * 400,
        "Confidence score: 5",
        "I can not give it a score of 5.",
        "I would never rate this 5.",
        # candidates disagree
        "<score>2</score> no wait, <score>3</score>",
        "Score: 2\nScore: 3",
        "Score: 4 <score>3</score>",
        '{"score": 4} Score: 3',
        '{"score": 4}\n{"score": 3}',
        '{"score": 4, "score": 3}',
        '{"a": {"rating": 4}, "b": {"rating": 3}}',
        "Semantic score: 5\nAcoustic score: 2",
        "Rating: [[4]] or Rating: [[3]]",
        "1 - correct\n2 - natural",
        "I give it a 4. I rate it a 3.",
        "评分：4\n得分：3",
        # another scale
        "Score: 0",
        "Score: 6",
        "Score: -3",
        "Score: 8/10",
        "Score: 4/10",
        "Score: 4 out of seven",
        "Score: 4 out of a possible 10",
        "Score (1-10): 4",
        "On a scale from 1 to 10, my rating is 4.",
        "On a scale of 0 to 5: Score: 4",
        "得分：4（满分10分）",
        '{"score": 4, "out_of": 10}',
        '{"score": 0.8}',
        "Score: 4%",
        "Score: 1e3",
        "<score>9</score> 4/5",  # the form was used, and left the scale
        # ranges and hedges
        "Score: 4-5",
        "Score: 3–4",
        "Score: 3 ‒ 4",
        "Score: 3〜4",
        "Score: 3 to 4",
        "Score: 3 bis 4",
        "Score: 3至4分",
        "Score: 3或4",
        "Score: 3, maybe 4",
        "Score: 3, or perhaps 4.",
        "Score: 3 (or 4)",
        "Score: 3 (maybe 4)",
        "Score: 3 [4]",
        "Score: 3.5–4.5/5",
        "Score: 3 & 4",
        "Score: 3…4",
        "Score: 3 and a half",
        "Score: 3½",
        "Score: ≥ 3",
        "<score>3 or 4</score>",
        '{"score": "3-4"}',
        "3-4",
        "3 or 4",
        "I would give it 3 to 4.",
        # nothing in the score's place
        "<score></score>",
        "<score>N/A</score>",
        '{"score": null}',
        '{"score": null, "reason": "it would be score: 4"}',
        '{"score": [4]}',
        '{"score": "good"}',
        '{"score": false}',
        # thoughts
        "<think>score: 4",
        "Score: 4</think>",
        "<think>Score: 4</think>",
        "◁think▷Score: 4",
    ],
)
def test_nothing_is_guessed(reply: str) -> None:
    reading = read_score(reply)
    assert reading.score is None and reading.reason


def test_the_reason_quotes_what_disagrees() -> None:
    assert "disagree: '<score>3</score>', 'Score: 2'" in read_score("Score: 2\n<score>3</score>").reason
    assert "'Score: 8/10'" in read_score("Score: 8/10").reason
    assert "'I cannot hear it'" in read_score("I cannot hear it").reason
    assert len(read_score("x" * 10**6).reason) < 200


# Prose without figures and labels, as a judge might write around its score.
PROSE = st.lists(
    st.sampled_from(
        "The answer is right. It sounds natural; one word is lost! Clear voice, steady pitch. "
        "Die Antwort stimmt. 回答正确。 発音は明瞭です。 Голос чистый. - good ✅ (quiet) … “so” it's".split(" ")
    ),
    max_size=12,
).map(" ".join)
VALUES = st.sampled_from(["1", "2", "3", "4", "5", "3.5", "4.0", "２"])
FORMS_JSON = '{{"score": {}}}'
FORMS = st.sampled_from(
    [
        "Score: {}", "Score: {}/5", "**Score:** {}", "Rating: {} out of 5", "<score>{}</score>", "<score>{}/5</score>",
        FORMS_JSON, '{{"reason": "fine", "score": "{}"}}', "Final score: {}", "[[{}]]", "评分：{}分", "Score = {}",
        "\\boxed{{{}}}", "Overall rating: {}.", "# Score\n\n{}", "Score：{}",
    ]
)  # fmt: skip


def number(text: str) -> float:
    return float(text.translate({ord("２"): "2"}))


@settings(deadline=None)
@given(PROSE, FORMS, VALUES, PROSE)
def test_one_stated_score_is_read_in_any_prose(before: str, form: str, value: str, after: str) -> None:
    written = number(value) if form.startswith("{{") else value  # JSON has no full-width digits
    assert read_score(f"{before}\n{form.format(written)}\n{after}").score == number(value)


@settings(deadline=None)
@given(PROSE, FORMS, VALUES, PROSE, FORMS, VALUES, PROSE)
def test_two_stated_scores_must_agree(
    before: str, form: str, value: str, between: str, second_form: str, second: str, after: str
) -> None:
    values = [number(text) for text in (value, second)]
    reply = f"{before}\n{form.format(values[0])}\n{between}\n{second_form.format(values[1])}\n{after}"
    assert read_score(reply).score == (values[0] if values[0] == values[1] else None)


@settings(deadline=None)
@given(PROSE, FORMS, VALUES, st.sampled_from(["-", " - ", "–", "~", " to ", " or ", "/", " … "]), VALUES)
def test_a_range_is_no_score(before: str, form: str, value: str, dash: str, second: str) -> None:
    low, high = number(value), number(second)
    if low == high or (dash == "/" and high == 5):
        return
    text = f"{low:g}{dash}{high:g}"
    assert read_score(f"{before}\n{form.format(json.dumps(text) if form == FORMS_JSON else text)}").score is None


@settings(deadline=None)
@given(PROSE, FORMS, VALUES, st.sampled_from(["<think>", "<thinking>", "◁think▷", ""]), FORMS, VALUES)
def test_thoughts_are_not_read(prose: str, form: str, value: str, opening: str, thought: str, other: str) -> None:
    closing = {"<thinking>": "</thinking>", "◁think▷": "◁/think▷"}.get(opening, "</think>")
    reply = f"{opening}{prose}\n{thought.format(number(other))}\n{closing}{form.format(number(value))}"
    assert read_score(reply).score == number(value)


@settings(deadline=None)
@given(st.text(max_size=300) | st.text("<>/score:{}[]\"'45 .,-\n", max_size=200))
def test_any_text_gives_a_score_on_the_scale_or_a_reason(reply: str) -> None:
    reading = read_score(reply)
    assert (reading.score is None and reading.reason) or (reading.score is not None and 1 <= reading.score <= 5)


@pytest.mark.parametrize(
    "piece", ["<think>", "<score>", "Score: ", "{", '{"a":', "[[", '"', "score " * 3, "1 to 5 ", "4 - "]
)
def test_a_long_reply_is_read_in_no_time(piece: str) -> None:
    reply = piece * (200_000 // len(piece))
    assert read_score(reply + "\n").score is None


def test_the_end_of_a_long_reply_is_read() -> None:
    assert read_score("word " * 50_000 + "\nScore: 4").score == 4
