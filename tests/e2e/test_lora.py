"""LoRA through the whole loop: adapters are trained by the method, and vLLM samples from what was trained."""

import json
from pathlib import Path

import pytest
from jobs import Job

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
STEPS = 3


def test_adapters_are_trained_and_reach_the_rollouts(pocket: Path, tmp_path: Path) -> None:
    job = Job(
        tmp_path / "run",
        "+recipe=wavalign",
        "actor_rollout_ref.model.lora_rank=8",
        "actor_rollout_ref.model.lora_alpha=32",
        "actor_rollout_ref.rollout.load_format=safetensors",
        "actor_rollout_ref.rollout.layered_summon=true",
        "actor_rollout_ref.actor.optim.lr=3.0e-3",
        "actor_rollout_ref.actor.optim.lr_warmup_steps=0",
        "data.train_batch_size=4",
        f"trainer.total_training_steps={STEPS}",
        f"trainer.save_freq={STEPS}",
        "trainer.test_freq=-1",
        "trainer.val_before_train=false",
        limit_s=600,
    ).succeed()
    first, *_, last = (job.metrics[step] for step in range(1, STEPS + 1))
    gap = last["training/rollout_probs_diff_mean"]
    print(f"{job.wall_s:.0f} s; KL on speech {last['wavalign/kl_speech']:.1e}, rollout against actor {gap:.1e}")
    assert first["wavalign/kl_speech"] == pytest.approx(0, abs=1e-6)  # the reference is the base without adapters
    assert last["wavalign/kl_speech"] > 1e-4  # they have moved the policy
    for metrics in (job.metrics[step] for step in range(1, STEPS + 1)):
        # Were the adapters missing in vLLM, this would be as large as they have moved the policy.
        assert metrics["training/rollout_probs_diff_mean"] < 1e-4
        assert metrics["actor/grad_norm"] > 0 and metrics["wavalign/rows_anchor"] == 4
    actor = tmp_path / "run" / f"global_step_{STEPS}" / "actor"
    assert json.loads((actor / "lora_train_meta.json").read_text())["r"] == 8
