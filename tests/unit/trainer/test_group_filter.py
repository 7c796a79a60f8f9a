"""Dynamic sampling with missing scores: they are no value, and a judge that is down is not asked for ever."""

import math
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

NAN = math.nan


def filtered(monkeypatch: pytest.MonkeyPatch, groups: dict[str, list[Any]], metric: str = "reward") -> set[str]:
    """Prompts that the buffer would evict, of rollouts with these values."""
    import verl.trainer.ppo.v1.trainer_sync  # noqa: F401  (the plugin registers our trainer behind it)

    from wavalign_ext.trainer import group_filter

    made: Any = dict(trainer_mode="sync", trainer_config=OmegaConf.create(), max_off_policy_threshold=1)
    made |= dict(max_off_policy_strategy="drop", sampler_kwargs=OmegaConf.create(), refill_fn=lambda count: None)
    buffer = group_filter.ScoredGroups(**made, filter_groups_metric=metric)
    values = {f"{uid}_{n}_0": value for uid, row in groups.items() for n, value in enumerate(row)}
    buffer.partitions["train"] = {key: {} for key in values}
    buffer.finished_keys["train"] = set(groups)

    def kv_batch_get(keys: list[str], partition_id: str, select_fields: list[str]) -> dict[str, list[Any]]:
        (field,) = select_fields
        if field == "rm_scores":
            return {field: [torch.tensor([0.0, values[key]]) for key in keys]}
        return {field: [{"reward_extra_info": {metric: values[key]}} for key in keys]}

    monkeypatch.setattr(group_filter.tq, "kv_batch_get", kv_batch_get)
    evicted, counts = buffer._dapo_filtered_keys("train")
    assert sum(counts.values()) == len(evicted)
    assert buffer._dapo_filtered_keys("train")[0] == evicted  # and from what it remembers
    return evicted


@pytest.mark.parametrize(("metric", "missing"), [("reward", NAN), ("score_judge", None), ("score_judge", NAN)])
def test_a_missing_score_is_no_value(monkeypatch: pytest.MonkeyPatch, metric: str, missing: float | None) -> None:
    groups = {
        "differ": [1.0, 2.0, 2.0],
        "same": [2.0, 2.0, 2.0],
        "same_but_one": [2.0, missing, 2.0],
        "differ_but_one": [missing, 1.0, 3.0],
        "one_scored": [missing, 4.0, missing],
        "none_scored": [missing] * 3,
    }
    groups = {name.replace("_", "-"): values for name, values in groups.items()}  # keys are UID_SESSION_INDEX
    assert filtered(monkeypatch, groups, metric) == {"same", "same-but-one"}


def test_validation_is_not_filtered() -> None:
    import verl  # noqa: F401

    from wavalign_ext.trainer.group_filter import ScoredGroups

    made: Any = dict(trainer_mode="sync", trainer_config=OmegaConf.create(), max_off_policy_threshold=1)
    buffer = ScoredGroups(**made, max_off_policy_strategy="drop", sampler_kwargs=OmegaConf.create())
    assert buffer._dapo_filtered_keys("val")[0] == set()
