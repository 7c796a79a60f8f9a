"""Tables, files and the page of rows made by hand."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from wavalign_ext.evaluate.page import render
from wavalign_ext.evaluate.questions import Question
from wavalign_ext.evaluate.results import ModelRows, lines, table, write

HOSTILE = "</script><script>window.hacked = 1</script>"


def made(tmp_path: Path) -> tuple[list[ModelRows], list[Question]]:
    questions = [Question(f"q{n}", "ab"[n % 2], "answer", f"what {n}", references=("x",)) for n in range(6)]
    models = []
    for name, right in (("base", 0.0), ("trained", 1.0)):
        rows = []
        for number, question in enumerate(questions):
            wav = f"audio/{name}/{number}.wav"
            (tmp_path / wav).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(tmp_path / wav, 0.1 * np.sin(np.arange(8000) / 9), 16000)
            values = {"right": right if number else 0.5, "open_wer": 0.25 * number - right / 10, "seconds": 1.0}
            row = {"question": question.id, "seed": 0, "text": HOSTILE, "transcript": None, "wav": wav}
            rows.append(row | {"errors": [], "values": values, "reasons": {}})
        models.append(ModelRows(name, rows, {"q0": 0.02}))
    models[1].rows.pop()  # one answer is missing
    return models, questions


def test_lines_are_means_paired_differences_and_win_rates(tmp_path: Path) -> None:
    models, questions = made(tmp_path)
    found = {(line.category, line.measure, line.model): line for line in lines(models, questions, 1)}
    one = found["all", "right", "trained"]
    assert one.mean.value == pytest.approx((0.5 + 4) / 5) and one.mean.answers == 5
    assert one.against is not None and one.against.value == pytest.approx(4 / 5)
    assert one.wins is not None and one.wins.value == pytest.approx((4 + 0.5) / 5)
    lower = found["all", "open_wer", "trained"]  # less is better
    assert lower.against is not None and lower.against.value == pytest.approx(-0.1)
    assert lower.wins is not None and lower.wins.value == 1.0
    assert found["all", "seconds", "trained"].wins is None and found["all", "right", "base"].against is None
    assert found["b", "right", "base"].mean.questions == 3
    assert found["all", "first_audio_ms", "base"].mean.value == pytest.approx(20)


def test_files_hold_every_line_and_answer(tmp_path: Path) -> None:
    models, questions = made(tmp_path)
    found = lines(models, questions, 1)
    write(tmp_path, found, models, questions, {"set": "mine"})
    data = json.loads((tmp_path / "results.json").read_text())
    assert len(data["lines"]) == len(found) and data["facts"] == {"set": "mine"}
    with open(tmp_path / "answers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11 and rows[0]["text"] == HOSTILE and rows[0]["right"] == "0.5"
    with open(tmp_path / "summary.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(found)
    assert "| right ↑ |" in table(found) and "wins 0.9" in table(found)


def test_the_page_has_players_of_all_models_and_texts_stay_text(tmp_path: Path) -> None:
    models, questions = made(tmp_path)
    facts = {"set": "mine", "format": "jsonl", "questions": 6, "seeds": 1}
    page = render(lines(models, questions, 1), models, questions, tmp_path, tmp_path, facts, ["a <notice>"])
    assert page.count("<audio") == 11 and HOSTILE not in page and "a &lt;notice&gt;" in page
    assert "http://" not in page and "https://" not in page
