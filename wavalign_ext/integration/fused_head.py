"""The language-model head by ``wavalign_kernels``: only the positions that a pass needs, and no [T, V].

Inside verl's FSDP engine the head's ``forward`` answers with a few numbers per position where a model's own head has
logits. So every causal LM of transformers that ends with its head works as it is, LoRA and FSDP's unsharding included.

- A pass without a loss (old and reference policy) gets the log-prob of the next token and the entropy: 2·A·H·V.
- An update gets the whole loss, its gradient made in the same pass, and both numbers without gradient: 6·A·H·V.
- A loss that the head cannot make (``head_loss`` returns None) gets differentiable log-probs: 8·A·H·V.

A is the number of positions needed, H the hidden size, V the vocabulary. Switched on by verl's own keys:

    actor_rollout_ref.model.use_fused_kernels=true  actor_rollout_ref.model.fused_kernel_options.impl_backend=wavalign
"""

# TensorDict annotates more narrowly than it behaves.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from verl.utils import tensordict_utils as tu
from verl.utils.ulysses import ulysses_pad_and_slice_inputs
from wavalign_kernels import LossInputs, linear_logprob, wavalign_loss

BACKEND = "wavalign"
SCORE_ONLY = "wavalign_score_only"  # batch-level: the name of a column that is 1 on the response tokens to score
# What a model may do to its logits after the head, by the name of the configuration key.
AFTER_THE_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling")
UNSUPPORTED = ("distillation_use_topk", "distillation_only", "calculate_sum_pi_squared")


class UnsupportedHead(ValueError):
    """The model's head cannot be fused; the message says why, and how to go on without."""


@dataclass(frozen=True)
class Scored:
    """What the head needs to know of one micro-batch; columns have the shape of its hidden states less the last one.

    ``active``: where a log-prob is wanted. ``loss``: what :class:`wavalign_kernels.LossInputs` takes beside targets and
    temperature, or None for log-probs with a gradient of their own.
    """

    targets: Tensor
    temperature: Tensor
    entropy: bool
    active: Tensor | None = None
    loss: dict[str, Any] | None = None


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
        """(…, H) → logits (…, V), or, with ``scored`` set, (…, 2) or (…, 3): log-prob, entropy and share of the loss.

        The shares sum to the loss; all of it lies on the first position.
        """
        head, scored = self.head, self.scored
        if scored is None:
            return nn.functional.linear(hidden, head.weight, head.bias)
        with torch.autocast(hidden.device.type, enabled=False):  # it would round the kernel's fp32 sums
            hidden = hidden.to(head.weight.dtype)
            if scored.loss is not None:
                return self._one_pass(hidden, scored)
            logp, entropy = linear_logprob(
                hidden,
                head.weight,
                scored.targets,
                active=scored.active,
                bias=head.bias,
                temperature=scored.temperature,
                entropy=scored.entropy,
            )
        return torch.stack([logp, torch.zeros_like(logp) if entropy is None else entropy], -1)

    def _one_pass(self, hidden: Tensor, scored: Scored) -> Tensor:
        columns = {name: v.flatten() if isinstance(v, Tensor) and v.dim() else v for name, v in scored.loss.items()}
        inputs = LossInputs(targets=scored.targets.flatten(), temperature=scored.temperature.flatten(), **columns)
        flat = hidden.reshape(-1, hidden.shape[-1])
        made = wavalign_loss(flat, self.head.weight, inputs, bias=self.head.bias)
        share = nn.functional.pad(made.loss[None], (0, len(flat) - 1))
        return torch.stack([made.logp, made.entropy, share], -1).view(*hidden.shape[:-1], 3)


def check_config(config: Any) -> None:
    """Raises :class:`UnsupportedHead` for a model configuration that changes logits after the head."""
    for key in AFTER_THE_HEAD:
        if getattr(config, key, None) not in (None, 1, 1.0):
            raise UnsupportedHead(
                f"the fused head cannot apply {key}={getattr(config, key)!r} of {config.model_type!r}: "
                "set actor_rollout_ref.model.use_fused_kernels=false"
            )


def response_positions(data: Any) -> Tensor:
    """Positions (K,) of the packed stream whose *next* token is a response token, row after row."""
    ends, lengths = data["input_ids"].offsets()[1:], data["responses"].offsets().diff()
    count = len(data["responses"].values())
    before = data["responses"].offsets()[:-1]  # response tokens of the rows before
    starts = torch.repeat_interleave(ends - lengths - 1 - before, lengths, output_size=count)
    return starts + torch.arange(count, device=starts.device)


