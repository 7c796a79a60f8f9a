"""A term that scores nothing is said once, and ends the patience after some steps."""

import pytest

from wavalign_ext.rewards.silence import SilenceCount, TermSilent

SILENT = {"score_judge": None, "score_format": 4.0, "missing": "speaker: no anchor; judge: HTTP 401 bad key"}
SCORED = {"score_judge": 4.0, "score_format": 4.0, "missing": ""}


def test_silence_is_said_once_and_stops_after_the_steps_allowed() -> None:
    count = SilenceCount(["judge", "format"], most_steps=3)
    (line,) = count.observe([SILENT, SILENT])
    assert "'judge' scored none of 2 rollouts: HTTP 401 bad key" in line
    assert count.observe([SILENT]) == []
    with pytest.raises(TermSilent, match="HTTP 401 bad key.*3 step"):
        count.observe([SILENT])


def test_one_score_ends_the_silence() -> None:
    count = SilenceCount(["judge"], most_steps=2)
    for _ in range(5):
        assert len(count.observe([SILENT, SILENT])) == 1
        assert count.observe([SILENT, SCORED]) == []


def test_terms_that_do_not_count_may_be_silent() -> None:
    count = SilenceCount(["format"], most_steps=1)
    assert count.observe([SILENT]) == []


def test_a_step_without_rollouts_says_nothing_about_a_term() -> None:
    count = SilenceCount(["judge"], most_steps=1)
    assert count.observe([]) == [] and count.steps == {"judge": 0}


def test_no_patience_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="most_steps=0"):
        SilenceCount(["judge"], most_steps=0)
