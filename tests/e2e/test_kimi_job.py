"""Kimi-Audio's twin through stock verl: real ids, vocabulary, template and features, two full steps, and exported."""

from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import Job
from transformers import AutoModelForCausalLM, AutoTokenizer
from twins import build_twin, write_rows

from wavalign_ext import parallel
from wavalign_ext.checkpoints.export import export
from wavalign_ext.speech.layout import load_layout

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
PROMPTS, ROLLOUTS, IDS, STEPS = 2, 4, 96, 2
SMALL = [
    "wavalign/hardware=cpu",
    "~wavalign/size",
    "wavalign.codec.type=twin",
    "wavalign.codec.path=none",
    "wavalign.audio_sampling.top_k=null",  # or the sampler's distribution is not the policy's
    "~wavalign.reward.terms.holistic",
    "+wavalign.reward.terms.lottery={weight: 1}",
    "reward.reward_manager.module.path=pkg://twin_parts",
    "reward.reward_manager.name=RecordingRewardManager",
    f"data.train_batch_size={PROMPTS}",
    "data.max_prompt_length=256",
    f"data.max_response_length={IDS}",
    f"actor_rollout_ref.rollout.max_model_len={256 + IDS}",
    "actor_rollout_ref.rollout.max_num_seqs=8",
    "actor_rollout_ref.rollout.top_p=1.0",
    "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes=64",
    "actor_rollout_ref.actor.optim.lr=1e-2",
    "actor_rollout_ref.actor.optim.lr_warmup_steps=0",
    f"trainer.total_training_steps={STEPS}",
    "trainer.val_before_train=false",
    f"trainer.save_freq={STEPS}",
    f"trainer.test_freq={STEPS}",
]


def test_two_steps_and_what_is_exported(tmp_path: Path) -> None:
    model = build_twin("kimi_audio", tmp_path / "model")
    rows = write_rows("kimi_audio", tmp_path / "rows.parquet", rows=4, codes=24)
    job = Job(
        tmp_path / "run",
        "+recipe=wavalign_kimi_audio",
        f"actor_rollout_ref.model.path={model}",
        f"data.train_files={rows}",
        f"data.val_files={rows}",
        f"wavalign.audio_root={tmp_path}",
        *SMALL,
        limit_s=850,
        VERL_USE_EXTERNAL_MODULES="twin_parts",
    ).succeed()
    print(f"kimi_audio: {job.wall_s:.0f} s")
    layout: Any = load_layout("kimi_audio").resolve(AutoTokenizer.from_pretrained(model))
    for step in range(1, STEPS + 1):
        metrics = job.metrics[step]
        assert metrics["training/rollout_probs_diff_mean"] < 1e-5  # as every twin
        assert metrics["wavalign/rows_anchor"] == PROMPTS and metrics["actor/grad_norm"] > 0
        assert metrics["actor/anchor_nll_text"] > 0 and metrics["actor/anchor_nll_speech"] > 0
        rollouts = job.rollouts(step)
        assert len(rollouts) == PROMPTS * ROLLOUTS and any(row["speech_codes"] for row in rollouts)
    assert layout.delay == 6
    parallel.register()
    export(job.folder, tmp_path / "exported")
    before, after = (
        dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict())
        for folder in (model, tmp_path / "exported")
    )
    assert before.keys() == after.keys()
    learnt = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert {name for name in before if name.startswith("audio_projection.")} <= set(learnt)
    assert {"audio_head.weight", "lm_head.weight", "model.embed_tokens.weight"} <= set(learnt)
