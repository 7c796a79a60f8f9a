"""A step read from verl's queue: rollouts without copies, what drives which token, what is kept for the update."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tensordict.tensorclass import NonTensorStack

NAN = float("nan")


class Layout:
    """Ids from 10 are speech, 9 is a boundary, 1 ends an answer."""

    eos_ids = (1,)

    def modality(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.where(ids >= 10, 1, torch.where(ids == 9, 2, 0)).to(torch.int8)


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Three rollouts of two prompts and a copy of verl's; the second one has no score."""
    import verl.trainer.ppo.v1.trainer_sync  # noqa: F401  (the plugin registers our trainer behind it)

    from wavalign_ext.trainer import step

    ids = [torch.tensor(row) for row in ([5, 9, 11, 9, 1], [5, 12], [6, 7, 10, 1], [5, 9, 11, 9, 1])]
    scores = [
        torch.tensor([0.0] * (len(row) - 1) + [score]) for row, score in zip(ids, (5.0, NAN, 2.0, 5.0), strict=True)
    ]
    infos = [{"reward_speech": 4.0}, {"reward_speech": 3.0}, {"reward_speech": None}]
    stored: dict[str, Any] = {}

    def nested(rows: list[torch.Tensor]) -> torch.Tensor:
        return torch.nested.as_nested_tensor(rows, layout=torch.jagged)

    def get(keys: list[str], partition_id: str, select_fields: list[str]) -> Any:
        rows = [int(key) for key in keys]
        if select_fields == ["extra_fields"]:
            return {"extra_fields": [{"reward_extra_info": infos[row]} for row in rows]}
        columns: dict[str, Any] = {
            "responses": nested(ids),
            "response_mask": nested([torch.ones_like(row) for row in ids]),
            "rm_scores": nested(scores),
            "old_log_probs": nested([-torch.arange(1.0, len(row) + 1) for row in ids]),
            "ref_log_prob": nested([-torch.ones(len(row)) for row in ids]),
            "uid": NonTensorStack("a", "a", "b", "a"),
        }
        return TensorDict(columns, batch_size=len(rows))

    monkeypatch.setattr(step, "tq", SimpleNamespace(kv_batch_get=get, kv_batch_put=lambda **put: stored.update(put)))
    tags = [{}, {}, {}, {"is_padding": True}]
    batch = SimpleNamespace(keys=["0", "1", "2", "3"], tags=tags, partition_id="train")
    return {"step": step.Step.read(batch, Layout(), "speech"), "stored": stored}


def config(tokens: str, **reward: Any) -> Any:
    from wavalign_ext.config import PreferenceConfig, RewardConfig, WavAlignConfig

    return WavAlignConfig(
        layout="pocket", codec={}, preference=PreferenceConfig(tokens=tokens), reward=RewardConfig(**reward)
    )


def test_the_rollouts_are_those_that_verl_did_not_copy(queue: dict[str, Any]) -> None:
    step = queue["step"]
    assert step.real == [0, 1, 2] and step.groups == ["a", "a", "b"]
    rollouts = step.rollouts(Layout.eos_ids)
    assert rollouts.ended.tolist() == [True, False, True]
    assert rollouts.masks["text"].sum(-1).tolist() == [2, 1, 3] and rollouts.masks["speech"].sum(-1).tolist() == [
        3,
        1,
        1,
    ]
    assert rollouts.entropy is None and rollouts.logp is not None and rollouts.logp.shape == (3, 5)


def test_the_preference_is_on_the_tokens_that_the_key_says(queue: dict[str, Any]) -> None:
    step = queue["step"]
    counts = {tokens: step.preferred(config(tokens))[0].sum().item() for tokens in ("text", "speech", "all")}
    assert counts == {"text": 2 + 1 + 3 + 2, "speech": 3 + 1 + 1 + 3, "all": 5 + 2 + 4 + 5}


def test_a_route_s_rewards_are_of_rollouts_with_a_score_and_of_no_copy(queue: dict[str, Any]) -> None:
    terms = {"a": {"weight": 1.0}, "b": {"weight": 1.0}}
    _, routes, kind = queue["step"].preferred(config("all", terms=terms, routes={"speech": ["b"]}))
    ((mask, rewards),) = routes
    assert kind == "grpo" and torch.equal(mask, queue["step"].speech)
    assert rewards[0] == 4.0 and rewards[1:].isnan().all()  # no total, no term, a copy


def test_what_is_kept_for_the_update(queue: dict[str, Any]) -> None:
    queue["step"].store()
    fields = queue["stored"]["fields"]
    assert fields["scored"].tolist() == [1, 0, 1, 1]
    assert [row.tolist() for row in fields["modality"].unbind()][0] == [0, 2, 1, 2, 0]
    assert fields["rm_scores"].unbind()[1].sum() == pytest.approx((5 + 2 + 5) / 3)  # verl's statistics take no NaN
