"""The pages of listening-test and talk in a headless Chromium: people who listen, reload, open a second tab, and ask.

Needs Chromium on the path, and playwright as the driver; skips and says so where one is missing.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from browser import chromium, served

from wavalign_ext.listening.app import application
from wavalign_ext.listening.plan import ASPECTS, Pair
from wavalign_ext.listening.results import summary
from wavalign_ext.listening.store import Store
from wavalign_ext.listening.talk import application as talk
from wavalign_ext.speech.audio import decode

pytestmark = pytest.mark.slow
PAIRS = 20


def tone(path: Path, hz: float, seconds: float = 0.15) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.2 * np.sin(2 * np.pi * hz * np.arange(int(16000 * seconds)) / 16000), 16000)
    return path.name


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """20 pairs and 2 checks; a recording of A has 300 Hz, one of B 600 Hz, a spoilt one 900 Hz."""
    tone(tmp_path / "q.wav", 440)
    for number in range(PAIRS):
        tone(tmp_path / f"a{number}.wav", 300)
        tone(tmp_path / f"b{number}.wav", 600)
    tone(tmp_path / "c.wav", 900)
    pairs = [Pair(f"p{n}", f"question {n}", "q.wav", "A", f"a{n}.wav", "B", f"b{n}.wav") for n in range(PAIRS)]
    checks = [Pair(f"c{n}", f"check {n}", "q.wav", "A", f"a{n}.wav", "A", "c.wav", check=True) for n in range(2)]
    return Store(tmp_path, ("base", "trained"), pairs + checks)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream") as started:
        yield started


# Which of the two sounds higher, as ears would tell: zero crossings of what the page has.
HIGHER = """async () => {
  const rate = async (id) => {
    const data = await (await fetch(document.getElementById(id).src)).arrayBuffer();
    const samples = (await new OfflineAudioContext(1, 16000, 16000).decodeAudioData(data)).getChannelData(0);
    let count = 0;
    for (let i = 1; i < samples.length; i++) count += (samples[i] >= 0) !== (samples[i - 1] >= 0);
    return count;
  };
  const [left, right] = [await rate("left"), await rate("right")];
  return [left, right, left > right ? "left" : "right"];
}"""


class Listener:
    """Someone in a browser of his own, who prefers what ``likes`` says of the question's text: high, low or tie."""

    def __init__(self, browser: Any, address: str, likes: Any) -> None:
        self.context, self.likes, self.complaints = browser.new_context(), likes, []
        self.context.set_default_timeout(120_000)  # a busy machine plays late
        self.page = self.open(address)

    def open(self, address: str) -> Any:
        page = self.context.new_page()
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.goto(address)
        return page

    def begin(self) -> None:
        self.page.fill("#name", "listener")
        self.page.click("#begin")
        for _ in range(3):
            self.page.click("#tone")
            ear = self.page.get_attribute("#check", "data-ear")
            self.page.click(f"#ear-{ear}:enabled")
        self.page.wait_for_selector("#trial:not([hidden])")

    def wish(self, page: Any) -> str:
        """The side that he prefers."""
        left, right, higher = page.evaluate(HIGHER)
        lower = "right" if higher == "left" else "left"
        if max(left, right) > 200:  # 900 Hz for 0.15 s: spoilt
            return lower
        return {"high": higher, "low": lower, "tie": "tie"}[self.likes(page.inner_text("#text"))]

    def vote(self, page: Any | None = None, then: int | None = None) -> str:
        """One trial, by the keyboard; the question's text. ``then``: the trial that follows, where not the next."""
        page = page or self.page
        text, (at, _, trials) = page.inner_text("#text"), page.inner_text("#count").split()
        side = self.wish(page)
        assert page.is_disabled("#next")
        for key in "12":
            page.keyboard.press(key)
            name = {"1": "left", "2": "right"}[key]
            page.wait_for_selector(f"#{name}[data-heard]")
        for _ in ASPECTS:
            page.keyboard.press({"left": "ArrowLeft", "right": "ArrowRight", "tie": "ArrowDown"}[side])
        page.keyboard.press("Enter")
        following = f"{then or int(at) + 1} of {trials}"
        page.wait_for_selector(f"#done:not([hidden]), #count:text-is('{following}')")
        return text


