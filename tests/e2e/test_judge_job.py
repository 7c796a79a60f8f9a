"""A job whose judge fails in three of ten requests goes on, says how many scores are missing, and shows no key."""

import json
import math
import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import pytest
from jobs import SMALL, Job

from wavalign_ext.report import main as report

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
STEPS, ROWS, HELD_OUT = 2, 8 * 4, 8
KEY, KEY_ENV = "sk-geheim-0123456789-geheim", "WAVALIGN_TEST_JUDGE_KEY"


class Judge(BaseHTTPRequestHandler):
    """Of every ten requests one is refused, one gets nonsense, one is dropped; the others get a score."""

    lock, asked, refused = Lock(), 0, 0
    keys: set[str] = set()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with Judge.lock:
            number, Judge.asked = Judge.asked, Judge.asked + 1
            Judge.keys.add(self.headers["Authorization"])
            Judge.refused += number % 10 in (2, 5, 8)
        assert any(part["type"] == "input_audio" for part in body["messages"][1]["content"])
        if number % 10 == 2:
            return self._send(500, f"overloaded, you sent {self.headers['Authorization']}".encode())
        if number % 10 == 5:
            return self._send(200, b'{"choices": [')
        if number % 10 == 8:
            return self.connection.close()
        content = f"Fine. <score>{1 + number % 5}</score>"
        self._send(200, json.dumps({"choices": [{"message": {"content": content}}]}).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def job(pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    endpoint = f'{{url: "{url}", api_key_env: {KEY_ENV}, retries: 0, deadline_s: 30}}'
    judge = f"{{weight: 1, aspect: holistic, model: loopback, endpoint: {endpoint}}}"
    os.environ[KEY_ENV] = KEY
    try:
        overrides = [f"trainer.total_training_steps={STEPS}", "trainer.val_before_train=false", "trainer.save_freq=-1"]
        folder = tmp_path_factory.mktemp("job") / "run"
        yield Job(folder, *SMALL, f"+wavalign.reward.terms.judge={judge}", *overrides).succeed()
    finally:
        del os.environ[KEY_ENV]
        server.shutdown()
        server.server_close()


def test_every_answer_is_scored_or_missing_and_the_share_is_reported(job: Any) -> None:
    assert Judge.asked == STEPS * ROWS + HELD_OUT and Judge.keys == {f"Bearer {KEY}"}
    missing = 0
    for step in range(1, STEPS + 1):
        rows, metrics = job.rollouts(step), job.metrics[step]
        without = [row for row in rows if row["score"] is None]
        missing += len(without)
        assert all(row["missing"].startswith("judge: ") and row["score_judge"] is None for row in without)
        assert all(1 <= row["score"] <= 5 for row in rows if row not in without)
        assert 0.2 < len(without) / ROWS < 0.4
        assert metrics["wavalign/rewards_missing_share"] == pytest.approx(len(without) / ROWS)
        assert metrics["wavalign/rewards_missing"] == len(without)
        assert metrics["reward_missing/judge"] == pytest.approx(len(without) / ROWS)
        assert metrics["reward_notes/judge_failures"] == pytest.approx(len(without) / ROWS)
        assert metrics["reward_missing/semantic"] == 0 and 1 <= metrics["reward/judge"] <= 5
    held_out = [json.loads(line) for line in (job.folder / "validation" / f"{STEPS}.jsonl").read_text().splitlines()]
    assert missing + sum(row["score"] is None for row in held_out) == Judge.refused


def test_the_run_goes_on(job: Any) -> None:
    assert sorted(job.metrics) == list(range(1, STEPS + 1))
    for metrics in job.metrics.values():
        assert all(math.isfinite(value) for value in metrics.values() if isinstance(value, int | float))
        assert metrics["actor/grad_norm"] > 0 and metrics["wavalign/lambda"] > 0
        assert metrics["wavalign/nothing_scored"] == 0


def test_the_key_is_in_no_output(job: Any, tmp_path: Path) -> None:
    assert report([str(job.folder), "--out", str(tmp_path / "report.html")]) == 0
    ray = Path("/tmp/ray/session_latest/logs")
    files = [file for folder in (job.folder.parent, tmp_path, ray) for file in folder.rglob("*") if file.is_file()]
    assert len(files) > 20
    assert [str(file) for file in files if KEY.encode() in file.read_bytes()] == []
