"""verl's FSDP engine over two streams: flat rows fold into frames on the way in, and unfold on the way out.

verl's own ``prepare_model_inputs`` and ``prepare_model_outputs`` and the fused head's run once per stream over frames,
so packing, padding, temperatures, entropies and the loss are theirs. Letters: R rows, F frames of all rows.
"""

# TensorDict annotates more narrowly than it behaves.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from wavalign_ext.integration.fused_head import FusedHead
from wavalign_ext.parallel.config import MODEL_TYPES

TEXT, AUDIO = 0, 1
NESTED = torch.nested.nested_tensor_from_jagged


class TwoStreamEngine:
    """Before ``FusedHeadEngine`` and ``FSDPEngineWithLMHead`` in the bases; other models pass through."""

    heads: tuple[FusedHead, FusedHead] | None = None
    streams: Any = None  # the configuration of a two-stream model

    def initialize(self: Any) -> None:
        super().initialize()  # type: ignore[misc]
        config = self.model_config.hf_config
        if config.model_type not in MODEL_TYPES:
            return
        if self.ulysses_sequence_parallel_size > 1:
            raise NotImplementedError(
                f"ulysses_sequence_parallel_size={self.ulysses_sequence_parallel_size} is not made for a two-stream "
                "model: set it to 1"
            )
        self.streams = config
        if self.fused is not None:
            audio = FusedHead(self._audio_head())
            audio.head.forward = audio
            self.heads = (self.fused, audio)

    def _audio_head(self: Any) -> Any:
        return next(module for name, module in self.module.named_modules() if name.endswith("audio_head"))

    def forward_step(self: Any, micro_batch: Any, loss_function: Any, forward_only: bool) -> Any:
        try:
            return super().forward_step(micro_batch, loss_function, forward_only)  # type: ignore[misc]
        finally:
            for head in self.heads or ():
                head.scored = None
            if self.heads:
                self.fused = self.heads[TEXT]

    def prepare_model_inputs(self: Any, micro_batch: Any) -> Any:
        if self.streams is None:
            return super().prepare_model_inputs(micro_batch)  # type: ignore[misc]
        made = []
        for stream in (TEXT, AUDIO):
            if self.heads:
                self.fused = self.heads[stream]
            inputs, arguments = super().prepare_model_inputs(fold(micro_batch, stream))  # type: ignore[misc]
            if stream == AUDIO:
                self._to_the_heads_rows(arguments)
            made.append((inputs, arguments))
        (inputs, arguments), (audio_inputs, audio_arguments) = made
        inputs["audio_ids"] = audio_inputs["input_ids"]
        return inputs, {TEXT: arguments, AUDIO: audio_arguments}

    def _to_the_heads_rows(self: Any, arguments: dict[str, Any]) -> None:
        """Targets on the audio stream as rows of its head; ids that are never said, which no loss is on, as row 0."""
        first, count = self.streams.text_vocab, self.streams.audio_said

        def row(ids: Tensor) -> Tensor:
            return torch.where((ids >= first) & (ids < first + count), ids - first, 0)

        arguments["input_ids_rmpad_rolled"] = row(arguments["input_ids_rmpad_rolled"])
        if self.fused is not None:
            self.fused.scored = replace(self.fused.scored, targets=row(self.fused.scored.targets))

    def prepare_model_outputs(
        self: Any, output: Any, output_args: Any, micro_batch: Any, logits_processor_func: Any
    ) -> Any:
        if self.streams is None:
            return super().prepare_model_outputs(  # type: ignore[misc]
                output, output_args, micro_batch, logits_processor_func
            )
        parts = []
        for stream in (TEXT, AUDIO):
            if self.heads:
                self.fused = self.heads[stream]
            own = copy.copy(output)
            own.logits = output.logits[stream]
            folded = fold(micro_batch, stream)
            parts.append(
                super().prepare_model_outputs(own, output_args[stream], folded, logits_processor_func)  # type: ignore[misc]
            )
        text, audio = parts
        made = {"loss": text.pop("loss") + audio.pop("loss")} if "loss" in text else {}
        offsets = micro_batch["input_ids"].offsets()
        return made | {name: unfold(text[name].values(), audio[name].values(), offsets) for name in text}


def fold(batch: Any, stream: int) -> Any:
    """A micro-batch of one stream: its ids, their frames' positions, and its half of every column over an answer's ids.

    Raises:
        ValueError: a row with an odd number of ids.
    """
    offsets, answers = batch["input_ids"].offsets(), batch["responses"].offsets()
    if bool((offsets % 2).any()) or bool((answers % 2).any()):
        raise ValueError("a row of two streams has an odd number of ids: prompt and answer hold whole frames")
    folded = batch.copy()
    for name, column in batch.items():
        if not isinstance(column, Tensor) or not column.is_nested:
            continue
        values, own = column.values(), column.offsets()
        if name == "position_ids":
            folded[name] = NESTED(values[0::2] // 2, own // 2)
        elif values.dim() == 1 and not bool((own % 2).any()):
            folded[name] = NESTED(values[stream::2], own // 2)
    return folded


def unfold(text: Tensor, audio: Tensor, offsets: Tensor) -> Tensor:
    """Values (F,) of each frame "of the next id" on both streams → flat ones, jagged (R, 2F).

    verl's column j belongs to id j + 1. Frame m says the ids 2m + 2 and 2m + 3, columns 2m + 1 and 2m + 2. Column 0, of
    the first frame's audio, has no prediction; a row's last frame spills into the next row, as in verl's own roll, and
    is never read.
    """
    flat = torch.stack([text, audio], -1).flatten()
    return NESTED(torch.cat([flat.new_zeros(1), flat[:-1]]), offsets)
