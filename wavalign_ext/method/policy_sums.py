"""What an update says of the policy that sampled, from the log-probs that it computes anyway.

Where one optimiser step follows a batch, the policy of the update's forward pass *is* the policy that sampled: verl's
pass for old log-probs would compute the same numbers again. A worker sees one micro-batch on one rank, so it reports
sums (:func:`policy_sums`); verl adds them up over micro-batches and ranks; the driver divides (:func:`policy_metrics`).

Shapes: R rows, T response tokens.
"""

import math
from collections.abc import Collection, Mapping

import torch

from wavalign_ext.method.loss import LOG_RATIO_LIMIT

PREFIX = "actor/sum_"
LARGEST = f"{PREFIX}probs_diff_max"  # the one number that is no sum


def policy_sums(
    logp_RT: torch.Tensor,
    masks: Mapping[str, torch.Tensor],
    *,
    rollout_logp_RT: torch.Tensor | None = None,
    entropy_RT: torch.Tensor | None = None,
    reference_RT: torch.Tensor | None = None,
    referenced: Collection[str] = ("text", "speech"),
) -> dict[str, torch.Tensor]:
    """Sums, by metric name, over the tokens of rollouts whose log-prob was computed.

    Args:
        logp_RT: log-probs of the policy; the other (R, T) streams are None where the run has none.
        masks: by modality, bool (R, T): which tokens count.
        referenced: the modalities that the reference policy has scored; on others its stream means nothing.
    """
    sums: dict[str, torch.Tensor] = {}
    for name, mask in masks.items():
        sums[f"tokens_{name}"] = mask.sum()
        sums[f"logp_{name}"] = logp_RT[mask].double().sum()
        if entropy_RT is not None:
            sums[f"entropy_{name}"] = entropy_RT[mask].double().sum()
        if reference_RT is not None and name in referenced:
            gap = (reference_RT - logp_RT)[mask].double().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)  # as in the loss
            sums[f"kl_{name}"] = (gap.exp() - gap - 1).sum()
    if rollout_logp_RT is not None:
        chosen = torch.stack(list(masks.values())).any(0)
        p, q = logp_RT[chosen].double().exp(), rollout_logp_RT[chosen].double().exp()
        gap = (p - q).abs()
        products = {"probs_p": p, "probs_q": q, "probs_pp": p * p, "probs_qq": q * q, "probs_pq": p * q}
        products |= {"probs_diff": gap, "probs_diff_squared": gap * gap, "probs_tokens": torch.ones_like(p)}
        sums |= {name: value.sum() for name, value in products.items()}
        sums["probs_diff_max"] = gap.max() if len(gap) else gap.new_zeros(())
    return {PREFIX + name: value for name, value in sums.items()}


def policy_metrics(update: dict[str, float]) -> dict[str, float]:
    """Take the sums out of the update's metrics; return the means under the names that verl and this package use."""
    sums = {name.removeprefix(PREFIX): update.pop(name) for name in list(update) if name.startswith(PREFIX)}
    found: dict[str, float] = {}
    for name in ("text", "speech"):
        if count := sums.get(f"tokens_{name}", 0):
            kinds = [kind for kind in ("logp", "entropy", "kl") if f"{kind}_{name}" in sums]
            found |= {f"wavalign/{kind}_{name}": sums[f"{kind}_{name}"] / count for kind in kinds}
    if n := sums.get("probs_tokens", 0):
        mean = sums["probs_diff"] / n
        spread = max(sums["probs_diff_squared"] - n * mean**2, 0.0) / max(n - 1, 1)  # torch.std's, as verl's
        p, q = sums["probs_p"], sums["probs_q"]
        variances = (sums["probs_pp"] - p * p / n) * (sums["probs_qq"] - q * q / n)
        found |= {
            "training/rollout_probs_diff_valid": 1,
            "training/rollout_probs_diff_max": sums["probs_diff_max"],
            "training/rollout_probs_diff_mean": mean,
            "training/rollout_probs_diff_std": math.sqrt(spread),
        }
        if variances > 0:
            found["training/rollout_actor_probs_pearson_corr"] = (sums["probs_pq"] - p * q / n) / math.sqrt(variances)
    return found
