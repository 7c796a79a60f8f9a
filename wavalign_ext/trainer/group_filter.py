"""verl's dynamic sampling (``algorithm.filter_groups``), with rewards that may be missing.

verl evicts a prompt whose rollouts all have the same value and asks for another one. It takes NaN for a value like any
other, and None, which a term that failed has, ends the run.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import transfer_queue as tq
from verl.trainer.ppo.v1.replay_buffer import FILTER_GROUPS_REWARD_METRIC, ReplayBuffer


class ScoredGroups(ReplayBuffer):
    """Evicts a prompt whose scored rollouts all have the same value.

    One with fewer than two scored rollouts stays, and trains on its anchor: were it evicted, a judge that is down would
    be asked for ever.
    """

    def _dapo_filtered_keys(self, partition_id: str) -> tuple[set[str], Counter]:
        """The base class's: prompts to evict, and how many of them by their value."""
        if partition_id == "val" or self.filter_groups_metric is None:
            return set(), Counter()
        finished = self.finished_keys[partition_id]
        known = self._dapo_classification_cache[partition_id]  # a finished group does not change
        for uid in known.keys() - finished:
            del known[uid]
        new = finished - known.keys()
        values = self._values(partition_id, new)
        known.update({uid: shared_value(values[uid]) for uid in new})
        evicted = {uid: value for uid, value in known.items() if value is not None}
        return set(evicted), Counter(evicted.values())

    def _values(self, partition_id: str, uids: set[str]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = defaultdict(list)
        keys = [key for key in self.partitions[partition_id] if key.split("_")[0] in uids]
        if not keys:
            return found
        metric = self.filter_groups_metric
        field = "rm_scores" if metric == FILTER_GROUPS_REWARD_METRIC else "extra_fields"
        column = list(tq.kv_batch_get(keys=keys, partition_id=partition_id, select_fields=[field])[field])
        for key, value in zip(keys, column, strict=True):
            value = getattr(value, "data", value) if field == "extra_fields" else value.sum().item()
            found[key.split("_")[0]].append(value["reward_extra_info"][metric] if isinstance(value, dict) else value)
        return found


def shared_value(values: Sequence[float | None]) -> float | None:
    """What all scored rollouts of a prompt have in common; None: they differ, or fewer than two have a score."""
    scored = [float(value) for value in values if value is not None and not math.isnan(value)]
    return scored[0] if len(scored) > 1 and min(scored) == max(scored) else None
