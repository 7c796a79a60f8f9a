"""The language-model head by ``wavalign_kernels``: log-probs and entropy at the positions a pass needs, no [T, V].

Inside verl's FSDP engine the head's ``forward`` answers with a pair per position, (log-prob of the next token,
entropy), where a model's own head has logits. So every causal LM of transformers that ends with its head works as it
is, LoRA and FSDP's unsharding included. Switched on by verl's own keys:

    actor_rollout_ref.model.use_fused_kernels=true  actor_rollout_ref.model.fused_kernel_options.impl_backend=wavalign
"""

# TensorDict annotates more narrowly than it behaves.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from verl.utils import tensordict_utils as tu
from verl.utils.ulysses import ulysses_pad_and_slice_inputs
from wavalign_kernels import linear_logprob

BACKEND = "wavalign"
# What a model may do to its logits after the head, by the name of the configuration key.
AFTER_THE_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling")
UNSUPPORTED = ("distillation_use_topk", "distillation_only", "calculate_sum_pi_squared")


class UnsupportedHead(ValueError):
    """The model's head cannot be fused; the message says why, and how to go on without."""


@dataclass(frozen=True)
class Scored:
    """What the head needs to know of one micro-batch, shaped like its hidden states without the last dimension."""

    targets: Tensor
    active: Tensor
    temperature: Tensor
    entropy: bool


class FusedHead:
    """Takes the place of ``forward`` of a model's output head; answers as the head itself while ``scored`` is None."""

    def __init__(self, head: nn.Linear) -> None:
        self.head, self.scored = head, None

    @classmethod
    def install(cls, model: nn.Module, config: Any) -> "FusedHead":
        """Replace the head of ``model`` (a causal LM of transformers, wrapped by FSDP or PEFT or not).

        Raises:
            UnsupportedHead: no linear head, an adapter on it, or logits that are changed behind it.
        """
        check_config(config)
        head: Any = getattr(model, "_fsdp_wrapped_module", model).get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise UnsupportedHead(
                f"the fused head needs a plain linear head, not {type(head).__name__}: leave lm_head out of "
                "actor_rollout_ref.model.target_modules, or set actor_rollout_ref.model.use_fused_kernels=false"
            )
        fused = cls(head)
        head.forward = fused
        return fused

    def __call__(self, hidden: Tensor) -> Tensor:
        """(…, H) → logits (…, V), or, with ``scored`` set, (…, 2): log-prob and entropy in fp32."""
        head, scored = self.head, self.scored
        if scored is None:
            return nn.functional.linear(hidden, head.weight, head.bias)
        with torch.autocast(hidden.device.type, enabled=False):  # it would round the kernel's fp32 sums
            logp, entropy = linear_logprob(
                hidden.to(head.weight.dtype),
                head.weight,
                scored.targets,
                active=scored.active,
                bias=head.bias,
                temperature=scored.temperature,
                entropy=scored.entropy,
            )
        return torch.stack([logp, torch.zeros_like(logp) if entropy is None else entropy], -1)


def check_config(config: Any) -> None:
    """Raises :class:`UnsupportedHead` for a model configuration that changes logits after the head."""
    for key in AFTER_THE_HEAD:
        if getattr(config, key, None) not in (None, 1, 1.0):
            raise UnsupportedHead(
                f"the fused head cannot apply {key}={getattr(config, key)!r} of {config.model_type!r}: "
                "set actor_rollout_ref.model.use_fused_kernels=false"
            )


def scoring_positions(data: Any, needed: Tensor | None) -> Tensor:
    """Positions of the packed stream (N,) whose *next* token is a response token, and is ``needed`` (R, T) if given."""
    ends, lengths = data["input_ids"].offsets()[1:].tolist(), data["responses"].offsets().diff().tolist()
    active = torch.zeros(ends[-1], dtype=torch.bool, device=data["input_ids"].device)
    for row, (end, length) in enumerate(zip(ends, lengths, strict=True)):
        active[end - length - 1 : end - 1] = True if needed is None else needed[row, :length]
    return active


