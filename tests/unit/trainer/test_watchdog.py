"""A lost worker ends the block that waits for it, with its name, soon; a healthy one does not."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from wavalign_ext.trainer import watchdog
from wavalign_ext.trainer.watchdog import Watchdog, WorkerLost, progress_probe, server_probe


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


def test_a_step_has_a_limit(clock: SimpleNamespace) -> None:
    step = 3
    probe = progress_probe(lambda: step, step_timeout_s=20)
    clock.now += 20
    assert probe() is None
    clock.now += 1
    assert probe() == "step 3 has taken longer than wavalign.watchdog.step_timeout_s=20"
    step = 4
    assert probe() is None
    clock.now += 21
    assert probe() == "step 4 has taken longer than wavalign.watchdog.step_timeout_s=20"


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
