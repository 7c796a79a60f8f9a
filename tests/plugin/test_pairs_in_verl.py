"""A two-stream model in verl's training worker: what it scores, what it learns, what a text-only preference leaves."""

from pathlib import Path
from typing import Any

import forked
import pytest
import torch

HERE = Path(__file__).parent
RELATIVE = 1e-5
KL = ("wavalign.kl.text=0.05", "wavalign.kl.speech=0.02")
PLAIN = "actor_rollout_ref.model.use_fused_kernels=false"
PACKED = "actor_rollout_ref.model.use_remove_padding=true"
SAVING = "actor_rollout_ref.model.enable_gradient_checkpointing=true"
AUDIO = ("audio_layers", "audio_head", "audio_norm")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a tokenizer that verl can load."""
    from transformers import Qwen2Tokenizer
    from two_streams import make

    made = tmp_path_factory.mktemp("pairs")
    make(made, text=60, codes=30, ends=2, delay=3, shared_rows=2)
    Qwen2Tokenizer().save_pretrained(made)
    return made


def replay(model: Path, out: Path, *overrides: str, ranks: int = 1, micro: str = "2", **environment: str) -> Any:
    environment = {"VERL_PLATFORM": "cpu", "OMP_NUM_THREADS": "1"} | environment
    arguments = [str(model), micro, str(out), *KL, *overrides]
    done = forked.run(HERE / "replay_pairs.py", *arguments, ranks=ranks, **environment)
    assert done.returncode == 0, done.stderr[-8000:]
    return torch.load(out, weights_only=False)


def same(found: dict[str, Any], wanted: dict[str, Any], relative: float = RELATIVE) -> None:
    for name, expected in wanted["grads"].items():
        difference = (found["grads"][name] - expected).norm() / expected.norm()
        assert difference < relative, f"{name}: {difference:.1e}"
    assert found["loss"] == pytest.approx(wanted["loss"], rel=relative)


@pytest.fixture(scope="session")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return replay(folder, tmp_path_factory.mktemp("whole") / "out.pt", micro="dynamic120")


def test_both_streams_are_scored_as_the_model_itself_scores_them(whole: Any) -> None:
    wanted = torch.cat(whole["wanted"])
    said = wanted != 0  # the blanks of the delay are never said, and have no score
    found = whole["log_probs"][: len(wanted)]
    assert (found - wanted)[said].abs().max() < 1e-5 and said.sum() > 60
    assert whole["entropy"].isfinite().all()


def test_every_parameter_of_both_branches_learns(whole: Any) -> None:
    assert all(gradient.norm() > 0 for gradient in whole["grads"].values())


@pytest.mark.parametrize(
    ("ranks", "micro", "overrides"),
    [
        (1, "1", (PACKED,)),
        (2, "2", (PACKED, SAVING)),
        pytest.param(1, "4", (PLAIN,), marks=pytest.mark.slow),
        pytest.param(2, "dynamic60", (PLAIN, PACKED), marks=pytest.mark.slow),
    ],
)
def test_packing_heads_ranks_and_micro_batches_change_nothing(
    folder: Path, whole: Any, tmp_path: Path, ranks: int, micro: str, overrides: tuple[str, ...]
) -> None:
    same(replay(folder, tmp_path / "out.pt", *overrides, ranks=ranks, micro=micro), whole)


@pytest.mark.parametrize("overrides", [(), pytest.param((PLAIN,), marks=pytest.mark.slow)])
def test_a_preference_for_text_leaves_the_audio_branch_alone(
    folder: Path, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    """Rollouts alone, λ = 1, no KL: exactly 0 for what the audio branch has of its own, and not for what it shares."""
    found = replay(folder, tmp_path / "out.pt", *overrides, ANCHORS="0", LAMBDA="1.0", TOKENS="text")
    own = [name for name in found["grads"] if any(part in name for part in AUDIO)]
    assert len(own) > 10
    for name, gradient in found["grads"].items():
        moved = 0.0 if gradient is None else float(gradient.abs().max())
        assert (moved == 0) == (name in own), f"{name}: {moved}"


@pytest.mark.slow
def test_lora_adapts_both_branches_but_no_head(folder: Path, tmp_path: Path) -> None:
    lora = ["actor_rollout_ref.model.lora_rank=4", "actor_rollout_ref.model.lora_alpha=8"]
    lora += ["actor_rollout_ref.model.exclude_modules=.*audio_head"]
    found = replay(folder, tmp_path / "out.pt", *lora)
    names = [name for name in found["grads"] if "lora_B" in name]
    assert any("audio_layers" in name for name in names) and any(".layers.0" in name for name in names)
    assert not any("head" in name for name in found["grads"])
    assert all(found["grads"][name].norm() > 0 for name in names)
