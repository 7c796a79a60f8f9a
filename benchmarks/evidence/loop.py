"""One run of the study: the method's own functions around a small sampler, as in ``examples/plain_loop.py``."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from evidence.sampler import sample
from evidence.settings import CONDITIONS, JUDGE_NOISE, MOST_TOKENS, PROMPTS, ROLLOUTS, STEPS, Condition, Recipe
from evidence.world import SCALE, Question, World
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from wavalign_ext.config import WavAlignConfig
from wavalign_ext.method.advantage import group_advantages
from wavalign_ext.method.loss import LossCoefficients, LossInputs, combined_loss
from wavalign_ext.method.mixing import MixingController, row_shares
from wavalign_ext.method.objectives import PAIR_LOSSES, Pairs, best_and_worst, pair_terms
from wavalign_ext.method.token_weights import ANCHOR, ROLLOUT, chosen_tokens, modality_masks, token_weights

WARM_UP, CLIP = 5, 1.2
GROUPS = [prompt for prompt in range(PROMPTS) for _ in range(ROLLOUTS)]
Asked = list[tuple[Question, list[int]]]  # each with its demonstration


@dataclass
class Trained:
    """``log`` has a row for each step; ``seconds`` is processor time by part."""

    model: Any
    log: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"sample": 0.0, "update": 0.0})


@dataclass(frozen=True)
class Gains:
    """Advantages (N,) of each rollout's text and speech tokens; ``pairs`` under an objective over pairs."""

    text: torch.Tensor
    speech: torch.Tensor
    pairs: Pairs | None = None


def schedule(world: World, condition: Condition, seed: int, steps: int) -> list[Asked]:
    """Questions and demonstrations of each step: the same for every recipe of a seed."""
    rng = random.Random(1000 + seed)
    known, unknown = world.questions("rl", taught=True), world.questions("rl", taught=False)
    rng.shuffle(known)
    rng.shuffle(unknown)
    few = round(condition.out_of_reach * PROMPTS)
    found = []
    for step in range(steps):
        asked = [unknown[(step * few + n) % len(unknown)] for n in range(few)]
        asked += [known[(step * (PROMPTS - few) + n) % len(known)] for n in range(PROMPTS - few)]
        found.append([(question, world.demonstration(question, rng)) for question in asked])
    return found


def judged(world: World, answers: Sequence[list[int]], asked: Asked, condition: Condition, rng: Any) -> Any:
    """(rewards as training sees them, scores without noise), each of shape (N,)."""
    scores = np.array([world.score(ids, asked[n][0]).score for ids, n in zip(answers, GROUPS, strict=True)])
    rewards = np.clip(scores + rng.normal(0, JUDGE_NOISE, len(scores)), *SCALE)
    drawn = rng.random(len(scores)) < condition.random_rewards
    return np.where(drawn, rng.uniform(*SCALE, len(scores)), rewards), scores


