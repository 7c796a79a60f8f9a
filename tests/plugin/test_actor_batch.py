"""The rows of one actor update: an anchor per prompt, padding to what ranks divide, weights that sum to one."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from tensordict.tensorclass import NonTensorStack

UIDS = ["a", "a", "b", "b", "b"]
PLACES = [7, 7, 4, 4, 4]  # rows of the data set
KEYS = [f"{uid}_{UIDS[:row].count(uid)}_0" for row, uid in enumerate(UIDS)]


class Layout:
    padding = (1,)
    layout = SimpleNamespace(encoder=None)

    def modality(self, ids: Any) -> torch.Tensor:
        return (torch.as_tensor(ids) >= 10).to(torch.int8)

    def drawn(self, ids: Any) -> torch.Tensor:
        return torch.as_tensor(ids) != 16  # forced, wherever it stands


def planned(
    monkeypatch: pytest.MonkeyPatch,
    ranks: int = 2,
    prompts: int = 2,
    skips: bool = True,
    gates: Any = None,
    vanished: Any = None,
    **wav: Any,
) -> Any:
    import verl.trainer.ppo.v1.trainer_sync  # noqa: F401  (the plugin registers our trainer behind it)

    from wavalign_ext.config import WavAlignConfig
    from wavalign_ext.trainer import actor_batch

    def nested(rows: list[Any]) -> torch.Tensor:
        return torch.nested.as_nested_tensor([torch.as_tensor(row) for row in rows], layout=torch.jagged)

    answers = [[5, 11, 1], [5, 1], [6, 12, 13, 1], [6, 1], [14, 1]]
    columns: dict[str, Any] = {
        "uid": NonTensorStack(*UIDS),
        "index": torch.tensor(PLACES),
        "prompts": nested([[2, 3]] * 2 + [[4, 3, 2]] * 3),
        "response_mask": nested([[1] * len(answer) for answer in answers]),
        "modality": nested([Layout().modality(answer).long() for answer in answers]),
        "scored": torch.tensor([1, 1, 1, 0, 1]),
        "pair": torch.tensor([0, 0, -1, 1, 1]),
    }

    def get(keys: list[str], *_: Any, select_fields: list[str]) -> Any:
        if select_fields == ["multi_modal_inputs"]:
            return {"multi_modal_inputs": [{"audio_features": KEYS.index(key)} for key in keys]}
        return TensorDict(columns, 5)

    monkeypatch.setattr(actor_batch, "tq", SimpleNamespace(kv_batch_get=get))
    actor = {"use_dynamic_bsz": True, "ppo_mini_batch_size": prompts, "ppo_epochs": 1, "data_loader_seed": 1}
    actor |= {"loss_agg_mode": "seq-mean-token-mean", "calculate_entropy": False, "entropy_coeff": 0}
    actor |= {"loss_scale_factor": None}
    rollout = {"temperature": 0.7, "calculate_log_probs": True}
    config = {"actor_rollout_ref": {"actor": actor, "rollout": rollout}, "data": {"max_response_length": 8}}
    trainer = SimpleNamespace(
        config=OmegaConf.create(config),
        wav=WavAlignConfig(layout="pocket", codec={}, **wav),
        layout=Layout(),
        targets={7: "seven", 4: "four"},
        target={"seven": [5, 15, 1], "four": [6, 16, 17, 1]}.__getitem__,
        actor_rollout_wg=SimpleNamespace(_dispatch_info={"actor": list(range(ranks))}),
        skips_old_log_probs=skips,
        use_reference_policy=True,
        lam=0.25,
        mixing=SimpleNamespace(last=SimpleNamespace(by_prompt=gates or {})),
        vanished=vanished or {},
        train_dataset="the data",
    )
    tags = [{"global_steps": 3, "seq_len": 6} for _ in UIDS]
    batch = SimpleNamespace(keys=KEYS, tags=tags, partition_id="train", fields=None)
    return actor_batch.ActorUpdate(trainer, batch)


def test_each_prompt_gets_its_own_target_behind_its_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(monkeypatch)
    assert plan.new_keys[:2] == ["a_2_0", "b_3_0"] and plan.anchors == 2
    assert [row["input_ids"].tolist() for row in plan.new_rows[:2]] == [[2, 3, 5, 15, 1], [4, 3, 2, 6, 16, 17, 1]]
    assert [row["modality"].tolist() for row in plan.new_rows[:2]] == [[0, 1, 0], [0, 1, 1, 0]]
    assert [tag["is_anchor"] for tag in plan.new_tags] == [True, True, False]


def test_a_prompt_without_rollouts_keeps_its_anchor(monkeypatch: pytest.MonkeyPatch) -> None:
    import verl.trainer.ppo.v1.trainer_sync  # noqa: F401

    from wavalign_ext.method.anchor import supervised_row
    from wavalign_ext.method.token_weights import ANCHOR
    from wavalign_ext.trainer import actor_batch

    def rows(trainer: Any, dataset: Any, targets: list[str], numbers: list[int]) -> list[dict[str, Any]]:
        assert (dataset, targets, numbers) == ("the data", ["seven"], [7])
        return [supervised_row([8, 8], [5, 15, 1], ANCHOR, Layout().modality([5, 15, 1]))]

    monkeypatch.setattr(actor_batch, "target_rows", rows)
    plan = planned(monkeypatch, ranks=1, prompts=3, vanished={"c": 7})
    assert plan.anchors == 3 and plan.new_keys[2] == "c_0_0"
    assert plan.new_rows[2]["input_ids"].tolist() == [8, 8, 5, 15, 1] and (plan.new_rows[2]["anchor_weight"] > 0).all()


def test_a_forced_id_of_a_target_has_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    row = planned(monkeypatch).new_rows[1]
    assert row["response_mask"].tolist() == [1, 0, 1, 1]
    assert (row["anchor_weight"] > 0).tolist() == [True, False, True, True]
    assert row["speech_weight"].tolist()[1] == 0


def test_an_anchor_hears_what_its_rollouts_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Layout, "layout", SimpleNamespace(encoder="some"))
    plan = planned(monkeypatch)
    assert [row["multi_modal_inputs"] for row in plan.new_rows] == [{"audio_features": 0}, {"audio_features": 2}, {}]


@pytest.mark.parametrize(("ranks", "prompts", "rows"), [(1, 2, 7), (2, 2, 8), (4, 2, 8), (1, 1, 8)])
def test_mini_batches_have_equally_many_rows_for_each_rank(
    monkeypatch: pytest.MonkeyPatch, ranks: int, prompts: int, rows: int
) -> None:
    plan = planned(monkeypatch, ranks, prompts)
    sizes = {len(mini_batch) for mini_batch in plan.mini_batches}
    assert sizes == {plan.rows_per_mini_batch} and plan.rows_per_mini_batch % ranks == 0
    meta = plan.meta(0.5)
    assert len(meta.keys) == rows and Counter(meta.keys).most_common(1)[0][1] == 1
    together = {key for key in meta.keys if not key.startswith("padding")}
    assert together == {*plan.keys, "a_2_0", "b_3_0"}


def test_every_stream_of_a_mini_batch_sums_to_one_and_padding_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(monkeypatch)
    rows = [*plan.rollout_columns, *plan.new_rows]
    for name, total in (
        ("preference_weight", 1.0),
        ("anchor_weight", 1.0),
        ("text_weight", 2.0),
        ("speech_weight", 2.0),
    ):
        assert sum(row[name].sum().item() for row in rows) == pytest.approx(total), name  # rollouts 1, anchors 1
    assert plan.rollout_columns[3]["preference_weight"].sum() == 0  # without a score
    assert all(plan.new_rows[-1][name].sum() == 0 for name in ("preference_weight", "anchor_weight", "text_weight"))
    assert [float(row["temperature"]) for row in rows] == pytest.approx([0.7] * 5 + [1.0] * 3)


@pytest.mark.parametrize("skips", [True, False])
def test_the_fields_that_travel_are_named(monkeypatch: pytest.MonkeyPatch, skips: bool) -> None:
    fields = planned(monkeypatch, skips=skips).meta(0.25).fields
    assert "ref_log_prob" in fields and ("rollout_log_probs" in fields) == skips == ("old_log_probs" not in fields)


def test_without_an_anchor_there_are_rollouts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(monkeypatch, ranks=1, mixing={"type": "fixed", "value": 1.0})
    assert plan.anchors == 0 and plan.new_rows == [] and plan.metrics()["wavalign/rows_rollout"] == 5


def test_rows_of_a_prompt_weigh_by_its_own_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer's λ is 0.25: a gate of 0.5 doubles the rollouts' weights, and one of 0 takes them out."""
    plain, gated = planned(monkeypatch), planned(monkeypatch, gates={"a": 0.5, "b": 0.0})
    for row, factor in enumerate([2.0, 2.0, 0.0, 0.0, 0.0]):
        wanted = factor * plain.rollout_columns[row]["preference_weight"]
        torch.testing.assert_close(gated.rollout_columns[row]["preference_weight"], wanted)
    for row, factor in ((0, 0.5 / 0.75), (1, 1 / 0.75)):
        torch.testing.assert_close(gated.new_rows[row]["anchor_weight"], factor * plain.new_rows[row]["anchor_weight"])
    assert gated.new_rows[-1]["preference_weight"].sum() == 0


@pytest.mark.parametrize("length_normalized", [False, True])
def test_under_pairs_a_row_weighs_by_its_tokens_and_the_mini_batch_s_pairs(
    monkeypatch: pytest.MonkeyPatch, length_normalized: bool
) -> None:
    preference = {"tokens": "all", "objective": "dpo", "pairs": {"length_normalized": length_normalized}}
    plan = planned(monkeypatch, preference=preference, skips=False)
    weights = [row["preference_weight"] for row in plan.rollout_columns]
    lengths = [3, 2, 4, 2, 2]
    for row, (weight, length) in enumerate(zip(weights, lengths, strict=True)):
        wanted = 0.0 if row == 2 else 1 / 2 / (length if length_normalized else 1)
        assert weight.tolist() == pytest.approx([wanted] * length)
    fields = plan.meta(0.25).fields
    assert "old_log_probs" not in fields and "advantages" in fields  # ρ is 1