class FusedHeadEngine:
    """For verl's ``FSDPEngineWithLMHead``: its inputs and outputs with the fused head in between, when that is on."""

    fused: FusedHead | None = None
    _loss_function: Any = None

    def initialize(self: Any) -> None:
        super().initialize()  # type: ignore[misc]
        options = self.model_config.fused_kernel_options or {}
        if self.model_config.use_fused_kernels and options.get("impl_backend") == BACKEND:
            self.fused = FusedHead.install(self.module, self.model_config.hf_config)

    def forward_step(self: Any, micro_batch: Any, loss_function: Any, forward_only: bool) -> Any:
        """verl's step; the loss is asked what it is made of when the micro-batch is on the device."""
        if self.fused is None:
            return super().forward_step(micro_batch, loss_function, forward_only)  # type: ignore[misc]
        self._loss_function = loss_function
        try:
            return super().forward_step(micro_batch, loss_function, forward_only)  # type: ignore[misc]
        finally:
            self.fused.scored = self._loss_function = None

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
        if "temperature_rmpad" in arguments:
            targets, temperature = arguments["input_ids_rmpad_rolled"][None], arguments["temperature_rmpad"][None]
            place = self._shard
        else:
            lengths = micro_batch["input_ids"].offsets().diff()
            inside = torch.arange(inputs["input_ids"].shape[1], device=lengths.device) < lengths[:, None]
            arguments["inside"] = inside

            def place(packed: Tensor) -> Tensor:
                return packed.new_zeros(inside.shape).masked_scatter_(inside, packed)

            targets = place(arguments["input_ids_rmpad_rolled"])
            temperature = arguments["temperature"][:, None].expand(inside.shape)
        self.fused.scored = self._scored(micro_batch, targets, temperature, place)
        return inputs, arguments

    def _scored(self: Any, data: Any, targets: Tensor, temperature: Tensor, place: Callable) -> Scored:
        """Columns over response tokens (K,), put where the hidden states that predict these tokens are."""
        positions, length = response_positions(data), len(data["input_ids"].values())

        def column(values: Tensor) -> Tensor:
            return place(values.new_zeros(length).index_copy_(0, positions, values))

        ask = getattr(self._loss_function, "head_loss", None)
        loss = None if ask is None else ask(data)
        if loss is not None:
            # FSDP averages gradients over all ranks, those of a sequence-parallel group included, each of which holds
            # a part of the loss; the loss function accounts for the data-parallel ones.
            loss = {
                name: column(value) if isinstance(value, Tensor) and value.dim() else value
                for name, value in loss.items()
            }
            return Scored(targets, temperature, True, loss=loss)
        needed = getattr(self._loss_function, "needed_tokens", needed_by_mask)(data)
        active = torch.ones(len(positions), dtype=torch.bool, device=positions.device) if needed is None else needed
        entropy = bool(tu.get_non_tensor_data(data, "calculate_entropy", False))
        return Scored(targets, temperature, entropy, active=column(active.long()).bool())

    def prepare_model_outputs(
        self: Any, output: Any, output_args: Any, micro_batch: Any, logits_processor_func: Any
    ) -> Any:
        """The head's numbers as verl's ``log_probs`` and ``entropy``, jagged (R, N), and ``loss`` where it made one."""
        if self.fused is None:
            return super().prepare_model_outputs(  # type: ignore[misc]
                output, output_args, micro_batch, logits_processor_func
            )
        scored, numbers, made = self.fused.scored, output.logits, {}
        if scored.loss is not None:
            made["loss"] = numbers[..., 2].sum() * (self.ulysses_sequence_parallel_size if self.use_ulysses_sp else 1)
            numbers = numbers[..., :2].detach()
        if "inside" in output_args:
            numbers = numbers[output_args["inside"]]
        else:
            numbers = self._gather_and_unpad_packed(numbers.squeeze(0), output_args["pad_size"])
        names = ("log_probs", "entropy") if scored.entropy else ("log_probs",)
        offsets = micro_batch["input_ids"].offsets()
        return made | {n: torch.nested.nested_tensor_from_jagged(numbers[:, i], offsets) for i, n in enumerate(names)}

    def _shard(self: Any, packed: Tensor) -> Tensor:
        """The part of a packed column (N,) that this rank holds, (1, M), padded as verl pads the tokens."""
        column = nn.functional.pad(packed[None], (0, self._get_packed_pad_size(len(packed))))
        if self.use_ulysses_sp:
            column, _, _ = ulysses_pad_and_slice_inputs(column, None, sp_size=self.ulysses_sequence_parallel_size)
        return column


def needed_by_mask(data: Any) -> Tensor | None:
    """Response tokens (K,) that a pass without a loss scores: those of the column that the batch names, or all."""
    name = tu.get_non_tensor_data(data, SCORE_ONLY, None)
    return None if name is None else data[name].values().bool()