def log_probs(model: Any, rows: Sequence[tuple[list[int], list[int]]]) -> torch.Tensor:
    """log p of each response token, (R, T), for (prompt, response) rows; long and short ones apart, to pad less."""
    order = sorted(range(len(rows)), key=lambda row: len(rows[row][0]) + len(rows[row][1]))
    found: list[Any] = [None] * len(rows)
    for part in (order[: len(order) // 2], order[len(order) // 2 :]):
        whole = [torch.tensor(rows[row][0] + rows[row][1]) for row in part]
        ids = pad_sequence(whole, batch_first=True)
        wanted = torch.zeros_like(ids, dtype=torch.bool)
        for n, row in enumerate(part):
            wanted[n, len(rows[row][0]) : len(whole[n])] = True
        hidden = model.get_decoder()(input_ids=ids).last_hidden_state[:, :-1][wanted[:, 1:]]
        logits = model.get_output_embeddings()(hidden)
        logp = -cross_entropy(logits, ids[:, 1:][wanted[:, 1:]], reduction="none")
        for row, values in zip(part, logp.split([len(rows[row][1]) for row in part]), strict=True):
            found[row] = values
    return pad_sequence(found, batch_first=True)


def loss_inputs(
    world: World,
    wav: WavAlignConfig,
    condition: Condition,
    logp: torch.Tensor,
    responses: Any,
    gains: Gains,
) -> LossInputs:
    """Inputs of the loss for rollouts, which ``gains`` has, and then targets; ρ is 1."""
    rollouts, targets = len(gains.text), len(responses) - len(gains.text)
    kind = torch.tensor([ROLLOUT] * rollouts + [ANCHOR] * targets)
    modality, mask = _modality(world, responses)
    weights = token_weights(
        modality,
        mask,
        kind,
        torch.ones(len(kind), dtype=torch.bool),
        preference=wav.preference,
        anchor=wav.anchor,
        boundary_modality=wav.boundary_modality,
        aggregation=condition.aggregation,
        pair_R=None if gains.pairs is None else gains.pairs.numbers(len(kind)),
    )
    text, _ = modality_masks(modality, mask, wav.boundary_modality)
    of_text, of_speech = (torch.cat([part, torch.zeros(targets)])[:, None] for part in (gains.text, gains.speech))
    streams = (weights.preference, weights.anchor, weights.text, weights.speech)
    return LossInputs(logp, None, torch.where(text, of_text, of_speech), *streams, (kind == ANCHOR)[:, None])


def train(
    world: World,
    recipe: Recipe,
    condition_name: str,
    seed: int,
    rate: float,
    lam: float | None = None,
    steps: int = STEPS,
) -> Trained:
    """Train the start model; ``lam`` where λ is another run's mean. Everything random follows from ``seed``."""
    wav, condition, made = recipe.config(lam), CONDITIONS[condition_name], Trained(world.start())
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    learner = _Learner(world, recipe, wav, condition, made, rate)
    for step, asked in enumerate(schedule(world, condition, seed, steps)):
        learner.optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / WARM_UP)
        began = time.process_time()
        answers: list[list[int]] = []
        rewards, scores = np.zeros(0), np.zeros(0)
        if wav.uses_preference:
            prompts = [asked[n][0].prompt for n in GROUPS]
            answers = sample(made.model, prompts, eos=world.eos, most=MOST_TOKENS, generator=generator)
            rewards, scores = judged(world, answers, asked, condition, rng)
        between = time.process_time()
        learner.update(asked, answers, rewards)
        made.seconds["sample"] += between - began
        made.seconds["update"] += time.process_time() - between
        made.log[-1] |= {"step": step, "score": float(scores.mean()) if len(scores) else float("nan")}
    return made


class _Learner:
    """The model's update by one recipe."""

    def __init__(
        self, world: World, recipe: Recipe, wav: WavAlignConfig, condition: Condition, made: Trained, rate: float
    ) -> None:
        self.world, self.recipe, self.wav, self.condition, self.made = world, recipe, wav, condition, made
        self.controller = MixingController(wav.mixing, SCALE)
        self.reference = world.start().eval() if wav.preference.objective in PAIR_LOSSES else None
        settings = {"lr": rate, "betas": (0.9, 0.95), "weight_decay": 0.01, "fused": True}
        self.optimizer = torch.optim.AdamW(made.model.parameters(), **settings)

    def update(self, asked: Asked, answers: list[list[int]], rewards: Any) -> None:
        """One optimizer step, and its row of the log."""
        lam = self.controller.update(rewards.tolist(), GROUPS[: len(rewards)])
        targets = asked if self.wav.uses_anchor else []
        rows = [(asked[n][0].prompt, ids) for n, ids in zip(GROUPS, answers, strict=False)]
        rows += [(question.prompt, target) for question, target in targets]
        model = self.made.model.train()
        logp = log_probs(model, rows)
        gains = self._gains(rows[: len(answers)], logp.detach(), rewards)
        inputs = loss_inputs(self.world, self.wav, self.condition, logp, [ids for _, ids in rows], gains)
        assert self.controller.last is not None
        if by_prompt := self.controller.last.by_prompt:
            numbers = GROUPS[: len(answers)] + list(range(len(targets)))
            shares = row_shares([by_prompt[n] for n in numbers], lam)
            for name, share in zip(("preference", "anchor"), shares, strict=True):
                getattr(inputs, f"{name}_weight").mul_(torch.tensor(share)[:, None])
        outputs = combined_loss(inputs, lam, LossCoefficients(kl_text=0.0, kl_speech=0.0))
        self.optimizer.zero_grad(set_to_none=True)
        outputs.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        self.optimizer.step()
        variance = rewards.reshape(-1, ROLLOUTS).var(1).mean() if len(rewards) else float("nan")
        pairs = len(GROUPS) // ROLLOUTS if gains.pairs is None else len(gains.pairs.chosen)
        self.made.log.append({"lam": lam, "grad_norm": float(norm), "reward_variance": float(variance), "pairs": pairs})

    def _gains(self, rows: Sequence[tuple[list[int], list[int]]], logp: torch.Tensor, rewards: Any) -> Gains:
        """Advantages of the rollouts ``rows`` under the recipe's objective."""
        answers, groups = [ids for _, ids in rows], GROUPS[: len(rows)]
        if self.reference is not None:
            return self._pair_gains(rows, logp[: len(rows)], rewards)
        gains = group_advantages(torch.tensor(rewards, dtype=torch.float32), groups)
        if not self.recipe.hears_manner:
            return Gains(gains, gains)
        lively = [self.world.lively(self.world.layout.split(ids).codes) for ids in answers]
        return Gains(gains, group_advantages(torch.tensor(lively).nan_to_num(0.0), groups))

    def _pair_gains(self, rows: Sequence[tuple[list[int], list[int]]], logp: torch.Tensor, rewards: Any) -> Gains:
        """The best against the worst answer to each question, as the trainer pairs them."""
        preference = self.wav.preference
        modality, mask = _modality(self.world, [ids for _, ids in rows])
        masks = modality_masks(modality, mask, self.wav.boundary_modality)
        weights = chosen_tokens(preference, *masks)
        logp = logp[:, : weights.shape[1]]
        with torch.no_grad():
            reference = log_probs(self.reference, rows)
        pairs = best_and_worst(rewards.tolist(), GROUPS, weights.any(1).tolist(), self.wav.min_gap)
        terms = pair_terms(pairs, weights, logp, reference, preference.objective, preference.pairs)
        gains = terms.advantages(pairs, len(rows)).float()
        return Gains(gains, gains, pairs)


def _modality(world: World, responses: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(modality, mask) of each token, both (R, T)."""
    ids = pad_sequence([torch.tensor(r) for r in responses], batch_first=True, padding_value=world.layout.pad_id)
    return world.layout.modality(ids), pad_sequence([torch.ones(len(r)) for r in responses], batch_first=True)
