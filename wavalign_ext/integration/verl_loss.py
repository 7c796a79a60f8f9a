"""The combined loss as verl's worker calls it, by the fused head in one pass or from log-probs."""

from collections.abc import Mapping
from typing import Any

import torch

from wavalign_ext.method.loss import LossCoefficients, LossInputs, combined_loss
from wavalign_ext.method.policy_sums import LARGEST, policy_sums
from wavalign_ext.method.token_weights import ANCHOR as ANCHOR_ROW
from wavalign_ext.method.token_weights import ROW_FIELDS


class VerlLoss:
    """:func:`combined_loss` as verl's ``set_loss_fn`` takes it: called with one micro-batch on one rank.

    ``one_pass`` lets the fused head make the loss and its gradient together (:meth:`head_loss`); without it, or without
    that head, the loss is made here from log-probs. Both are the same number, by
    ``tests/unit/integration/test_one_pass.py``.
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
            coefficients = {"text": self.coefficients.kl_text, "speech": self.coefficients.kl_speech}
            sums |= policy_sums(
                logp,
                masks,
                rollout_logp_RT=rows.get("rollout_log_probs", None),
                entropy_RT=entropy,
                reference_RT=inputs.reference,
                referenced=[name for name, coefficient in coefficients.items() if coefficient > 0],
            )
        values = torch.stack([value.detach().double() for value in sums.values()]).tolist()  # one wait for the device
        metrics = {
            name: Metric(value=value, aggregation=AggregationType.MAX)
            if name == LARGEST
            else Metric(value=value * dp_size, aggregation=AggregationType.SUM)
            for name, value in zip(sums, values, strict=True)
        }
        loss = model_output.pop("loss", None)  # by the head, of this very micro-batch
        return outputs.loss * dp_size if loss is None else loss, metrics
