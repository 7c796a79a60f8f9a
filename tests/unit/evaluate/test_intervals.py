"""Intervals: they cover what they should, and answers to one question do not pass for independent ones."""

import numpy as np
import pytest

from wavalign_ext.evaluate.intervals import difference, mean, win_rate


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    random, inside, rounds = np.random.default_rng(1), 0, 300
    for _ in range(rounds):
        of_question_Q1 = random.normal(2.0, 1.0, (40, 1))
        found = mean(of_question_Q1 + random.normal(0, 0.3, (40, 4)))
        inside += found.low <= 2.0 <= found.high
    assert 0.89 <= inside / rounds <= 0.99


def test_seeds_of_one_question_count_as_one_cluster() -> None:
    one_Q1 = np.random.default_rng(2).normal(size=(30, 1))
    once, often = mean(one_Q1), mean(np.repeat(one_Q1, 9, 1))
    assert often.answers == 270 and often.questions == 30
    assert (often.low, often.high) == pytest.approx((once.low, once.high))  # nine copies are no new evidence


def test_missing_values_are_left_out_and_counted() -> None:
    found = mean(np.array([[1.0, np.nan], [np.nan, np.nan], [4.0, 4.0]]))
    assert found.value == pytest.approx(3.0) and (found.questions, found.answers) == (2, 3)
    nothing = mean(np.full((3, 2), np.nan))
    assert np.isnan(nothing.value) and nothing.answers == 0
    alone = mean(np.array([[1.0, 2.0]]))
    assert alone.value == 1.5 and np.isnan(alone.low)


def test_a_paired_difference_is_narrower_than_what_questions_differ_by() -> None:
    random = np.random.default_rng(3)
    base_QS = random.normal(0, 5, (50, 1)) + random.normal(0, 0.1, (50, 2))
    better_QS = base_QS + 0.5 + random.normal(0, 0.1, (50, 2))
    found = difference(better_QS, base_QS)
    assert 0.4 < found.low < 0.5 < found.high < 0.6
    assert mean(better_QS).high - mean(better_QS).low > 1
    assert win_rate(better_QS, base_QS).value > 0.95


def test_a_tie_is_half_a_win() -> None:
    found = win_rate(np.array([[1.0, 2.0], [3.0, np.nan]]), np.array([[1.0, 1.0], [4.0, 4.0]]))
    assert found.value == pytest.approx((0.5 + 1 + 0) / 3) and found.answers == 3
    with pytest.raises(ValueError, match="same questions"):
        win_rate(np.zeros((2, 1)), np.zeros((3, 1)))