def test_three_listeners_take_the_test(browser: Any, store: Store) -> None:
    """Of pair n, listener k prefers B, A or neither by (n + k) mod 3; checks he hears. What he votes is what counts."""
    orders = []
    with served(application(store)) as address:
        for number in range(3):

            def likes(text: str, number: int = number) -> str:
                return ("high", "low", "tie")[(int(text.split()[-1]) + number) % 3]

            listener = Listener(browser, address, likes)
            listener.begin()
            order = []
            for trial in range(PAIRS + 2):
                if trial == 7:  # a reload loses nothing
                    listener.page.reload()
                    listener.page.wait_for_selector("#trial:not([hidden])")
                    assert listener.page.inner_text("#count") == f"8 of {PAIRS + 2}"
                order.append(listener.vote())
            listener.page.wait_for_selector("#done:not([hidden])")
            assert listener.complaints == []
            orders.append(order)
            listener.context.close()
        page = browser.new_page()
        page.goto(f"{address}/results")
        shown = page.inner_text("table")
        page.close()
    assert all(sorted(order) == sorted(orders[0]) and len(set(order)) == 22 for order in orders)
    assert orders[0] != orders[1]
    found = summary(store)
    assert (found["listeners"], found["left_out"], found["votes"]) == (3, [], 60)
    assert (found["a_left"], found["a_right"]) == (30, 30)
    wanted = Counter((n + k) % 3 for n in range(PAIRS) for k in range(3))
    for told in found["aspects"].values():
        assert (told["b"], told["a"], told["ties"]) == (wanted[0], wanted[1], wanted[2]) == (20, 20, 20)
        assert told["win_rate"].value == 0.5
    assert shown.count("50.0%") >= 3 and shown.count("20") >= 9


def test_a_second_tab_does_no_harm(browser: Any, store: Store) -> None:
    with served(application(store)) as address:
        listener = Listener(browser, address, lambda _: "high")
        listener.begin()
        other = listener.open(address)
        other.wait_for_selector("#trial:not([hidden])")
        assert other.inner_text("#count") == listener.page.inner_text("#count") == "1 of 22"
        listener.vote()
        listener.vote()
        listener.likes = lambda _: "low"  # the second tab is at the first trial still, and says something else
        listener.vote(other, then=3)
        assert other.inner_text("#count") == "3 of 22"
        votes = store.votes()
        assert [vote.trial.number for vote in votes] == [0, 1]
        assert [store.by_id[vote.trial.pair].check for vote in votes].count(False) >= 1
        for vote in votes:
            better = "right" if vote.trial.a_left else "left"  # B is the high one
            assert vote.answers["overall"] == better or store.by_id[vote.trial.pair].check
        listener.context.close()


class Echo:
    """Says how long it was asked, and plays a tone of that length, in two steps; or fails."""

    def __init__(self, name: str, fails: bool = False) -> None:
        self.name, self.fails, self.asked = name, fails, []

    def answer(self, audio: bytes, tell: Any) -> None:
        from wavalign_ext.listening.talk import _wav

        if self.fails:
            return tell({"error": "no ears today", "done": True})
        wave, rate = decode(audio)
        self.asked.append(len(wave) / rate)
        sound = 0.3 * np.sin(np.arange(8000) / 5)
        tell({"text": "you", "wav": _wav(sound[:4000], 16000), "done": False})
        tell({"text": "you spoke", "wav": _wav(sound, 16000), "done": True})


def test_asking_by_microphone_and_by_file(browser: Any, tmp_path: Path) -> None:
    tone(tmp_path / "q.wav", 440, seconds=1.5)
    base, trained, broken = Echo("base"), Echo("trained"), Echo("broken", fails=True)
    complaints: list[str] = []
    with served(talk([base, trained, broken])) as address:
        page = browser.new_context(permissions=["microphone"]).new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#answers section >> nth=2")
        page.set_input_files("#file", tmp_path / "q.wav")
        page.wait_for_selector("section[data-state=done] >> nth=2")
        assert base.asked[0] == pytest.approx(1.5) and trained.asked == base.asked
        assert page.locator(".text").all_inner_texts() == ["you spoke", "you spoke", "no ears today"]
        page.click("#record")  # Chromium's fake device beeps
        page.wait_for_timeout(1500)
        page.click("#record")
        page.wait_for_selector("#record:enabled:text-is('Record a question')")
        page.wait_for_selector("section[data-state=done] >> nth=2")
        assert len(base.asked) == 2 and 0.8 < base.asked[1] < 4
        length = page.locator("#answers audio").first.evaluate(
            "async (audio) => { await audio.play(); return audio.duration; }"
        )
        assert length == pytest.approx(0.5, abs=0.01)
        ink = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v)"
        assert page.locator("canvas").first.evaluate(ink)
        page.context.close()
    assert complaints == []
