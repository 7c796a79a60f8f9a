"""A small random model that hears through an encoder, in stock verl: rollouts, anchors, held-out NLL, export."""

from pathlib import Path

import pytest
import torch
from ears_world import CODES, build, write_rows
from jobs import Job
from transformers import AutoModelForCausalLM

from wavalign_ext.checkpoints.export import export

pytestmark = pytest.mark.e2e
HEARD = [(9,), (4, 12), (17,), (1,), (30,), (8, 8), (22,), (5,)]  # vectors of each recording of each row
STEPS = 2


@pytest.mark.parametrize("speaks", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["speech", "text alone"])
def test_two_steps_and_what_is_exported(speaks: bool, tmp_path: Path) -> None:
    world = build(tmp_path / "world", speaks=speaks)
    rows = write_rows(world, HEARD, speaks=speaks)
    codec = ["wavalign.codec.type=twin", f"+wavalign.codec.codes={CODES}"] if speaks else ["wavalign.codec.type=none"]
    job = Job(
        tmp_path / "run",
        "+recipe=wavalign",
        "wavalign/hardware=cpu",
        f"wavalign.layout={world / 'layout.yaml'}",
        f"actor_rollout_ref.model.path={world / 'model'}",
        f"data.train_files={rows}",
        f"data.val_files={rows}",
        f"wavalign.audio_root={world}",
        *codec,
        "~wavalign.codec.path" if not speaks else "wavalign.codec.path=none",
        "wavalign.input_codec=null",
        "~wavalign.reward.terms.semantic",
        "~wavalign.reward.terms.manner",
        "+wavalign.reward.terms.lottery={weight: 1}",
        "reward.reward_manager.module.path=pkg://twin_parts",
        "reward.reward_manager.name=RecordingRewardManager",
        "reward.num_workers=1",
        "data.train_batch_size=4",
        "data.max_prompt_length=128",
        "data.max_response_length=48",
        "actor_rollout_ref.rollout.max_model_len=256",
        "actor_rollout_ref.rollout.max_num_seqs=8",
        "actor_rollout_ref.actor.optim.lr=1e-2",
        f"trainer.total_training_steps={STEPS}",
        f"trainer.save_freq={STEPS}",
        f"trainer.test_freq={STEPS}",
        limit_s=600,
        VERL_USE_EXTERNAL_MODULES="twin_parts",
    ).succeed()
    for step in range(1, STEPS + 1):
        metrics = job.metrics[step]
        assert metrics["training/rollout_probs_diff_mean"] < 1e-5
        assert metrics["wavalign/rows_anchor"] == 4 and metrics["actor/grad_norm"] > 0
        assert (metrics["wavalign/tokens_speech"] > 0) == speaks and metrics["wavalign/tokens_text"] > 0
        assert (metrics["actor/anchor_nll_speech"] > 0) == speaks and metrics["actor/anchor_nll_text"] > 0
    assert job.metrics[STEPS]["val-anchor/nll_text"] < job.metrics[0]["val-anchor/nll_text"]

    export(job.folder, tmp_path / "exported")
    before, after = (
        dict(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict())
        for folder in (world / "model", tmp_path / "exported")
    )
    assert before.keys() == after.keys()
    learnt = [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert {name for name in before if name.startswith("audio_projection.")} <= set(learnt)
