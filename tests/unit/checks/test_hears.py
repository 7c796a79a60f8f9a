"""``wavalign hears``: what is swapped, what is counted, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ears_world import LAYOUT, SIZE, build, features, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from wavalign_ext import models
from wavalign_ext.checks import hears
from wavalign_ext.checks.hears import Asked
from wavalign_ext.speech.layout import ResolvedLayout, load_layout

COUNTS: list[tuple[int, ...]] = [(9,), (4, 12), (17,), (1,)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build(tmp_path_factory.mktemp("ears"))
    write_rows(folder, COUNTS)
    return folder


@pytest.fixture(scope="module")
def tokenizer(world: Path) -> Any:
    return AutoTokenizer.from_pretrained(world / "model")


@pytest.fixture(scope="module")
def layout(tokenizer: Any) -> ResolvedLayout:
    return load_layout(LAYOUT).resolve(tokenizer)


def asked(world: Path, tokenizer: Any) -> list[Asked]:
    """The rows, as questions with different answers."""
    rows = hears.read_rows(world / "rows.parquet", world, tokenizer)
    return [Asked(row.prompt, row.heard, f"answer {number}") for number, row in enumerate(rows)]


def test_rows_are_read_with_their_vectors(world: Path, tokenizer: Any, layout: ResolvedLayout) -> None:
    rows = hears.read_rows(world / "rows.parquet", world, tokenizer, most=3)
    assert [tuple(len(one) for one in row.heard) for row in rows] == COUNTS[:3]
    for row, counts in zip(rows, COUNTS, strict=False):
        assert row.prompt.count(layout.user_speech_start) == sum(counts) and row.answer == "three is four"


def test_the_last_recording_is_another_row_s(world: Path, tokenizer: Any, layout: ResolvedLayout) -> None:
    rows = asked(world, tokenizer)
    found = hears.swapped(rows, layout)
    assert [[len(one) for one in row.heard] for row in found] == [[12], [4, 17], [1], [9]]
    assert torch.equal(found[1].heard[1], rows[2].heard[0]) and torch.equal(found[1].heard[0], rows[1].heard[0])
    token = layout.user_speech_start
    for before, after in zip(rows, found, strict=True):
        assert after.prompt.count(token) == sum(map(len, after.heard)) and after.answer == before.answer
        assert [i for i in after.prompt if i != token] == [i for i in before.prompt if i != token]


def test_a_row_is_never_given_its_own_answer_s_recording(layout: ResolvedLayout) -> None:
    token = layout.user_speech_start
    rows = [Asked([1, *[token] * n, 2], [features(n, n)], answer) for n, answer in ((1, "a"), (2, "a"), (3, "b"))]
    assert [len(row.heard[0]) for row in hears.swapped(rows, layout)] == [3, 3, 1]


def test_shares_are_of_words(
    world: Path, tokenizer: Any, layout: ResolvedLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = asked(world, tokenizer)
    said = {"own": ["answer 0", "x", "answer 2", "y"], "other": ["answer 1", "x", "answer 2", "z"]}
    turns = iter(said.values())
    monkeypatch.setattr(hears, "answers", lambda *_, **__: None)
    monkeypatch.setattr(hears, "words", lambda *_: next(turns))
    found = hears.measure(None, rows, layout, tokenizer)
    assert (found.rows, found.changed, found.right, found.right_swapped) == (4, 0.5, 0.5, 0.25)
    with pytest.raises(ValueError, match="at least two different answers are needed"):
        hears.measure(None, rows[:1], layout, tokenizer)


def test_keywords_are_looked_for_as_words() -> None:
    row = Asked([1], [], "the answer is april", ("april",))
    assert row.right("well i think it is april") and not row.right("aprilia") and not row.right("the answer is may")
    assert Asked([1], [], "april").right("april") and not Asked([1], [], "april").right("it is april")


def test_answers_of_a_batch_are_those_of_each_row_alone(world: Path, tokenizer: Any, layout: ResolvedLayout) -> None:
    models.register()
    model = AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32).eval()
    with torch.no_grad():
        model.lm_head.weight[:, 0] = 0  # no token is likelier than others whatever it hears
    rows = asked(world, tokenizer)
    together = hears.answers(model, rows, layout, most=8)
    alone = [hears.answers(model, [row], layout, most=8)[0] for row in rows]
    assert together == alone and len(set(map(tuple, together))) > 1
    assert hears.answers(model, hears.swapped(rows, layout), layout, most=8) != together  # so that it can tell


def test_the_command_says_what_it_found(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = ["--layout", str(world / "layout.yaml"), "--tokens", "4"]
    assert hears.main([str(world / "model"), str(world / "rows.parquet"), *here]) == 1
    assert "at least two different answers" in capsys.readouterr().err  # every row has the same one
    assert hears.main([str(world / "model"), str(world / "rows.parquet"), "--layout", "pocket"]) == 1
    assert "use this layout's own tokenizer" in capsys.readouterr().err
    assert SIZE == 32
