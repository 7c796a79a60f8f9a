"""The combined loss: λ · preference + (1 − λ) · anchor (METHOD.md; paper: arXiv 2604.14932).

:func:`combined_loss` is the definition, on plain tensors; :class:`VerlLoss` is what verl's worker calls.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from wavalign_ext.method.policy_sums import LARGEST, policy_sums
from wavalign_ext.method.surrogates import SURROGATES
from wavalign_ext.method.token_weights import ANCHOR as ANCHOR_ROW

# verl's guard against overflow in exp(new − old), which also bounds a k3 term (core_algos.py).
LOG_RATIO_LIMIT = 20.0


@dataclass(frozen=True)
class LossCoefficients:
    """What of the loss does not change between steps. ``mode`` is a name in :mod:`wavalign_ext.method.surrogates`."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_text: float = 1e-3
    kl_speech: float = 1e-3
    entropy: float = 0.0
    clip_c: float = 3.0
    mode: str = "vanilla"


@dataclass(frozen=True)
class LossInputs:
    """Per response token, shape (R, T); weights as :class:`wavalign_ext.method.token_weights.TokenWeights` has them.

    ``is_anchor`` has shape (R, 1). ``reference`` and ``entropy`` are None where the run has no such term; ``old_logp``
    where the policy is the one that sampled: then ρ = 1, with the gradient of ρ.
    """

    logp: torch.Tensor
    old_logp: torch.Tensor | None
    advantage: torch.Tensor
    preference_weight: torch.Tensor
    anchor_weight: torch.Tensor
    text_weight: torch.Tensor
    speech_weight: torch.Tensor
    is_anchor: torch.Tensor
    reference: torch.Tensor | None = None
    entropy: torch.Tensor | None = None


@dataclass(frozen=True)
class LossOutputs:
    """``loss`` is differentiable; ``parts`` are detached scalars, each a sum over the rows given."""

    loss: torch.Tensor
    parts: dict[str, torch.Tensor]


