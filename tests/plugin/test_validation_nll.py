"""The held-out targets' NLL is the mean over tokens of each modality, whatever rows pad the batch."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict


def test_it_is_the_mean_over_the_targets_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    import verl.trainer.ppo.v1.trainer_sync  # noqa: F401  (the plugin registers our trainer behind it)

    from wavalign_ext.method.anchor import supervised_row
    from wavalign_ext.method.token_weights import ANCHOR
    from wavalign_ext.trainer import scoring, validation_nll

    targets, prompts = [[5, 11, 12, 1], [6, 13, 14, 1], [7, 1]], [[2, 3], [2, 3, 4], [2]]
    modality = [(torch.tensor(target) >= 10).long() for target in targets]
    drawn = [torch.tensor(target) != 14 for target in targets]  # 14 is forced
    rows = [supervised_row(*parts) for parts in zip(prompts, targets, [ANCHOR] * 3, modality, drawn, strict=True)]
    queue: dict[str, Any] = {}

    def put(keys: list[str], fields: TensorDict, **_: Any) -> None:
        queue.update(keys=keys, fields=fields)

    def compute_log_prob(meta: Any) -> None:
        """−1 for a text token, −4 for a speech token; 100 at the prompt, at a forced id and in rows that fill up."""
        queue["temperature"] = meta.extra_info["temperature"]
        full = []
        for prompt, kinds, mask in zip(prompts, modality, drawn, strict=True):
            logp = torch.where(kinds == 1, -4.0, -1.0).where(mask, 100.0)
            full.append(torch.cat([torch.full((len(prompt) - 1,), 100.0), logp, torch.tensor([100.0])]))
        queue["log_probs"] = torch.nested.as_nested_tensor(full, layout=torch.jagged)

    def get(keys: list[str], *_: Any, **__: Any) -> Any:
        mask = torch.nested.as_nested_tensor([torch.ones(len(t)).long() for t in targets], layout=torch.jagged)
        return {"log_probs": queue["log_probs"], "response_mask": mask}

    fake = SimpleNamespace(kv_batch_put=put, kv_batch_get=get, kv_clear=lambda **cleared: queue.update(cleared=cleared))
    monkeypatch.setattr(scoring, "tq", fake)
    monkeypatch.setattr(validation_nll, "_target_rows", lambda trainer: list(rows))
    rollout = SimpleNamespace(log_prob_use_dynamic_bsz=True, log_prob_micro_batch_size_per_gpu=None)
    trainer = SimpleNamespace(
        config=SimpleNamespace(actor_rollout_ref=SimpleNamespace(rollout=rollout)),
        actor_rollout_wg=SimpleNamespace(world_size=2, compute_log_prob=compute_log_prob),
        layout=SimpleNamespace(padding=[1]),
        wav=SimpleNamespace(boundary_modality="speech"),
    )
    assert validation_nll.held_out_nll(trainer) == {"val-anchor/nll_text": 1.0, "val-anchor/nll_speech": 4.0}
    assert len(queue["keys"]) == 4 and queue["temperature"] == 1.0  # filled up to two ranks
    assert queue["cleared"]["keys"] == queue["keys"]  # nothing stays in the queue
