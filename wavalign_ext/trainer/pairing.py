"""Pairs of a step's rows, for the objectives over pairs: which rows, and what there is to say about them."""

from wavalign_ext.config import WavAlignConfig
from wavalign_ext.method.objectives import Pairs, PairTerms, best_and_worst, pair_terms
from wavalign_ext.trainer.step import Step


def rollout_pairs(step: Step, wav: WavAlignConfig) -> Pairs:
    """The best against the worst rollout of each prompt; of equals the one of the lower session number."""
    rows = sorted(step.real, key=lambda row: int(step.batch.keys[row].rsplit("_", 2)[1]))
    weights = step.weights(wav.preference)
    found = best_and_worst(
        [step.rewards[row].item() for row in rows],
        [step.uids[row] for row in rows],
        [bool(weights[row].any()) for row in rows],
        wav.min_gap,
    )
    chosen, rejected = ([rows[place] for place in places] for places in (found.chosen, found.rejected))
    return Pairs(chosen, rejected, found.left_out)


def step_terms(step: Step, pairs: Pairs, wav: WavAlignConfig) -> PairTerms:
    """Gaps, losses and slopes of ``pairs`` at the start of the update."""
    columns, preference = step.columns, wav.preference
    reference = columns["ref_log_prob"] if "ref_log_prob" in columns.keys() else None
    weights, logp = step.weights(preference), columns["old_log_probs"]
    return pair_terms(pairs, weights, logp, reference, preference.objective, preference.pairs)


def pair_metrics(step: Step, pairs: Pairs, terms: PairTerms, beta: float) -> dict[str, float]:
    """Counts, loss, margin and accuracy, and the log-probs of both sides by modality, mean over tokens."""
    metrics: dict[str, float] = {"wavalign/pairs": len(pairs.chosen)}
    metrics |= {f"wavalign/groups_{reason}": count for reason, count in pairs.left_out.items()}
    if not pairs.chosen:
        return metrics
    metrics |= {f"wavalign/pair_{name}": value for name, value in term_metrics(terms, beta).items()}
    for modality, mask in (("text", step.text), ("speech", step.speech)):
        for side, rows in (("chosen", pairs.chosen), ("rejected", pairs.rejected)):
            if mask[rows].any():
                logp = step.columns["old_log_probs"][rows][mask[rows]]
                metrics[f"wavalign/{side}_logp_{modality}"] = logp.double().mean().item()
    return metrics


def term_metrics(terms: PairTerms, beta: float) -> dict[str, float]:
    """Means over pairs: the loss, the margin β · gap, and the share of pairs whose margin is above 0."""
    return {
        "loss": terms.loss.mean().item(),
        "margin": beta * terms.gap.mean().item(),
        "accuracy": (terms.gap > 0).double().mean().item(),
    }
