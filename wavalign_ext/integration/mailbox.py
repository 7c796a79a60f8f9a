"""Words between the driver and the task runner of one run, through Ray's own store: neither waits for the other.

The task runner's only thread for calls is busy with the run, so an actor's method would not be heard.
"""

import json
from typing import Any

NAMESPACE = b"wavalign"
BEAT, PROBLEM, STOP = "beat", "problem", "stop"


class Mailbox:
    """One run's words, by name. Needs a Ray that is initialised; a call may wait as long as Ray's head does."""

    def __init__(self) -> None:
        import ray

        self.job = ray.get_runtime_context().get_job_id()

    def put(self, name: str, value: Any) -> None:
        """Leave a word; it replaces the one before."""
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(f"{self.job}/{name}".encode(), json.dumps(value).encode(), overwrite=True, namespace=NAMESPACE)

    def get(self, name: str) -> Any:
        """The word left last, or None."""
        from ray.experimental.internal_kv import _internal_kv_get

        found = _internal_kv_get(f"{self.job}/{name}".encode(), namespace=NAMESPACE)
        return None if found is None else json.loads(found)