class FusedHeadEngine:
    """For verl's ``FSDPEngineWithLMHead``: its inputs and outputs with the fused head in between, when that is on."""

    fused: FusedHead | None = None
    _needed: Tensor | None = None

    def initialize(self: Any) -> None:
        super().initialize()  # type: ignore[misc]
        options = self.model_config.fused_kernel_options or {}
        if self.model_config.use_fused_kernels and options.get("impl_backend") == BACKEND:
            self.fused = FusedHead.install(self.module, self.model_config.hf_config)

    def forward_step(self: Any, micro_batch: Any, loss_function: Any, forward_only: bool) -> Any:
        """verl's step; a loss that says which tokens it needs is asked first."""
        if self.fused is not None:
            wanted = getattr(loss_function, "needed_tokens", None)
            self._needed = None if wanted is None else wanted(micro_batch)
        try:
            return super().forward_step(micro_batch, loss_function, forward_only)  # type: ignore[misc]
        finally:
            if self.fused is not None:
                self.fused.scored = None

    def prepare_model_inputs(self: Any, micro_batch: Any) -> Any:
        """verl's inputs without its own fused arguments; the head learns what to score."""
        if self.fused is None:
            return super().prepare_model_inputs(micro_batch)  # type: ignore[misc]
        refused = [key for key in UNSUPPORTED if tu.get_non_tensor_data(micro_batch, key, False)]
        if refused:
            raise NotImplementedError(
                f"the fused head keeps no logits, which {refused[0]} needs: set use_fused_kernels=false"
            )
        tu.assign_non_tensor_data(micro_batch, "use_fused_kernels", False)
        inputs, arguments = super().prepare_model_inputs(micro_batch)  # type: ignore[misc]
        entropy = bool(tu.get_non_tensor_data(micro_batch, "calculate_entropy", False))
        active = scoring_positions(micro_batch, self._needed)
        if "temperature_rmpad" in arguments:
            columns = (arguments["input_ids_rmpad_rolled"], self._slice(active), arguments["temperature_rmpad"])
            self.fused.scored = Scored(*(column.unsqueeze(0) for column in columns), entropy)
        else:
            lengths = micro_batch["input_ids"].offsets().diff()
            inside = torch.arange(inputs["input_ids"].shape[1], device=lengths.device) < lengths[:, None]
            targets = torch.zeros_like(inputs["input_ids"]).masked_scatter_(inside, arguments["input_ids_rmpad_rolled"])
            chosen = torch.zeros_like(inside).masked_scatter_(inside, active)
            self.fused.scored = Scored(targets, chosen, arguments["temperature"][:, None].expand(inside.shape), entropy)
            arguments["inside"] = inside
        return inputs, arguments

    def prepare_model_outputs(
        self: Any, output: Any, output_args: Any, micro_batch: Any, logits_processor_func: Any
    ) -> Any:
        """The head's pairs as verl's ``log_probs`` and ``entropy``: jagged (R, N)."""
        if self.fused is None:
            return super().prepare_model_outputs(  # type: ignore[misc]
                output, output_args, micro_batch, logits_processor_func
            )
        pairs = output.logits
        if "inside" in output_args:
            pairs = pairs[output_args["inside"]]
        else:
            pairs = self._gather_and_unpad_packed(pairs.squeeze(0), output_args["pad_size"])
        names = ("log_probs", "entropy") if self.fused.scored.entropy else ("log_probs",)
        offsets = micro_batch["input_ids"].offsets()
        return {n: torch.nested.nested_tensor_from_jagged(pairs[:, i], offsets) for i, n in enumerate(names)}

    def _slice(self: Any, active: Tensor) -> Tensor:
        """The part of a packed mask (N,) that this rank holds, padded as verl pads the tokens."""
        packed = nn.functional.pad(active.long()[None], (0, self._get_packed_pad_size(len(active))))
        if self.use_ulysses_sp:
            packed, _, _ = ulysses_pad_and_slice_inputs(packed, None, sp_size=self.ulysses_sequence_parallel_size)
        return packed[0].bool()
