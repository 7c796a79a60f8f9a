"""Pairs out of scored answers: which, in which order, what is broken and named, what is counted."""

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from wavalign_ext.data.pairs.candidates import Candidate, Prompt
from wavalign_ext.data.pairs.choose import ScoreMode, balance, choose
from wavalign_ext.data.pairs.command import main
from wavalign_ext.data.pairs.rows import answer_pair
from wavalign_ext.data.pairs.targets import make_pocket_pairs, with_other_answers


def prompt(*scores: float, texts: list[str] | None = None) -> Prompt:
    texts = texts or [f"t{n}" for n in range(len(scores))]
    made = [Candidate(f"c{n}", text, f"{n}.wav", None, {"total": s}) for n, (s, text) in enumerate(zip(scores, texts))]  # noqa: B905
    return Prompt("q", "line 1", {}, made)


def names(found: Any) -> list[tuple[str, str]]:
    return [(pair.chosen.name, pair.rejected.name) for pair in found[0]]


TOTAL = ScoreMode({"total": 1.0})


def test_best_against_worst_and_so_on_while_the_gap_lasts() -> None:
    six = prompt(1.0, 5.0, 2.0, 4.0, 3.0, 3.5)
    assert names(choose(six, TOTAL, 1.0, 1)) == [("c1", "c0")]
    assert names(choose(six, TOTAL, 1.0, 5)) == [("c1", "c0"), ("c3", "c2")]  # 3.5 against 3 is too near
    assert names(choose(six, TOTAL, 0.5, 5)) == [("c1", "c0"), ("c3", "c2"), ("c5", "c4")]


@pytest.mark.parametrize(
    ("scores", "reason"),
    [((3.0, 3.0), "tied"), ((3.0, 3.9), "below_gap"), ((3.0, math.nan), "unscored"), ((3.0,), "unscored")],
)
def test_a_prompt_without_a_pair_says_why(scores: tuple[float, ...], reason: str) -> None:
    assert choose(prompt(*scores), TOTAL, 1.0, 1) == ([], reason)


def test_the_same_answer_twice_is_one() -> None:
    twice = prompt(5.0, 1.0, texts=["same", "same"])
    twice.candidates[1] = Candidate("c1", "same", "0.wav", None, {"total": 1.0})
    assert choose(twice, TOTAL, 0.0, 1) == ([], "unscored")


def test_the_order_of_candidates_does_not_matter() -> None:
    rng = random.Random(0)
    for _ in range(50):
        made = prompt(*(rng.choice([1.0, 2.0, 4.0, math.nan]) for _ in range(6)))
        first = names(choose(made, TOTAL, 1.0, 3))
        rng.shuffle(made.candidates)
        assert names(choose(made, TOTAL, 1.0, 3)) == first


def test_modes_weigh_the_scores() -> None:
    one = Candidate("a", "x", "a.wav", None, {"semantic": 4.0, "acoustic": 2.0})
    assert ScoreMode()(one) == 6.0 and ScoreMode({"acoustic": 1.0})(one) == 2.0
    assert ScoreMode({"semantic": 0.7, "acoustic": 0.3})(one) == pytest.approx(3.4)
    assert math.isnan(ScoreMode()(Candidate("a", "x", "a.wav", None, {"semantic": 4.0, "acoustic": math.nan})))
    with pytest.raises(ValueError, match="no score is named 'tone': there are semantic, acoustic"):
        ScoreMode({"tone": 1.0})(one)


def test_the_balance_tells_lengths_and_sources() -> None:
    pairs = choose(prompt(5.0, 1.0, texts=["a b c", "a"]), TOTAL, 1.0, 1)[0]
    report = balance(pairs)
    assert report["words"] == {"chosen": 3.0, "rejected": 1.0, "chosen_longer": 1.0}
    assert report["sources"] == {"c0": {"chosen": 1, "rejected": 0}, "c1": {"chosen": 0, "rejected": 1}}


# --- the command --------------------------------------------------------------------------------------------------


