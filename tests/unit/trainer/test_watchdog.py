"""A lost worker ends the block that waits for it, with its name, soon; a healthy one does not."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from wavalign_ext.config import WatchdogConfig
from wavalign_ext.integration.ending import StopAsked
from wavalign_ext.trainer import watchdog
from wavalign_ext.trainer.watchdog import Pace, Watchdog, WorkerLost, server_probe


def after(looks: int, problem: str) -> list:
    """A probe that finds ``problem`` from the look with this number on."""
    seen = iter(range(10**6))
    return [lambda: problem if next(seen) >= looks else None]


def test_a_wait_is_interrupted() -> None:
    woke = False
    with pytest.raises(WorkerLost, match="engine 1 has died: the run has ended; start it again"):
        with Watchdog(after(2, "engine 1 has died"), poll_interval_s=0.05):
            time.sleep(30)
            woke = True
    assert not woke


def test_an_error_of_the_trainer_gets_its_cause() -> None:
    with pytest.raises(WorkerLost, match="engine 1 has died") as caught:
        with Watchdog(after(0, "engine 1 has died"), poll_interval_s=60):
            raise ValueError("something obscure")
    assert isinstance(caught.value.__context__, ValueError)
    with pytest.raises(ValueError, match="something obscure"):
        with Watchdog([lambda: None], poll_interval_s=60):
            raise ValueError("something obscure")


def test_nothing_happens_when_all_is_well() -> None:
    with Watchdog([lambda: None], poll_interval_s=0.01) as dog:
        time.sleep(0.2)
    dog.thread.join(5)
    assert not dog.thread.is_alive() and dog.problem is None


def test_a_late_finding_does_not_fail_a_run_that_is_done() -> None:
    with Watchdog(after(0, "engine 1 has died"), poll_interval_s=60):
        pass


class Answer(BaseHTTPRequestHandler):
    code, wait_s = 200, 0.0

    def do_GET(self) -> None:
        time.sleep(self.wait_s)
        self.send_response(self.code if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
    Answer.code, Answer.wait_s = 200, 0.0


def test_a_server_is_asked(server: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # must not be used
    probe = server_probe("engine 0", f"127.0.0.1:{server.server_port}", heartbeat_timeout_s=60)
    assert probe() is None
    Answer.code = 503
    assert probe() == "engine 0 has died (its server answers 503)"
    Answer.code = 200
    assert probe() is None


def test_a_server_that_is_gone_is_noticed() -> None:
    server = HTTPServer(("127.0.0.1", 0), Answer)
    server.server_close()
    probe = server_probe("engine 0", f"127.0.0.1:{server.server_port}", heartbeat_timeout_s=60)
    assert probe() == "engine 0 has died (nothing listens there)"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The watchdog's time, which a test sets: ``clock.now``."""
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(watchdog, "time", clock)
    return clock


def test_silence_is_borne_for_a_while(
    server: HTTPServer, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "ANSWER_S", 0.05)
    Answer.wait_s = 0.5
    probe = server_probe("engine 0", f"127.0.0.1:{server.server_port}", heartbeat_timeout_s=60)
    for silent, problem in ((0, None), (60, None), (61, "engine 0 has said nothing for 61 s (timed out)")):
        clock.now = 1000.0 + silent
        assert probe() == problem


