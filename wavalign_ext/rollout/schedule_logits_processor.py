"""A logits processor for vLLM: the next token must be of a kind that the layout's schedule allows.

vLLM's engine imports it with ``wavalign.constrained_decoding=true``. The recipe then names it in
``actor_rollout_ref.rollout.engine_kwargs.vllm.logits_processors`` and puts the layout into ``additional_config``. It
acts on training rollouts and on validation.

The sampler then differs from the policy: a token that would break the schedule has probability 0, while log-probs and
gradients are those of the free policy. So use it for a model that rarely breaks its schedule;
``training/rollout_probs_diff_mean`` shows how much it had to change.
"""

from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor

from wavalign_ext.speech.layout import load_layout
from wavalign_ext.speech.turn_grammar import KINDS, Turns, kinds_of_ids

LAYOUT_KEY = "wavalign_layout"


class ConstrainedDecoding(LogitsProcessor):
    """Sets logits to −∞ where a token's kind may not come next. V ids, B requests of a batch."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        from transformers import AutoTokenizer

        model = vllm_config.model_config
        settings = vllm_config.additional_config
        if not isinstance(settings, dict) or LAYOUT_KEY not in settings:
            raise ValueError(
                f"ConstrainedDecoding needs additional_config.{LAYOUT_KEY}: set wavalign.constrained_decoding=true"
            )
        tokenizer = AutoTokenizer.from_pretrained(model.tokenizer, trust_remote_code=model.trust_remote_code)
        self.layout = load_layout(settings[LAYOUT_KEY]).resolve(tokenizer)
        self.device = device
        self.kinds: list[int] = []
        self.requests: dict[int, _Request] = {}
        self.refused: dict[frozenset[int], torch.Tensor] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow vLLM's batch: requests leave, come and move, in this order."""
        if batch_update is None:
            return
        for row in batch_update.removed:
            self.requests.pop(row, None)
        for row, _, _, output_ids in batch_update.added:
            self.requests[row] = _Request(Turns(self.layout), output_ids)
        for source, target, direction in batch_update.moved:
            moved, replaced = self.requests.pop(source, None), self.requests.pop(target, None)
            if moved is not None:
                self.requests[target] = moved
            if replaced is not None and direction.name == "SWAP":
                self.requests[source] = replaced

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, V), changed in place."""
        if len(self.kinds) != logits.shape[1]:
            self.kinds, self.refused = kinds_of_ids(self.layout, logits.shape[1]), {}
        for row, request in self.requests.items():
            logits[row].masked_fill_(self._refused(request.allowed(self.kinds)), float("-inf"))
        return logits

    def _refused(self, allowed: frozenset[int]) -> torch.Tensor:
        """Ids (V,) whose kind is not among ``allowed``; there are few such sets, so each is kept."""
        if allowed not in self.refused:
            by_kind = torch.tensor([kind not in allowed for kind in range(KINDS)])
            self.refused[allowed] = by_kind[torch.tensor(self.kinds)].to(self.device)
        return self.refused[allowed]


class _Request:
    """A request's place in its schedule; vLLM appends to ``output_ids``."""

    def __init__(self, turns: Turns, output_ids: list[int]) -> None:
        self.turns, self.output_ids, self.seen = turns, output_ids, 0

    def allowed(self, kinds: list[int]) -> frozenset[int]:
        while self.seen < len(self.output_ids):
            self.turns.step(kinds[self.output_ids[self.seen]])
            self.seen += 1
        return self.turns.allowed()