def entry(semantic: Any, acoustic: Any, text: str = "words") -> dict[str, Any]:
    scores = {"semantic_score": semantic, "paralinguistic_score": acoustic}
    return {"output-text": text, "output-audio": f"{text}.wav", "gemini_score": scores}


def good(number: int) -> dict[str, Any]:
    """A row as the public release's utils/dpo_pair_builder.py (MM-Speech/WavAlign) expects it."""
    return {
        "id": f"q{number}",
        "messages": [{"role": "user", "content": "<|audio|>"}],
        "audios": [f"{number}.wav"],
        "output": {"m1": entry(5, 4, f"good {number}"), "m2": entry(2, 2, f"bad {number}"), "m3": entry(3, 3, "so")},
    }


BREAKS = {
    "is not JSON": lambda row: "{" + json.dumps(row),
    "no messages": lambda row: json.dumps(row | {"messages": []}),
    "no output": lambda row: json.dumps(row | {"output": {}}),
    "has no output-text or no output-audio": lambda row: json.dumps(
        row | {"output": row["output"] | {"m2": {"output-text": "x", "gemini_score": None}}}
    ),
    "is no number": lambda row: json.dumps(row | {"output": row["output"] | {"m1": entry("five", 4)}}),
}


def thousand(path: Path) -> dict[int, str]:
    """1000 rows of which 50 are broken, 10 of each kind; the kind by line number."""
    broken = {1 + 20 * n: list(BREAKS)[n % len(BREAKS)] for n in range(50)}
    lines = [BREAKS[broken[n]](good(n)) if n in broken else json.dumps(good(n)) for n in range(1, 1001)]
    path.write_text("\n".join(lines) + "\n")
    return broken


