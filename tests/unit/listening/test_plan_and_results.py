"""The plan is balanced exactly, votes are kept once, and the results are those of a count by hand."""

from collections import Counter
from pathlib import Path

import pytest

from wavalign_ext.data.pairs.candidates import Prompt, read
from wavalign_ext.listening.plan import ASPECTS, Pair, Trial, trials, winner
from wavalign_ext.listening.results import agreement, attentive, export, summary
from wavalign_ext.listening.store import Store, VoteError


def make_pairs(count: int = 20, checks: int = 2) -> list[Pair]:
    real = [Pair(f"p{n}", f"q{n}", f"q{n}.wav", "one", f"a{n}.wav", "two", f"b{n}.wav") for n in range(count)]
    spoilt = [Pair(f"c{n}", "q", "q0.wav", "one", "a0.wav", "one", f"c{n}.wav", check=True) for n in range(checks)]
    return real + spoilt


def says(trial: Trial, result: str) -> dict[str, str]:
    """The answers that mean ``a``, ``b`` or ``tie``."""
    side = "tie" if result == "tie" else "left" if (result == "a") == trial.a_left else "right"
    return dict.fromkeys(ASPECTS, side)


def test_sides_are_balanced_for_each_listener_and_for_each_pair() -> None:
    pairs, left = make_pairs(), Counter()
    for listener in range(4):
        own = trials(pairs, listener)
        assert [trial.number for trial in own] == list(range(22)) and len({trial.pair for trial in own}) == 22
        real = [trial for trial in own if trial.pair.startswith("p")]
        assert sum(trial.a_left for trial in real) == 10
        assert not own[0].pair.startswith("c")
        left.update(trial.pair for trial in real if trial.a_left)
        assert own == trials(pairs, listener)  # a reload finds the same test
    assert set(left.values()) == {2} and len(left) == 20
    assert [trial.pair for trial in trials(pairs, 0)] != [trial.pair for trial in trials(pairs, 1)]


def test_an_odd_number_of_pairs_is_balanced_within_one() -> None:
    assert sum(trial.a_left for trial in trials(make_pairs(7, 0), 0)) in (3, 4)


def test_a_vote_counts_once_and_in_its_turn(tmp_path: Path) -> None:
    store = Store(tmp_path, ("base", "trained"), make_pairs())
    listener = store.listener(store.join("Ann"))
    assert listener == 0 and store.listener("other") is None
    first = store.next_trial(0)
    assert first is not None
    store.vote(0, 0, says(first, "b"))
    store.vote(0, 0, says(first, "a"))  # a second tab
    assert [winner(vote.trial, vote.answers["overall"]) for vote in store.votes()] == ["b"]
    for number, answers in ((5, says(first, "a")), (99, says(first, "a")), (1, {"overall": "left"}), (1, "left")):
        with pytest.raises(VoteError):
            store.vote(0, number, answers)
    again = Store(tmp_path)  # a restart
    found = again.next_trial(0)
    assert found is not None and found.number == 1 and again.names == ("base", "trained")


def test_another_test_does_not_overwrite_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no listening test"):
        Store(tmp_path / "none")
    Store(tmp_path, ("base", "trained"), make_pairs())
    Store(tmp_path, ("base", "trained"), make_pairs())
    with pytest.raises(ValueError, match="another test"):
        Store(tmp_path, ("base", "other"), make_pairs())


def test_results_are_those_of_a_count_by_hand(tmp_path: Path) -> None:
    store = Store(tmp_path, ("base", "trained"), make_pairs(4, 1))
    wanted = {"p0": "bbb", "p1": "bba", "p2": "tab", "p3": "aab"}  # of the three listeners
    for listener in range(3):
        store.join(f"listener {listener}")
        while (trial := store.next_trial(listener)) is not None:
            result = "a" if trial.pair == "c0" else {"t": "tie"}.get(said := wanted[trial.pair][listener], said)
            store.vote(listener, trial.number, says(trial, result), seconds=2)
    found = summary(store)
    overall = found["aspects"]["overall"]
    assert (overall["a"], overall["b"], overall["ties"]) == (4, 7, 1) and found["votes"] == 12
    assert overall["win_rate"].value == pytest.approx(7.5 / 12) and overall["decided"] == pytest.approx(7 / 11)
    assert overall["p"] == pytest.approx(0.5488, abs=1e-3)  # 2 · P(X ≥ 7), X of B(11, ½)
    low, high = overall["decided_interval"]
    assert (low, high) == pytest.approx((0.3538, 0.8483), abs=1e-3)  # Wilson, by hand
    assert found["a_left"] + found["a_right"] == 12 and abs(found["a_left"] - found["a_right"]) <= 2


def test_a_listener_who_fails_the_checks_is_left_out(tmp_path: Path) -> None:
    store = Store(tmp_path, ("base", "trained"), make_pairs(4, 2))
    for listener in range(2):
        store.join("x")
        while (trial := store.next_trial(listener)) is not None:
            careless = listener == 1
            store.vote(listener, trial.number, says(trial, "b" if careless else "a"))
    assert attentive(store) == {0}
    assert summary(store)["aspects"]["overall"]["b"] == 0 and summary(store)["left_out"] == [1]


def test_agreement_by_a_worked_example() -> None:
    """Two listeners, ten pairs (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", example A): .095."""
    one, other = "0100000001", "1110010000"
    won = [(str(n), k, "ab"[int(row[n])]) for k, row in enumerate((one, other)) for n in range(10)]
    assert agreement(won) == pytest.approx(0.095, abs=0.001)
    assert agreement([("p", 0, "a"), ("p", 1, "a")]) == 1 and agreement([("p", 0, "a")]) is None


def test_the_export_is_what_wavalign_pairs_reads(tmp_path: Path) -> None:
    store = Store(tmp_path, ("base", "trained"), make_pairs(3, 1))
    for listener in range(2):
        store.join("x")
        while (trial := store.next_trial(listener)) is not None:
            store.vote(listener, trial.number, says(trial, "a" if trial.pair == "c0" else "b"))
    paths = export(store)
    kind, found = read(paths["pairs"])
    prompts = list(found)
    assert kind == "votes" and len(prompts) == 3 and all(isinstance(prompt, Prompt) for prompt in prompts)
    for prompt in prompts:
        assert isinstance(prompt, Prompt)
        share = {candidate.text: candidate.scores["votes"] for candidate in prompt.candidates}
        assert share == {"one": 0.0, "two": 1.0}
    assert len(paths["votes"].read_text().splitlines()) == 1 + 8