def combined_loss(inputs: LossInputs, lam: float, coefficients: LossCoefficients) -> LossOutputs:
    """The loss of some rows of a mini-batch; the mini-batch's loss is the sum over its rows.

    L        = λ (L_pref + β_text KL_text + β_speech KL_speech − c_H H) + (1 − λ) L_anchor
    L_pref   = Σ w · −min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A),      ρ = exp(logp − old_logp), or another surrogate
    KL       = Σ share · (exp(ref − logp) − (ref − logp) − 1)           per modality, on rollouts
    L_anchor = Σ v · −logp
    """
    i, c = inputs, coefficients
    on_rollouts = (~i.is_anchor).to(i.logp.dtype)
    text, speech = i.text_weight * on_rollouts, i.speech_weight * on_rollouts

    old_logp = i.logp.detach() if i.old_logp is None else i.old_logp
    log_ratio = torch.clamp(i.logp - old_logp, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    # Where the weight is 0 the old log-probs mean nothing (anchor rows have none): their ratio must reach no product.
    log_ratio = torch.where(i.preference_weight > 0, log_ratio, 0.0)
    surrogate, clipping = SURROGATES[c.mode](log_ratio, i.advantage, i.preference_weight, c)
    policy = -(i.preference_weight * surrogate).sum()
    anchor = -(i.anchor_weight * i.logp).sum()

    parts = {
        "pg_loss": policy,
        **{name: (i.preference_weight * mask).sum() for name, mask in clipping.items()},
        "anchor_nll": anchor,
        "anchor_nll_text": -((i.text_weight - text) * i.logp).sum(),
        "anchor_nll_speech": -((i.speech_weight - speech) * i.logp).sum(),
        "ppo_kl": -(i.preference_weight * log_ratio).sum(),
    }
    preference = policy
    if i.reference is not None:
        gap = torch.clamp(i.reference - i.logp, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        gap = torch.where(text + speech > 0, gap, 0.0)
        k3 = gap.exp() - gap - 1
        # Only where it counts: without a coefficient, a modality's log-probs may not have been computed at all.
        for name, weight, coefficient in (("kl_text", text, c.kl_text), ("kl_speech", speech, c.kl_speech)):
            if coefficient > 0:
                parts[name] = (weight * k3).sum()
                preference = preference + coefficient * parts[name]
    if i.entropy is not None:
        entropy = (i.preference_weight * i.entropy).sum()
        preference = preference - c.entropy * entropy
        parts |= {"entropy_text": (text * i.entropy).sum(), "entropy_speech": (speech * i.entropy).sum()}
    loss = lam * preference + (1 - lam) * anchor
    parts |= {"preference_loss": preference, "total_loss": loss}
    return LossOutputs(loss, {name: value.detach() for name, value in parts.items()})


ROW_FIELDS = ("preference_weight", "anchor_weight", "text_weight", "speech_weight")


class VerlLoss:
    """:func:`combined_loss` as verl's ``set_loss_fn`` takes it: called with one micro-batch on one rank.

    ``one_pass`` lets the fused head make the loss and its gradient together (:meth:`head_loss`); without it, or without
    that head, the loss is made here from log-probs. Both are the same number: ``tests/plugin/test_one_pass.py``.
    """

    def __init__(self, coefficients: LossCoefficients, one_pass: bool = True) -> None:
        self.coefficients, self.one_pass = coefficients, one_pass

    def head_loss(self, data: Any) -> dict[str, Any] | None:
        """What the fused head needs to make the loss of a micro-batch; None where it cannot.

        Fields of :class:`wavalign_kernels.LossInputs`; columns (K,) over the response tokens, row after row.
        """
        if not self.one_pass or self.coefficients.mode != "vanilla":
            return None
        from wavalign_kernels import ANCHOR, NONE, PREFERENCE

        c, lam = self.coefficients, data["wavalign_lambda"]
        weight, target = data["preference_weight"].values(), data["anchor_weight"].values()
        on_anchor, needed = self._on_anchor(data), self.needed_tokens(data)
        kind = torch.where(needed, torch.where(on_anchor, ANCHOR, PREFERENCE), NONE)
        kl = None
        if "ref_log_prob" in data:
            kl = c.kl_text * data["text_weight"].values() + c.kl_speech * data["speech_weight"].values()
        # FSDP averages gradients over ranks, so a sum over all rows of the mini-batch needs a factor dp_size.
        denominator = 1 / data["dp_size"]
        return {
            "kind": kind,
            "weights": torch.where(on_anchor, target, weight),
            "advantages": data["advantages"].values(),
            "old_logp": data["old_log_probs"].values() if "old_log_probs" in data else None,
            "ref_logp": None if kl is None else data["ref_log_prob"].values(),
            "kl_weights": kl,
            "entropy_coef": c.entropy,
            "clip_low": c.clip_low,
            "clip_high": c.clip_high,
            "clip_c": c.clip_c,
            "lam": lam,
            "preference_denominator": denominator,
            "anchor_denominator": denominator,
        }

    def needed_tokens(self, data: Any) -> torch.Tensor:
        """Response tokens (K,), row after row, whose log-prob this loss or its metrics use. The head skips the rest."""
        return self._needed({name: data[name].values() for name in ROW_FIELDS}, self._on_anchor(data), data)

    def _needed(self, weights: Mapping[str, torch.Tensor], on_anchor: torch.Tensor, data: Any) -> torch.Tensor:
        from verl.utils import tensordict_utils as tu

        with_kl, all_rollouts = "ref_log_prob" in data, bool(tu.get_non_tensor_data(data, "calculate_entropy", False))
        needed = (weights["preference_weight"] > 0) | (weights["anchor_weight"] > 0)
        for name, coefficient in (("text", self.coefficients.kl_text), ("speech", self.coefficients.kl_speech)):
            wanted = on_anchor | (all_rollouts or (with_kl and coefficient > 0))
            needed = needed | ((weights[f"{name}_weight"] > 0) & wanted)
        return needed

    @staticmethod
    def _on_anchor(data: Any) -> torch.Tensor:
        """(K,): whether a response token is of an anchor row."""
        lengths = data["responses"].offsets().diff()
        count = len(data["responses"].values())
        return torch.repeat_interleave(data["row_kind"] == ANCHOR_ROW, lengths, output_size=count)

    def __call__(
        self, model_output: dict[str, Any], data: Any, dp_group: Any = None
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """(loss, metrics).

        verl averages a SUM metric over ranks, so the parts carry the factor ``dp_size`` as the loss does.
        """
        from verl.utils.metric import AggregationType, Metric
        from verl.workers.utils.padding import no_padding_2_padding

        optional = [name for name in ("old_log_probs", "ref_log_prob", "rollout_log_probs") if name in data]
        rows = data.select(*ROW_FIELDS, "advantages", "row_kind", "responses", *optional).to_padded_tensor()
        logp, entropy = no_padding_2_padding(model_output["log_probs"], data), model_output.get("entropy")
        entropy = None if entropy is None else no_padding_2_padding(entropy, data)
        inputs = LossInputs(
            logp=logp,
            old_logp=rows.get("old_log_probs", None),
            advantage=rows["advantages"],
            is_anchor=(rows["row_kind"] == ANCHOR_ROW).unsqueeze(-1),
            reference=rows.get("ref_log_prob", None),
            entropy=entropy,
            **{name: rows[name] for name in ROW_FIELDS},
        )
        outputs, dp_size = combined_loss(inputs, data["wavalign_lambda"], self.coefficients), data["dp_size"]
        sums = {f"actor/{name}": value for name, value in outputs.parts.items()}
        if inputs.old_logp is None:
            computed = self._needed(rows, inputs.is_anchor, data) & ~inputs.is_anchor
            masks = {name: computed & (rows[f"{name}_weight"] > 0) for name in ("text", "speech")}
            streams = {"entropy_RT": entropy, "reference_RT": inputs.reference}
            sums |= policy_sums(logp, masks, rollout_logp_RT=rows.get("rollout_log_probs", None), **streams)
        values = torch.stack([value.detach().double() for value in sums.values()]).tolist()  # one wait for the device
        metrics = {
            name: Metric(value=value, aggregation=AggregationType.MAX)
            if name == LARGEST
            else Metric(value=value * dp_size, aggregation=AggregationType.SUM)
            for name, value in zip(sums, values, strict=True)
        }
        loss = model_output.pop("loss", None)  # by the head, of this very micro-batch
        return outputs.loss * dp_size if loss is None else loss, metrics