def test_of_a_thousand_rows_each_broken_one_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    broken = thousand(tmp_path / "scored.jsonl")
    given = [str(tmp_path / "scored.jsonl"), "--out", str(tmp_path / "out"), "--show", "1000"]
    assert main(given) == 1 and not (tmp_path / "out").exists()
    said = [line for line in capsys.readouterr().err.splitlines() if "scored.jsonl, line" in line]
    found = {int(line.split("line ")[1].split(":")[0]): line for line in said}
    assert found.keys() == broken.keys() and all(kind in found[number] for number, kind in broken.items())

    assert main([*given, "--skip-bad"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out/pairs.jsonl").read_text().splitlines()]
    assert len(rows) == 950
    assert rows[0]["sft_target_text"] == "good 2" and rows[0]["rejected_text"] == "bad 2"
    assert (rows[0]["chosen_score"], rows[0]["rejected_score"], rows[0]["score_gap"]) == (9.0, 4.0, 5.0)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["pairs"], report["broken"], report["prompts"]) == (950, 50, 950)
    assert report["sources"]["m1"] == {"chosen": 950, "rejected": 0}
    assert len((tmp_path / "out/rejects.jsonl").read_text().splitlines()) == 50
    first = (tmp_path / "out/pairs.jsonl").read_bytes()
    assert main([*given, "--skip-bad"]) == 0 and (tmp_path / "out/pairs.jsonl").read_bytes() == first


def test_a_json_list_is_read_as_well_and_a_missing_score_is_no_zero(tmp_path: Path) -> None:
    row = good(1)
    row["output"]["m2"]["gemini_score"] = None
    (tmp_path / "scored.json").write_text(json.dumps([row]))
    assert main([str(tmp_path / "scored.json"), "--out", str(tmp_path / "out"), "--score", "semantic"]) == 0
    (made,) = [json.loads(line) for line in (tmp_path / "out/pairs.jsonl").read_text().splitlines()]
    assert (made["chosen_key"], made["rejected_key"], made["score_gap"]) == ("m1", "m3", 2.0)


def test_votes_make_the_more_liked_answer_the_better(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    columns = ["question_audio", "text_a", "audio_a", "text_b", "audio_b", "vote"]
    rows = [
        ["q1.wav", "yes", "1.wav", "no", "2.wav", "b"],
        ["q1.wav", "no", "2.wav", "yes", "1.wav", "a"],
        ["q1.wav", "yes", "1.wav", "no", "2.wav", "tie"],
        ["q2.wav", "yes", "3.wav", "no", "4.wav", "tie"],
        ["q2.wav", "yes", "3.wav", "no", "4.wav", "maybe"],
    ]
    with open(tmp_path / "votes.csv", "w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    given = [str(tmp_path / "votes.csv"), "--out", str(tmp_path / "out")]
    assert main(given) == 1
    assert "votes.csv, line 6: vote='maybe': give a, b or tie" in capsys.readouterr().err
    assert main([*given, "--skip-bad"]) == 0
    (made,) = [json.loads(line) for line in (tmp_path / "out/pairs.jsonl").read_text().splitlines()]
    assert (made["sft_target_text"], made["rejected_text"], made["audios"]) == ("no", "yes", ["q1.wav"])
    assert made["score_gap"] == pytest.approx(2 / 3)
    assert json.loads((tmp_path / "out/report.json").read_text())["left_out_tied"] == 1


def dump(score: Any, text: str, **more: Any) -> str:
    line = {"step": 1, "key": f"u_{text}_0", "score": score, "text": text, "speech_codes": "1 2", "layout_errors": 0}
    return json.dumps(line | {"question_audio": "q.wav", "truncated": 0.0, "score_semantic": score} | more)


def test_a_run_s_answers_join_the_rows_that_it_was_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "run/rollouts").mkdir(parents=True)
    lines = [
        dump(2.0, "b"),
        dump(5.0, "a"),
        dump(None, "c"),
        dump(1.0, "d", truncated=1.0),
        dump(0.5, "e", layout_errors=2),
    ]
    (tmp_path / "run/rollouts/1.jsonl").write_text("\n".join(lines))
    (tmp_path / "run/rollouts/10.jsonl").write_text(dump(1.0, "f"))
    data = {"prompt": [{"role": "user", "content": "?"}], "target_text": "t", "target_speech": [7]}
    table = pyarrow.Table.from_pylist([data | {"extra_info": {"question_audio": "q.wav"}}])
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    given = [str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    assert main(given) == 2 and "give its data files, --data FILE" in capsys.readouterr().err
    assert main([*given, "--data", str(tmp_path / "train.parquet")]) == 0
    (row,) = pyarrow.parquet.read_table(tmp_path / "out/pairs.parquet").to_pylist()
    pair = answer_pair(row)
    assert pair is not None and pair.chosen == ("a", [1, 2]) and pair.rejected == ("f", [1, 2])
    assert pair.scores == (5.0, 1.0) and row["target_text"] == "t"  # the anchor keeps its target


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["nowhere"], "'nowhere' has no scored answers: give a run's folder"),
        (["s.jsonl", "--per-prompt", "0"], "--per-prompt=0 is not allowed"),
        (["s.jsonl", "--weights", "semantic"], "--weights='semantic' is not allowed"),
        (["s.jsonl", "--score", "tone"], "no score is named 'tone'"),
    ],
)
def test_wrong_arguments_end_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, words: list[str], why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.jsonl").write_text(json.dumps(good(1)))
    assert main([*words, "--out", "out"]) == 2
    said = capsys.readouterr().err
    assert why in said and said.count("\n") == 1


def test_pocket_s_pairs_are_a_right_and_a_wrong_answer_of_a_kind(tmp_path: Path) -> None:
    texts = ["coal is black", "snow is white", "coal is black", "two"]
    rows = [
        {"ability": "sum" if text == "two" else "color", "target_text": text, "target_speech": [n]}
        for n, text in enumerate(texts)
    ]
    made = with_other_answers(rows)
    assert [row["target_text"] for row in made] == texts[:3]  # no other answer of its kind: left out
    assert all(row["rejected_text"] != row["target_text"] for row in made)
    for split in ("train", "val"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{split}.parquet")
    make_pocket_pairs(tmp_path)
    first = (tmp_path / "pairs_train.parquet").read_bytes()
    (tmp_path / "pairs_train.parquet").unlink()
    make_pocket_pairs(tmp_path)
    assert (tmp_path / "pairs_train.parquet").read_bytes() == first
