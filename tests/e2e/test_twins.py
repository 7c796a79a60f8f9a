"""Geometry twins through stock verl: two steps of a real model's recipe on a CPU, with its vocabulary and layout."""

from pathlib import Path

import pytest
from jobs import Job
from transformers import AutoTokenizer
from twins import TWINS, build_twin, twin_layout, write_rows

from wavalign_ext.speech.layout import BOUNDARY, SPEECH, TEXT, ResolvedLayout

# Slow: make test has the default job, which is of their family, and one that hears.
pytestmark = [pytest.mark.e2e, pytest.mark.slow]
PROMPTS, ROLLOUTS, TOKENS = 2, 4, 48
SMALL = [
    "wavalign/hardware=cpu",
    "~wavalign/size",
    "wavalign.codec.type=twin",
    "wavalign.codec.path=none",
    "~wavalign.reward.terms.holistic",
    "+wavalign.reward.terms.lottery={weight: 1}",
    "reward.reward_manager.module.path=pkg://twin_parts",
    "reward.reward_manager.name=RecordingRewardManager",
    f"data.train_batch_size={PROMPTS}",
    "data.max_prompt_length=256",
    f"data.max_response_length={TOKENS}",
    f"actor_rollout_ref.rollout.max_model_len={256 + TOKENS}",
    "actor_rollout_ref.rollout.max_num_seqs=8",
    "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes=64",  # the largest tensor, at once
    "trainer.total_training_steps=2",
    "trainer.val_before_train=false",
    "trainer.save_freq=-1",
    "trainer.test_freq=-1",
]
RECIPES = {"glm4_voice": "wavalign_glm4_voice", "vita_audio_plus_vanilla": "wavalign_vita_audio_plus"}
# A random model breaks the schedule soon; with constrained_decoding it cannot, and the way back is exact.
CASES = [
    ("vita_audio_balance", False),
    ("vita_audio_boost", True),
    ("vita_audio_plus_vanilla", False),
    ("glm4_voice", False),
    ("glm4_voice", True),
    ("step_audio2_mini", True),
]


def accounted(layout: ResolvedLayout, ids: list[int]) -> None:
    """Every token of a response is text, a code, a boundary, or the end; and split gives each stream in order."""
    found, kinds = layout.split(ids), layout.modality(ids).tolist()
    body = ids[: next((n for n, i in enumerate(ids) if i in layout.eos_ids), len(ids))]
    streams = {kind: [i for i, k in zip(body, kinds, strict=False) if k == kind] for kind in (TEXT, SPEECH, BOUNDARY)}
    assert found.text_ids == streams[TEXT]
    assert [code + layout.speech_start for code in found.codes] == streams[SPEECH]
    assert len(found.text_ids) + len(found.codes) + len(streams[BOUNDARY]) == len(body)
    assert len(ids) - len(body) in (0, 1)  # a rollout stops at its end token
    assert found.ended == (len(body) < len(ids))


@pytest.mark.parametrize(("name", "held"), CASES, ids=[f"{name}{', held' * held}" for name, held in CASES])
def test_two_steps(name: str, held: bool, tmp_path: Path) -> None:
    model = build_twin(name, tmp_path / "model")
    layout = twin_layout(name).resolve(AutoTokenizer.from_pretrained(model))
    rows = write_rows(name, tmp_path / "rows.parquet", rows=4, codes=24)
    job = Job(
        tmp_path / "run",
        f"+recipe={RECIPES.get(name, 'wavalign_vita_audio')}",
        f"layout@wavalign.layout={name}",
        f"actor_rollout_ref.model.path={model}",
        f"data.train_files={rows}",
        f"data.val_files={rows}",
        f"wavalign.audio_root={tmp_path}",
        f"wavalign.constrained_decoding={str(held).lower()}",
        # Cut off by top_p or held, the sampler's distribution is not the policy's; without, the two must agree.
        f"actor_rollout_ref.rollout.top_p={0.9 if held else 1.0}",
        *SMALL,
        *TWINS[name].overrides,
        limit_s=600,
        VERL_USE_EXTERNAL_MODULES="twin_parts",
    ).succeed()
    print(f"{name}: {job.wall_s:.0f} s")
    for step in (1, 2):
        metrics = job.metrics[step]
        assert metrics["wavalign/rows_anchor"] == PROMPTS and metrics["actor/grad_norm"] > 0
        assert 0 < metrics["wavalign/lambda"] < 0.8
        if not held:
            assert metrics["training/rollout_probs_diff_mean"] < 1e-5
        assert metrics["wavalign/tokens_text"] > 1 and metrics["wavalign/tokens_speech"] > 1
        answers = [[int(i) for i in row["ids"].split()] for row in job.rollouts(step)]
        assert len(answers) == PROMPTS * ROLLOUTS and all(len(ids) <= TOKENS for ids in answers)
        assert any(layout.split(ids).ended for ids in answers)
        for row, ids in zip(job.rollouts(step), answers, strict=True):
            accounted(layout, ids)
            found = layout.split(ids)
            assert row["speech_codes"] == " ".join(map(str, found.codes))
            if held and found.ended:
                assert found.errors == [] and layout.target(found.text_ids, found.codes) == ids
            elif held:
                assert not found.errors or found.errors[0].startswith("the last chunk does not end")
