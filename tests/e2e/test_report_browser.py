"""The report in a headless Chromium: curves are drawn, recordings play, text stays text, nothing is fetched.

Needs Chromium on the path, and playwright as the driver; skips and says so where one is missing.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import synthetic_run as synthetic
from browser import chromium

from wavalign_ext.report import main

pytestmark = pytest.mark.slow
STEPS = 20
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"

# How many pixels of a plot have about the colour that the page gives to a run.
INK = """(name) => {
  const probe = document.createElement("i");
  probe.style.color = getComputedStyle(document.documentElement).getPropertyValue(name);
  document.body.append(probe);
  const [r, g, b] = getComputedStyle(probe).color.match(/\\d+/g).map(Number);
  probe.remove();
  return [...document.querySelectorAll(".plot canvas")].map((canvas) => {
    const {width, height} = canvas;
    const copy = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true});
    copy.drawImage(canvas, 0, 0);
    const pixels = copy.getImageData(0, 0, width, height).data;
    let count = 0;
    for (let i = 0; i < pixels.length; i += 4) {
      const away = Math.abs(pixels[i] - r) + Math.abs(pixels[i + 1] - g) + Math.abs(pixels[i + 2] - b);
      if (pixels[i + 3] > 150 && away < 30) count++;
    }
    return count;
  });
}"""
PLAY = """async (audio) => {
  await audio.play();
  await new Promise((done) => setTimeout(done, 400));
  return [audio.readyState, audio.duration, audio.currentTime, audio.error];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two runs, of which one says hostile things."""
    folder = tmp_path_factory.mktemp("report")
    runs = [synthetic.make_run(folder / name, STEPS, seed=seed) for seed, name in enumerate(("pocket", "grpo_text"))]
    dump = runs[0] / "validation" / f"{STEPS}.jsonl"
    rows = [json.loads(line) for line in dump.read_text().splitlines()]
    rows[0] |= {"text": HOSTILE, "transcript": HOSTILE, "question": HOSTILE}
    dump.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([*map(str, runs), "--out", str(folder / "report.html")]) == 0
    return folder / "report.html"


class Visit:
    """The opened page and what the browser had to say."""

    def __init__(self, browser: Any, report: Path, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(report.as_uri())
        self.page.wait_for_selector(".question")
        self.page.wait_for_timeout(300)

    def ink(self, run: int) -> list[int]:
        return self.page.evaluate(INK, f"--run{run}")


@pytest.fixture
def visit(browser: Any, report: Path) -> Iterator[Visit]:
    opened = Visit(browser, report)
    yield opened
    opened.page.close()
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith(("data:", "file:"))] == []
    assert sum(url.startswith("file:") for url in opened.requests) == 1


def test_every_curve_is_drawn_and_a_run_can_be_hidden(visit: Visit) -> None:
    first, second = visit.ink(0), visit.ink(1)
    assert len(first) > 20 and min(second) > 50
    assert sum(count > 50 for count in first) > len(first) / 2  # the second run may lie on the first
    visit.page.uncheck("#runs input[value='1']")
    visit.page.wait_for_timeout(200)
    assert max(visit.ink(1)) == 0 and min(visit.ink(0)) > 50
    assert visit.page.locator(".answer.run1").count() == 0 and visit.page.locator(".answer.run0").count() > 0


def test_curves_follow_the_colour_scheme(visit: Visit) -> None:
    visit.page.emulate_media(color_scheme="dark")
    visit.page.wait_for_timeout(300)
    assert min(visit.ink(1)) > 50  # --run1 is another colour now


def test_question_target_and_answer_play(visit: Visit) -> None:
    players = visit.page.locator(".question").first.locator("audio")
    assert players.count() == 4  # question, target, an answer of each run
    for player in players.all():
        ready, duration, time, error = player.evaluate(PLAY)
        assert ready >= 2 and duration > 0.5 and time > 0 and error is None
    playing = visit.page.evaluate("[...document.querySelectorAll('audio')].filter((audio) => !audio.paused).length")
    assert playing <= 1


def test_a_script_in_an_answer_is_shown_and_not_run(visit: Visit) -> None:
    assert visit.page.locator(".words", has_text=HOSTILE).count() == 3
    assert visit.page.evaluate("window.hacked") is None and visit.page.locator("main img").count() == 0


def test_steps_and_sets_can_be_walked_with_the_keyboard(visit: Visit) -> None:
    assert visit.page.input_value("#step") == str(STEPS) and visit.page.is_disabled("#on")
    visit.page.focus("#back")
    visit.page.keyboard.press("Enter")
    assert visit.page.input_value("#step") == "10"
    visit.page.select_option("#split", "rollouts")
    assert visit.page.input_value("#step") == "10"  # the nearest step
    assert "of 16 answers of pocket" in visit.page.inner_text("#said")
    assert visit.page.locator(".question").count() == 4
    visit.page.locator("figure summary").first.press("Enter")
    visit.page.wait_for_selector("figure details[open] table")
    assert visit.page.locator("figure details[open] tr").count() == 1 + STEPS


def test_everything_has_a_name_and_nothing_is_too_wide(browser: Any, report: Path) -> None:
    for width in (360, 1280):
        visit = Visit(browser, report, viewport={"width": width, "height": 800})
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        unnamed = "audio:not([aria-label]), .plot:not([aria-label]), html:not([lang])"
        assert visit.page.locator(unnamed).count() == 0
        labels = visit.page.locator(".plot").evaluate_all(
            "plots => plots.map((plot) => plot.getAttribute('aria-label'))"
        )
        assert all("at step" in label for label in labels)
        visit.page.close()


def test_a_run_without_anything_is_a_page_without_errors(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "run" / "rollouts").mkdir(parents=True)
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "r.html")]) == 0
    page = browser.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto((tmp_path / "r.html").as_uri())
    assert "These runs have no dumps of answers." in page.inner_text("#answers") and complaints == []
    page.close()
