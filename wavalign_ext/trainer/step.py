"""A training step's rollouts, read once from verl's queue."""

# TransferQueue and tensordict annotate more narrowly than they behave.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta

from wavalign_ext.config import PreferenceConfig, WavAlignConfig
from wavalign_ext.method.anchor import rows_to_tensordict
from wavalign_ext.method.objectives import Pairs
from wavalign_ext.method.token_weights import chosen_tokens, modality_masks
from wavalign_ext.rewards.routing import rewards_by_modality
from wavalign_ext.speech.layout import ResolvedLayout
from wavalign_ext.trainer.estimator import Route
from wavalign_ext.trainer.metrics import RolloutBatch
from wavalign_ext.trainer.rollout_dump import plain

FIELDS = ["uid", "responses", "response_mask", "rm_scores", "old_log_probs", "ref_log_prob", "entropy"]


def real_rows(batch: KVBatchMeta) -> list[int]:
    """Row numbers that are rollouts, not copies that verl added to fill up the batch."""
    return [row for row, tag in enumerate(batch.tags) if not tag.get("is_padding", False)]


@dataclass(frozen=True)
class Step:
    """N rows of T response tokens, verl's copies included; ``real`` are the numbers of the rollouts among them.

    ``rewards`` (N,) is NaN where the score is missing. ``columns`` has (N, T) tensors by the queue's names, without
    those that the run did not compute. ``infos`` is what the reward manager says of each rollout.
    """

    batch: KVBatchMeta
    real: list[int]
    uids: list[str]
    modality: list[torch.Tensor]
    rewards: torch.Tensor
    scores: list[torch.Tensor]
    columns: Any
    infos: list[dict[str, Any]]
    text: torch.Tensor
    speech: torch.Tensor

    @classmethod
    def read(cls, batch: KVBatchMeta, layout: ResolvedLayout, boundary_modality: str) -> "Step":
        """Everything that λ, metrics and advantages are made of."""
        data, real = tq.kv_batch_get(batch.keys, batch.partition_id, select_fields=FIELDS), real_rows(batch)
        said = tq.kv_batch_get([batch.keys[row] for row in real], batch.partition_id, select_fields=["extra_fields"])
        modality = [layout.modality(ids) for ids in data["responses"].unbind()]
        columns = data.select(*[name for name in FIELDS if name != "uid" and name in data.keys()]).to_padded_tensor()
        stacked = torch.nn.utils.rnn.pad_sequence([kinds.long() for kinds in modality], batch_first=True)
        text, speech = modality_masks(stacked, columns["response_mask"], boundary_modality)
        scores = list(data["rm_scores"].unbind())
        return cls(
            batch=batch,
            real=real,
            uids=list(data["uid"]),
            modality=modality,
            rewards=torch.stack([score.sum() for score in scores]),
            scores=scores,
            columns=columns,
            infos=[fields["reward_extra_info"] for fields in plain(list(said["extra_fields"]))],
            text=text,
            speech=speech,
        )

    @property
    def groups(self) -> list[str]:
        """The prompt of each rollout."""
        return [self.uids[row] for row in self.real]

    def rollouts(self, eos_ids: tuple[int, ...], referenced: Collection[str] = ("text", "speech")) -> RolloutBatch:
        """What the metrics of a step are made of: the rollouts alone.

        ``referenced``: the modalities that the reference policy has scored.
        """
        ended = torch.isin(self.columns["responses"], torch.tensor(eos_ids)) & self.columns["response_mask"].bool()

        def rows(name: str) -> torch.Tensor | None:
            return self.columns[name][self.real] if name in self.columns.keys() else None

        return RolloutBatch(
            masks={"text": self.text[self.real], "speech": self.speech[self.real]},
            rewards=self.rewards[self.real],
            groups=self.groups,
            ended=ended.any(-1)[self.real],
            entropy=rows("entropy"),
            logp=rows("old_log_probs"),
            reference=rows("ref_log_prob"),
            referenced=referenced,
        )

    def weights(self, preference: PreferenceConfig) -> torch.Tensor:
        """w_t of the preference, (N, T), before any mean."""
        return chosen_tokens(preference, self.text, self.speech)

    def preferred(self, wav: WavAlignConfig) -> tuple[torch.Tensor, list[Route], str]:
        """Arguments of :func:`wavalign_ext.trainer.estimator.preferred_tokens`."""
        masks, tokens = {"text": self.text, "speech": self.speech}, self.tokens(wav.preference)
        routes: list[Route] = []
        if routed := wav.reward.routed:
            own = rewards_by_modality(self.rewards[self.real], self.infos, routed)
            for modality in routed:
                rewards = torch.full_like(self.rewards, math.nan)  # verl's copies have no advantage of their own
                rewards[self.real] = own[modality]
                routes.append((masks[modality], rewards))
        return tokens, routes, wav.preference.advantage

    def tokens(self, preference: PreferenceConfig) -> torch.Tensor:
        """Where the preference acts, bool (N, T)."""
        masks = {"text": self.text, "speech": self.speech, "all": self.text | self.speech}
        return masks[preference.tokens]

    def store(self, pairs: Pairs | None = None) -> None:
        """Keep with the rows their modality, whether they count, and their pair under an objective over pairs.

        A row of a pair counts without a score. verl's own statistics get the mean for a missing one.
        """
        numbers = (pairs or Pairs([], [])).numbers(len(self.uids))
        known = self.rewards[~torch.isnan(self.rewards)]
        fill = known.mean() if len(known) else torch.tensor(0.0)
        rows = [
            {
                "modality": kinds.to(torch.int64),
                "scored": (~torch.isnan(reward) | (number >= 0)).long(),
                "pair": number,
                "rm_scores": torch.where(torch.isnan(score), fill, score),
            }
            for kinds, reward, score, number in zip(self.modality, self.rewards, self.scores, numbers, strict=True)
        ]
        fields = rows_to_tensordict(rows)
        tq.kv_batch_put(keys=self.batch.keys, partition_id=self.batch.partition_id, fields=fields)
