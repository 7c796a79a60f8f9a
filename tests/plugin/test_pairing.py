"""Pairs of a step's rollouts: best against worst, gaps from the log-probs of the step, what is said about them."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

NAN = float("nan")


def made(rewards: list[float], keys: list[str], real: list[int] | None = None) -> Any:
    """Rows of three tokens: text, speech, text; log-prob −(row + 1) on each, −1 under the reference."""
    import verl.trainer.ppo.v1.trainer_sync  # noqa: F401  (the plugin registers our trainer behind it)

    from wavalign_ext.trainer.step import Step

    count = len(keys)
    text = torch.tensor([[True, False, True]] * count)
    return Step(
        batch=SimpleNamespace(keys=keys),  # pyright: ignore[reportArgumentType]
        real=list(range(count)) if real is None else real,
        uids=[key.split("_")[0] for key in keys],
        modality=[],
        rewards=torch.tensor(rewards),
        scores=[],
        columns={
            "old_log_probs": -torch.arange(1.0, count + 1)[:, None].expand(count, 3),
            "ref_log_prob": -torch.ones(count, 3),
        },
        infos=[],
        text=text,
        speech=~text,
    )


def config(**preference: Any) -> Any:
    from wavalign_ext.config import WavAlignConfig

    return WavAlignConfig.from_mapping(
        {"layout": "pocket", "codec": {}, "preference": {"objective": "dpo", **preference}}
    )


def test_pairs_do_not_depend_on_the_order_of_rows_or_on_verl_s_copies() -> None:
    from wavalign_ext.trainer.pairing import rollout_pairs

    keys = ["b_0_0", "a_10_0", "a_2_0", "a_1_0", "b_1_0", "a_2_0"]
    step = made([2.0, 5.0, 5.0, 1.0, NAN, 0.0], keys, real=[0, 1, 2, 3, 4])
    pairs = rollout_pairs(step, config())
    assert (pairs.chosen, pairs.rejected) == ([2], [3])  # of the two fives the lower session; the copy's 0 is no answer
    assert pairs.left_out == {"unscored": 1, "tied": 0, "below_gap": 0}


@pytest.mark.parametrize(("tokens", "gap"), [("text", 2 * 2.0), ("speech", 2.0), ("all", 3 * 2.0)])
def test_a_gap_is_of_the_preferred_tokens(tokens: str, gap: float) -> None:
    from wavalign_ext.trainer.pairing import pair_metrics, rollout_pairs, step_terms

    wav = config(tokens=tokens)
    step = made([5.0, 3.0, 1.0], ["a_0_0", "a_1_0", "a_2_0"])
    pairs = rollout_pairs(step, wav)
    terms = step_terms(step, pairs, wav)
    assert terms.gap.item() == gap
    metrics = pair_metrics(step, pairs, terms, 0.1)
    assert metrics["wavalign/pairs"] == 1 and metrics["wavalign/pair_accuracy"] == 1
    assert metrics["wavalign/pair_margin"] == pytest.approx(0.1 * gap)
    assert metrics["wavalign/pair_loss"] == pytest.approx(math.log(1 + math.exp(-0.1 * gap)))
    assert metrics["wavalign/chosen_logp_speech"] == -1.0 and metrics["wavalign/rejected_logp_text"] == -3.0


def test_a_step_without_a_pair_says_so() -> None:
    from wavalign_ext.trainer.pairing import pair_metrics, rollout_pairs, step_terms

    wav, step = config(), made([3.0, 3.0], ["a_0_0", "a_1_0"])
    pairs = rollout_pairs(step, wav)
    terms = step_terms(step, pairs, wav)
    wanted = {"wavalign/pairs": 0, "wavalign/groups_unscored": 0, "wavalign/groups_tied": 1}
    assert pair_metrics(step, pairs, terms, 0.1) == wanted | {"wavalign/groups_below_gap": 0}
    assert not terms.advantages(pairs, 2).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_to_other_recordings_are_scored_apart(dtype: torch.dtype) -> None:
    import verl.trainer.ppo.v1.trainer_sync  # noqa: F401  (the plugin registers our trainer behind it)

    from wavalign_ext.trainer.offline import _content

    def name(value: float) -> str:
        heard = {"audio_features": torch.full((3, 4), value, dtype=dtype)}
        return _content({"prompts": torch.arange(3), "responses": torch.arange(2), "multi_modal_inputs": heard})

    assert name(1.0) == name(1.0) != name(2.0)
