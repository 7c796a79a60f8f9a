"""The report: what a run left becomes curves, answers and audio of one page, and what is missing becomes a sentence."""

import base64
import hashlib
import io
import json
import math
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import soundfile
import synthetic_run as synthetic
from omegaconf import OmegaConf
from torch.utils.tensorboard import SummaryWriter

from wavalign_ext.report import main
from wavalign_ext.report.answers import outside_in, pick, spread

STEPS = 10
HOSTILE = ["<script>window.hacked = 1</script>", "</script><img src=x onerror='window.hacked = 1'>", "<!--<script>"]


class Page(HTMLParser):
    """A written page, parsed as a browser would: its elements, its visible text, its data."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text, self._inside = "", ""
        self.feed(self.source)
        self.data, self.clips = map(json.loads, self.scripts[:2])

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    def chart(self, title: str) -> dict[str, Any]:
        return next(c for group in self.data["groups"] for c in group["charts"] if c["title"] == title)

    def dump(self, split: str, step: int, run: int = 0) -> dict[str, Any]:
        wanted = {"split": split, "step": step, "run": run}
        return next(dump for dump in self.data["dumps"] if wanted.items() <= dump.items())


def report(out: Path, *runs: Path, options: tuple[str, ...] = ()) -> Page:
    assert main([*map(str, runs), "--out", str(out), *options]) == 0
    return Page(out)


def rows_of(run: Path, split: str, step: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / split / f"{step}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.make_run(tmp_path_factory.mktemp("runs") / "pocket", STEPS, audio=4)


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return report(tmp_path_factory.mktemp("page") / "report.html", run)


@pytest.fixture
def own_run(run: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(run, tmp_path / "own"))


# --- curves -------------------------------------------------------------------------------------------------------


def test_curves_are_the_runs_numbers(run: Path, page: Page) -> None:
    mixing = page.chart("λ, weight of the preference")
    assert mixing["lines"] == ["λ", "raw"] and [series["line"] for series in mixing["series"]] == [0, 1]
    assert mixing["series"][0]["x"] == list(range(1, STEPS + 1))
    assert mixing["series"][0]["y"][-1] == pytest.approx(0.5)
    agreement = page.chart("asr_agreement")
    known = [row["score_asr_agreement"] for row in rows_of(run, "rollouts", 3)]
    known = [score for score in known if score is not None]
    assert agreement["series"][0]["y"][2] == pytest.approx(np.mean(known), rel=1e-4)
    assert (agreement["floor"], agreement["ceiling"]) == (1, 5)
    error = page.chart("Held-out spoken WER")["series"][0]
    assert error["x"] == [0, STEPS]
    assert error["y"][1] == pytest.approx(np.mean([row["wer"] for row in rows_of(run, "validation", STEPS)]), rel=1e-4)


def test_every_part_that_was_asked_for_has_a_chart(page: Page) -> None:
    titles = {chart["title"] for group in page.data["groups"] for chart in group["charts"]}
    assert titles >= {
        *("Reward gate", "Information gate", "Best reward of a group", "Variance within a group"),
        *("Reward", "semantic", "asr_agreement", "KL to the reference", "Entropy"),
        *("Text tokens per answer", "Speech tokens per answer"),
        *("Answers without a reward", "Truncated answers", "Answers without a modality", "Degenerate groups"),
        *("Held-out anchor NLL", "Held-out spoken WER", "Held-out reward"),
    }
    assert "Not recorded by any of these runs" in page.text and "Preference loss" in page.text


def test_a_step_that_a_resumed_run_wrote_again_counts_as_it_was_written_last(own_run: Path, tmp_path: Path) -> None:
    with SummaryWriter(str(own_run / "tensorboard"), filename_suffix=".resumed") as board:
        for step in (9, 10, 11):
            board.add_scalar("wavalign/lambda", 0.125, step)
    series = report(tmp_path / "r.html", own_run).chart("λ, weight of the preference")["series"][0]
    assert series["x"] == list(range(1, 12)) and series["y"][7] != 0.125 and series["y"][8:] == [0.125] * 3


def test_runs_share_charts_and_have_names_of_their_own(own_run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(own_run, tmp_path / "elsewhere" / "own"))
    config = OmegaConf.load(other / "hydra/config.yaml")
    config.data.seed = 7
    OmegaConf.save(config, other / "hydra/config.yaml")
    page = report(tmp_path / "r.html", own_run, other)
    assert page.data["runs"] == [f"{tmp_path.name}/own", "elsewhere/own"]
    assert {series["run"] for series in page.chart("Reward gate")["series"]} == {0, 1}
    assert page.dump("validation", 0, run=1)["answers"]
    assert page.text.count("≠") == 1 and "Seed ≠" in page.text
    assert len(report(tmp_path / "once.html", own_run, own_run).data["runs"]) == 1


# --- answers and audio --------------------------------------------------------------------------------------------


def test_an_answer_has_texts_scores_and_three_recordings(run: Path, page: Page) -> None:
    row = next(row for row in rows_of(run, "validation", STEPS) if row["score"] is not None)
    answers = page.dump("validation", STEPS)["answers"]
    answer = next(answer for answer in answers if answer["key"] == row["question_audio"])
    assert (answer["text"], answer["transcript"], answer["target"]) == (
        row["text"],
        row["transcript"],
        row["reference"],
    )
    assert answer["scores"]["reward"] == pytest.approx(row["score"], rel=1e-3)
    assert set(answer["scores"]) == {"reward", "semantic", "asr_agreement", "wer", "exact"}
    recordings = {
        "audio": run / "validation" / row["wav"],
        "question_audio": run / "assets" / row["question_audio"],
        "target_audio": run / "assets" / row["answer_audio"],
    }
    assert page.data["mime"] == "audio/mpeg"
    for key, path in recordings.items():
        wave, rate = soundfile.read(io.BytesIO(base64.b64decode(page.clips[answer[key]])))
        original, original_rate = soundfile.read(path)
        assert rate == original_rate and len(wave) == pytest.approx(len(original), abs=rate // 50)
        assert np.std(wave) == pytest.approx(np.std(original), rel=0.2)


def test_a_missing_score_is_told_with_its_reason(run: Path, page: Page) -> None:
    failed = [(step, row) for step in range(1, STEPS + 1) for row in rows_of(run, "rollouts", step) if row["missing"]]
    assert failed
    for step, _ in failed:
        dump = page.dump("rollouts", step)
        last = max(dump["answers"], key=lambda answer: answer["rank"])
        assert last["rank"] == dump["rows"] and last["scores"]["reward"] is None
        assert last["missing"] == "asr_agreement: timed out"
    answers = page.dump("rollouts", 1)["answers"]
    assert all(answer["failed"] == "speaker: no recording" for answer in answers)  # and yet they have a reward
    assert any(answer["scores"]["reward"] is not None and not answer["missing"] for answer in answers)
    shares = page.chart("Answers without a reward")["series"][0]["y"]
    assert shares == [0.0] * STEPS  # the run's own scalar goes before what the dumps say


def test_pick_has_best_and_worst_with_and_without_audio() -> None:
    rows = [{"score": score, "wav": "x" if score % 2 else None} for score in range(100)]
    rows += [{"score": None, "wav": "x"}, {"score": math.nan, "wav": None}]
    chosen = [(row["score"], rank) for rank, row in pick(rows)]
    assert len(chosen) == 11
    assert chosen[0] == (99, 1) and chosen[7][0] is None and chosen[7][1] > 100  # heard: best … without a score
    assert chosen[8] == (98, 2) and 40 < chosen[9][0] < 60 and math.isnan(chosen[10][0])


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 60, 61, 1000])
def test_steps_are_spread_with_first_and_last(count: int) -> None:
    places = spread(count, 60)
    assert len(places) == min(count, 60) and sorted(places) == places
    order = outside_in(places)
    assert sorted(order) == places
    if count > 1:
        assert order[:2] == [count - 1, 0]
    if count > 10:
        half = sorted(order[: len(order) // 2])
        assert max(np.diff(half)) <= 4 * count / len(half)


def test_question_and_target_come_from_the_data_set_when_the_row_does_not_name_them(
    own_run: Path, tmp_path: Path
) -> None:
    for path in [*own_run.glob("rollouts/*.jsonl"), *own_run.glob("validation/*.jsonl")]:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row.pop("answer_audio")
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    info = [
        {"question_audio": "audio/q0.flac", "question": "three plus four", "answer_audio": "audio/a0.flac"},
        {"question_audio": "audio/q1.flac", "question": "of another build", "answer_audio": "audio/a1.flac"},
    ]
    pandas.DataFrame({"extra_info": info, "target_text": ["seven", "wrong"]}).to_parquet(tmp_path / "train.parquet")
    config = OmegaConf.load(own_run / "hydra/config.yaml")
    config.data.train_files = str(tmp_path / "train.parquet")
    OmegaConf.save(config, own_run / "hydra/config.yaml")
    dumps = report(tmp_path / "r.html", own_run).data["dumps"]
    answers = [answer for dump in dumps if dump["split"] == "rollouts" for answer in dump["answers"]]
    known = next(answer for answer in answers if answer["key"] == "audio/q0.flac")
    other = next(answer for answer in answers if answer["key"] == "audio/q1.flac")
    assert known["target"] == "seven" and known["target_audio"] is not None
    assert other["target"] is None and other["target_audio"] is None


# --- safety -------------------------------------------------------------------------------------------------------


def test_hostile_text_stays_text(own_run: Path, tmp_path: Path) -> None:
    path = own_run / "validation" / f"{STEPS}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row |= {"text": HOSTILE[0], "transcript": HOSTILE[1], "question": HOSTILE[2], "missing": HOSTILE[1]}
        row |= {"score_<b>term</b>": 3.0, "reference": "half a pair \ud83d"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    OmegaConf.save(["a=" + HOSTILE[0]], own_run / "hydra/overrides.yaml")
    named = own_run.rename(tmp_path / "<i>run & co")
    page = report(tmp_path / "r.html", named)
    answer = page.dump("validation", STEPS)["answers"][0]
    assert (answer["text"], answer["transcript"], answer["question"]) == tuple(HOSTILE)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 4 and not {"img", "b"} & set(tags)
    assert "<i>run & co" in page.text and "window.hacked" not in "".join(page.scripts[2:])


def test_the_page_asks_for_nothing_and_only_its_own_scripts_may_run(page: Page) -> None:
    links = [value for _, attrs in page.elements for name, value in attrs.items() if name in ("src", "href")]
    assert all(link and link.startswith(("#", "data:")) for link in links)
    policy = next(attrs["content"] for _, attrs in page.elements if attrs.get("http-equiv"))
    assert policy and "default-src 'none'" in policy and "script-src 'sha256-" in policy
    for script in page.scripts[2:]:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy


# --- what is missing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ("tensorboard", "No scalars: tensorboard/ is missing or empty"),
        ("validation", "No held-out answers: validation/ has no dump yet"),
        ("rollouts", "No rollouts: rollouts/ has no dump yet"),
        ("hydra", "No configuration: hydra/config.yaml cannot be read (FileNotFoundError)"),
    ],
)
def test_a_run_without_a_part_still_has_a_page(part: str, sentence: str, own_run: Path, tmp_path: Path) -> None:
    shutil.rmtree(own_run / part)
    page = report(tmp_path / "r.html", own_run)
    assert sentence in page.text and page.data["groups"]
    answers = [answer for dump in page.data["dumps"] for answer in dump["answers"]]
    # Without the configuration nothing says where the questions' recordings are.
    assert answers and all((answer["question_audio"] is None) == (part == "hydra") for answer in answers)


def test_an_empty_run_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "begun/rollouts").mkdir(parents=True)
    page = report(tmp_path / "r.html", tmp_path / "begun")
    assert page.data["groups"] == page.data["dumps"] == [] and page.text.count("No ") >= 4


def test_nan_scores_and_a_line_cut_off_do_not_stop_the_page(own_run: Path, tmp_path: Path) -> None:
    rows = rows_of(own_run, "rollouts", STEPS)
    lines = [json.dumps(row | {"score": math.nan, "score_semantic": math.nan}) for row in rows]
    (own_run / f"rollouts/{STEPS}.jsonl").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:40])
    (own_run / f"rollouts/{STEPS}/0.wav").write_bytes(b"no audio")
    page = report(tmp_path / "r.html", own_run)
    assert page.chart("semantic")["series"][0]["y"][-1] is None
    assert all(answer["scores"]["reward"] is None for answer in page.dump("rollouts", STEPS)["answers"])
    assert "rollouts/ has lines that are not JSON objects and were left out: 1." in page.text
    assert "cannot be read: 1." in page.text


def test_a_folder_that_is_no_run_is_an_error_with_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = str(tmp_path / "r.html")
    for folder, what in ((tmp_path, "is not a run: expected tensorboard/"), (tmp_path / "gone", "is no folder")):
        assert main([str(folder), "--out", out]) == 2
        error = capsys.readouterr().err
        assert repr(str(folder)) in error and what in error and "runs/pocket" in error and error.count("\n") == 1
    assert not Path(out).exists()
    many = [tmp_path / str(number) for number in range(9)]
    assert main([*map(str, many), "--out", out]) == 2 and "at most 8" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_an_error(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(run), "--out", str(tmp_path)]) == 2
    assert f"--out {str(tmp_path)!r} cannot be written" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(run), "--max-mb", "none"])
    assert "'none' is not allowed" in capsys.readouterr().err


# --- size ---------------------------------------------------------------------------------------------------------


def test_a_page_of_50_steps_is_below_15_mb_and_a_budget_is_kept(tmp_path: Path) -> None:
    run = synthetic.make_run(tmp_path / "long", 50)
    page = report(tmp_path / "r.html", run)
    assert 1e6 < len(page.source.encode()) < 15e6
    assert "Recordings left out" not in page.text and len(page.data["dumps"]) == 50 + 6
    small = report(tmp_path / "small.html", run, options=("--max-mb", "1"))
    assert len(small.source.encode()) < 1.05e6 and "Recordings left out to keep the page small" in small.text
    steps = [dump["step"] for dump in small.data["dumps"] if any(a["audio"] is not None for a in dump["answers"])]
    assert {0, 1, 50} <= set(steps) and all(small.dump("rollouts", step)["answers"] for step in range(1, 51))


def test_of_very_many_steps_some_are_shown_and_the_page_says_so(tmp_path: Path) -> None:
    (tmp_path / "run/rollouts").mkdir(parents=True)
    for step in range(1, 201):
        rows = [{"text": "x" * 3000, "score": 1.0, "question": "q", "question_audio": None}] * 5
        (tmp_path / f"run/rollouts/{step}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = report(tmp_path / "r.html", tmp_path / "run")
    assert "run: answers of 60 of 200 steps of rollouts are here, evenly spread." in page.text
    assert len(page.data["dumps"]) == 60 and page.dump("rollouts", 200)["answers"][0]["text"].endswith(
        "1500 characters more)"
    )
    assert len(page.chart("Reward")["series"][0]["x"]) == 200