def looks(pace: Pace, clock: SimpleNamespace, seconds: float) -> str | None:
    """What a watchdog that looks every five seconds finds in this time."""
    found = None
    for _ in range(int(seconds // 5)):
        clock.now += 5
        found = found or pace.probe()
    return found


@pytest.fixture
def pace(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Pace:
    from wavalign_ext.integration import ending

    monkeypatch.setattr(ending, "time", clock)
    return Pace(WatchdogConfig(start_timeout_s=1000))


def test_a_phase_may_take_ten_times_what_it_took(pace: Pace, clock: SimpleNamespace) -> None:
    for step, seconds in ((1, 20), (2, 30), (3, 25)):
        pace.enter("the rollouts", step)
        assert looks(pace, clock, seconds) is None
        pace.enter("the training", step)
        assert looks(pace, clock, 5) is None
    pace.enter("the rollouts", 4)
    assert looks(pace, clock, 300) is None
    told = looks(pace, clock, 5)
    assert told is not None and told.startswith("the rollouts of step 4 has taken 305 s (at most 30 s before;")
    pace.enter("the training", 4)
    assert looks(pace, clock, 120) is None  # two minutes are always there
    assert looks(pace, clock, 5) is not None


def test_what_was_not_gone_through_yet_has_the_start_s_limit(pace: Pace, clock: SimpleNamespace) -> None:
    assert looks(pace, clock, 1000) is None
    told = looks(pace, clock, 5)
    assert told is not None and told.startswith("the start has taken 1005 s (not gone through before")


def test_a_step_has_the_limit_that_is_given(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    from wavalign_ext.integration import ending

    monkeypatch.setattr(ending, "time", clock)
    pace = Pace(WatchdogConfig(step_timeout_s=20))
    assert looks(pace, clock, 600) is None  # before the first step
    pace.enter("the rollouts", 3)
    assert looks(pace, clock, 15) is None
    pace.enter("the training", 3)
    told = looks(pace, clock, 10)
    assert told is not None and "step 3 has taken longer than wavalign.watchdog.step_timeout_s=20" in told
    pace.enter("the rollouts", 4)
    assert looks(pace, clock, 20) is None


def test_a_run_that_was_suspended_was_not_slow(pace: Pace, clock: SimpleNamespace) -> None:
    pace.enter("the rollouts", 1), looks(pace, clock, 20), pace.enter("the rollouts", 2)
    clock.now += 50_000
    assert pace.probe() is None and looks(pace, clock, 60) is None


def test_a_look_that_fails_is_not_the_last(capsys: pytest.CaptureFixture) -> None:
    def broken() -> None:
        raise TypeError("no such attribute")

    with pytest.raises(WorkerLost, match="engine 1 has died"):
        with Watchdog([broken, *after(3, "engine 1 has died")], poll_interval_s=0.05):
            time.sleep(30)
    assert capsys.readouterr().out.count("the watchdog could not look: TypeError: no such attribute") == 1
    with pytest.raises(WorkerLost, match=r"a worker could not be looked at for \d s \(TypeError: no such attribute\)"):
        with Watchdog([broken], poll_interval_s=0.05, patience_s=0.3):
            time.sleep(30)


class Post:
    """A mailbox in a dict."""

    def __init__(self) -> None:
        self.words: dict = {}

    def put(self, name: str, word: object) -> None:
        self.words[name] = word

    def get(self, name: str) -> object:
        return self.words.get(name)


def test_the_beat_goes_on_and_says_where() -> None:
    post = Post()
    with Watchdog([], poll_interval_s=0.05, mailbox=post, phase=lambda: "the rollouts of step 4"):
        time.sleep(0.5)
    assert post.words["beat"]["number"] > 2 and post.words["beat"]["phase"] == "the rollouts of step 4"


def test_what_was_found_is_told_to_the_driver() -> None:
    post = Post()
    with pytest.raises(WorkerLost):
        with Watchdog(after(1, "engine 1 has died"), poll_interval_s=0.05, mailbox=post):
            time.sleep(30)
    assert post.words["problem"] == "engine 1 has died"


def test_a_signal_is_heard_when_the_trainer_can_be_stopped() -> None:
    post, can = Post(), threading.Event()
    post.put("stop", "SIGTERM")
    with pytest.raises(StopAsked, match="stopped by SIGTERM"):
        with Watchdog([], poll_interval_s=0.05, mailbox=post, stoppable=can.is_set):
            time.sleep(0.5)  # an update, which goes on to its end
            can.set()
            time.sleep(30)


def test_a_mailbox_that_fails_is_no_problem() -> None:
    class Broken(Post):
        def put(self, name: str, word: object) -> None:
            raise ConnectionError

        get = put  # type: ignore[assignment]

    with Watchdog([], poll_interval_s=0.05, mailbox=Broken()) as dog:
        time.sleep(0.3)
    assert dog.problem is None and dog.stop is None


def test_an_actor_that_ray_cannot_reach_is_not_called_dead_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With Ray's node process its actors are unreachable first; the driver names what has died."""
    import ray
    from ray.exceptions import ActorUnavailableError

    from wavalign_ext.trainer import watchdog

    now, fails = 100.0, True

    def get(_: object) -> None:
        if fails:
            raise ActorUnavailableError("no connection", None)

    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now)
    monkeypatch.setattr(ray, "wait", lambda refs, timeout: (refs, []))
    monkeypatch.setattr(ray, "get", get)
    probe = watchdog.actor_probe("worker 0", SimpleNamespace(__ray_ready__=SimpleNamespace(remote=object)))
    assert probe() is None
    now += watchdog.UNREACHED_S + 1
    told = probe()
    assert told is not None and told.startswith("worker 0 cannot be reached (")
    fails = False
    assert probe() is None
    fails = True
    assert probe() is None


def test_actors_of_ray() -> None:
    import ray

    from wavalign_ext.trainer.watchdog import actor_probe

    @ray.remote(num_cpus=0)
    class Worker:
        def work(self, seconds: float) -> None:
            time.sleep(seconds)

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        worker = Worker.remote()
        ray.get(worker.work.remote(0))
        probe = actor_probe("worker 0", worker)
        busy = worker.work.remote(60)
        assert probe() is None
        with pytest.raises(WorkerLost, match="worker 0 has died"):
            with Watchdog([probe], poll_interval_s=0.2):
                threading.Timer(0.5, ray.kill, [worker]).start()
                ray.get(ray.put(0)), ray.get(busy)
        stuck = Worker.remote()
        with pytest.raises(WorkerLost, match="worker 0 has died"):
            with Watchdog([probe], poll_interval_s=0.2):
                ray.get(stuck.work.remote(60))  # nothing here fails: only the watchdog ends it
    finally:
        ray.shutdown()


def test_an_actor_whose_event_loop_is_blocked_is_named_and_a_busy_one_is_not(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    import ray

    @ray.remote(num_cpus=0)
    class Worker:
        async def wait(self, begun: Path) -> None:
            begun.touch()
            await asyncio.sleep(1000)

        async def block(self, begun: Path) -> None:
            begun.touch()
            time.sleep(1000)

    def until(done: Callable[[], bool]) -> None:
        ends = time.monotonic() + 120
        while not done():
            assert time.monotonic() < ends
            time.sleep(0.05)

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        busy, blocked = Worker.remote(), Worker.remote()
        work = [busy.wait.remote(tmp_path / "busy"), blocked.block.remote(tmp_path / "blocked")]
        until(lambda: (tmp_path / "busy").exists() and (tmp_path / "blocked").exists())
        probes = [watchdog.actor_probe(name, actor, 120) for name, actor in (("busy", busy), ("blocked", blocked))]
        assert [probe() for probe in probes] == [None, None]
        clock.now += 121
        until(lambda: probes[0]() is None)
        said = probes[1]()
        assert said is not None and said.startswith("blocked has not answered for 121 s") and len(work) == 2
    finally:
        ray.shutdown()
