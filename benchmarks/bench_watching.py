"""What watching costs a healthy run: the CPU time of one look of the guard's and of the watchdog's, and its share.

As many idle actors as an 8-GPU run of the CPU preset's kind has stand in for its processes. Prints JSON.
"""

import argparse
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median
from typing import Any

import ray

from wavalign_ext.config import WatchdogConfig
from wavalign_ext.integration.guard import GLANCE_S, NOTE_EVERY, shared_names
from wavalign_ext.integration.mailbox import BEAT, STOP, Mailbox
from wavalign_ext.integration.processes import Processes, living, shared_memory
from wavalign_ext.trainer.watchdog import LISTEN_S, actor_probe, server_probe


class Well(BaseHTTPRequestHandler):
    """Answers as a healthy server does."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def cpu_ms(work: Callable[[], object], times: int) -> float:
    """Median CPU time of this thread in one call, in ms."""
    found = []
    for _ in range(times):
        began = time.thread_time()
        work()
        found.append(1000 * (time.thread_time() - began))
    return median(found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actors", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    settings = WatchdogConfig()
    ray.init(num_cpus=given.actors, include_dashboard=False)
    actors: list[Any] = [ray.remote(num_cpus=1)(type("Idle", (), {})).remote() for _ in range(given.actors)]
    ray.get([actor.__ray_ready__.remote() for actor in actors])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Well)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_port}"
    silent_s = 2 * settings.heartbeat_timeout_s  # each is asked as a reward worker is, which costs most
    probes = [actor_probe(f"actor {n}", actor, silent_s) for n, actor in enumerate(actors)]
    probes.append(server_probe("the server", address, settings.heartbeat_timeout_s))
    mailbox, watch = Mailbox(), Processes(time.monotonic, settings.heartbeat_timeout_s)
    parts = {
        "guard: processes and the beat": lambda: (watch.look(), mailbox.get(BEAT)),
        "guard: shared memory": lambda: shared_memory(living()),
        "guard: names in /dev/shm": shared_names,
        "watchdog: workers and the beat": lambda: ([p() for p in probes], mailbox.put(BEAT, {"number": 1})),
        "watchdog: a signal": lambda: mailbox.get(STOP),
    }
    cost = {name: cpu_ms(work, given.rounds) for name, work in parts.items()}
    poll_ms = 1000 * settings.poll_interval_s
    every = dict(zip(parts, (poll_ms, NOTE_EVERY * poll_ms, 1000 * GLANCE_S, poll_ms, 1000 * LISTEN_S), strict=True))
    share = sum(cost[name] / every[name] for name in parts)
    told = {name: f"{ms:.2f} ms each {every[name] / 1000:g} s" for name, ms in cost.items()}
    print(json.dumps({"actors": given.actors, **told, "share of one core": f"{share:.3%}"}, indent=1))
    ray.shutdown()


if __name__ == "__main__":
    main()
