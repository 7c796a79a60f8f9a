"""One actor update: which rows it takes, in which order, and with which weights."""

# TransferQueue and tensordict annotate more narrowly than they behave.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions

from wavalign_ext.method.anchor import padding_row, split_mini_batches, supervised_row
from wavalign_ext.method.mixing import row_shares
from wavalign_ext.method.token_weights import ANCHOR, ROLLOUT, ROW_FIELDS, TokenWeights, token_weights
from wavalign_ext.trainer.rollout_dump import plain
from wavalign_ext.trainer.step import real_rows
from wavalign_ext.trainer.validation_nll import target_rows

UPDATE_FIELDS = ["prompts", "responses", "input_ids", "position_ids", "response_mask", "loss_mask", "advantages"]
UPDATE_FIELDS += ["modality", "row_kind", "temperature", "multi_modal_inputs", *ROW_FIELDS]


class ActorUpdate:
    """Which rows one actor update takes, in which order, with which weights."""

    def __init__(self, trainer: Any, batch: KVBatchMeta) -> None:
        self.trainer, self.partition = trainer, batch.partition_id
        self.actor = trainer.config.actor_rollout_ref.actor
        rows = real_rows(batch)
        self.keys, self.tags = [batch.keys[r] for r in rows], [batch.tags[r] for r in rows]
        fields = ["uid", "index", "prompts", "response_mask", "modality", "scored", "pair"]
        data = tq.kv_batch_get(self.keys, self.partition, select_fields=fields)
        self.modality, self.mask = list(data["modality"].unbind()), list(data["response_mask"].unbind())
        self.kind, self.scored = [ROLLOUT] * len(self.keys), data["scored"].bool().tolist()
        self.pair = data["pair"].tolist()
        self.new_rows: list[dict[str, Any]] = []
        self.new_keys: list[str] = []
        groups = self._group(list(data["uid"]))
        if trainer.wav.uses_anchor:
            self._add_anchors(groups, [int(i) for i in data["index"]], data["prompts"].unbind())
            self._add_anchors_alone(groups, trainer.vanished)
        self.anchors = len(self.new_rows)
        self._split(list(groups.values()))
        self.by_prompt = trainer.mixing.last.by_prompt
        self.prompt_of = {row: uid for uid, rows in groups.items() for row in rows}
        self._weigh()
        self.has_reference = "ref_log_prob" in batch.fields if batch.fields else trainer.use_reference_policy

    def _group(self, uids: list[str]) -> dict[str, list[int]]:
        groups: dict[str, list[int]] = defaultdict(list)
        for row, uid in enumerate(uids):
            groups[uid].append(row)
        return groups

    def _heard(self, groups: dict[str, list[int]]) -> list[dict[str, Any]]:
        """What the model hears of each group's prompt, where that is more than ids: as its first rollout has it."""
        if self.trainer.layout.layout.encoder is None:
            return [{} for _ in groups]
        first = [self.keys[rows[0]] for rows in groups.values()]
        data = tq.kv_batch_get(first, self.partition, select_fields=["multi_modal_inputs"])
        return plain(list(data["multi_modal_inputs"]))

    def _add_anchors(self, groups: dict[str, list[int]], index: list[int], prompts: Any) -> None:
        for heard, (uid, rows) in zip(self._heard(groups), groups.items(), strict=True):
            target = self.trainer.target(self.trainer.targets[index[rows[0]]])
            # Sessions are numbered from 0 to n − 1; verl parses this number when it sorts a dump.
            session = 1 + max(int(self.keys[row].rsplit("_", 2)[1]) for row in rows)
            kinds, drawn = self.trainer.layout.modality(target), self.trainer.layout.drawn(target)
            row = supervised_row(prompts[rows[0]].tolist(), target, ANCHOR, kinds, drawn)
            groups[uid].append(self._add(f"{uid}_{session}_0", row | {"multi_modal_inputs": heard}))

    def _add_anchors_alone(self, groups: dict[str, list[int]], vanished: dict[str, int]) -> None:
        """Anchors of prompts that no rollout came of: the target does not depend on them."""
        numbers = list(vanished.values())
        if not numbers:
            return
        targets = [self.trainer.targets[number] for number in numbers]
        rows = target_rows(self.trainer, self.trainer.train_dataset, targets, numbers)
        for uid, row in zip(vanished, rows, strict=True):
            groups[uid].append(self._add(f"{uid}_0_0", row))

    def _add(self, key: str, row: dict[str, Any]) -> int:
        self.new_keys.append(key)
        self.new_rows.append(row)
        self.modality.append(row["modality"])
        self.mask.append(row["response_mask"])
        self.kind.append(int(row["row_kind"]))
        self.scored.append(True)
        self.pair.append(-1)
        return len(self.kind) - 1

    def _split(self, groups: list[list[int]]) -> None:
        dispatch = self.trainer.actor_rollout_wg._dispatch_info["actor"]  # filled by _balance_batch
        self.ranks = max(dispatch) + 1
        micro = 1 if self.actor.use_dynamic_bsz else self.actor.ppo_micro_batch_size_per_gpu
        split = split_mini_batches(groups, self.actor.ppo_mini_batch_size, self.ranks * micro)
        self.mini_batches, self.rows_per_mini_batch = split.rows, split.padded_size
        for number, rows in enumerate(self.mini_batches):
            while len(rows) < split.padded_size:
                rows.append(self._add(f"padding{number}x{len(rows)}_0_0", padding_row(*self.trainer.layout.padding)))

    def _weigh(self) -> None:
        """Per row, its weights in its mini-batch; rollouts also get their kind and the sampling temperature."""
        temperature = float(self.trainer.config.actor_rollout_ref.rollout.temperature)
        self.rollout_columns: list[dict[str, Any]] = [
            {"row_kind": torch.tensor(ROLLOUT), "temperature": torch.tensor(temperature)} for _ in self.keys
        ]
        pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
        wav = self.trainer.wav
        for rows in self.mini_batches:
            weights = token_weights(
                pad([self.modality[r] for r in rows]),
                pad([self.mask[r] for r in rows]),
                torch.tensor([self.kind[r] for r in rows]),
                torch.tensor([self.scored[r] for r in rows]),
                preference=wav.preference,
                anchor=wav.anchor,
                boundary_modality=wav.boundary_modality,
                aggregation=self.actor.loss_agg_mode,
                scale=self.actor.loss_scale_factor or self.trainer.config.data.max_response_length,
                pair_R=torch.tensor([self.pair[r] for r in rows]) if wav.preference.paired else None,
            )
            streams = (*self._by_gate(weights, rows), weights.text, weights.speech)
            for position, row in enumerate(rows):
                columns = self.rollout_columns[row] if row < len(self.keys) else self.new_rows[row - len(self.keys)]
                length = len(self.mask[row])
                columns.update({n: w[position, :length] for n, w in zip(ROW_FIELDS, streams, strict=True)})

    def _by_gate(self, weights: TokenWeights, rows: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Preference and anchor weights, (R, T), each row's by the λ of its prompt where the run has one for each."""
        if not self.by_prompt:
            return weights.preference, weights.anchor
        lam = self.trainer.lam  # a padding row has no prompt, and no weight either
        shares = row_shares([self.by_prompt.get(self.prompt_of.get(row), lam) for row in rows], lam)
        preference, anchor = (torch.tensor(share, dtype=torch.float32)[:, None] for share in shares)
        return weights.preference * preference, weights.anchor * anchor

    @property
    def new_tags(self) -> list[dict[str, Any]]:
        """Tags of the added rows; verl reads the step numbers of every tag."""
        steps = {k: self.tags[0].get(k) for k in ("global_steps", "min_global_steps", "max_global_steps")}
        return [
            dict(
                steps,
                status="success",
                is_anchor=int(row["row_kind"]) == ANCHOR,
                prompt_len=len(row["prompts"]),
                response_len=len(row["responses"]),
                seq_len=len(row["input_ids"]),
            )
            for row in self.new_rows
        ]

    def meta(self, lam: float) -> KVBatchMeta:
        """The batch to send: fields are named, because TransferQueue otherwise returns what a rank's rows share."""
        fields = UPDATE_FIELDS + (["ref_log_prob"] if self.has_reference else [])
        if not self.trainer.skips_old_log_probs:
            # An objective over pairs has its advantages of them; its gradient is that of ρ = 1.
            fields += [] if self.trainer.wav.preference.paired else ["old_log_probs"]
        elif self.trainer.config.actor_rollout_ref.rollout.calculate_log_probs:
            fields.append("rollout_log_probs")
        tags = self.tags + self.new_tags
        meta = KVBatchMeta(keys=self.keys + self.new_keys, tags=tags, partition_id=self.partition, fields=fields)
        meta.reorder(order_for_ranks(self.mini_batches, [tag["seq_len"] for tag in tags], self.ranks))
        meta.extra_info = {
            "wavalign_lambda": lam,
            "calculate_entropy": bool(self.actor.calculate_entropy or self.actor.entropy_coeff != 0),
            "distillation_use_topk": False,
            "distillation_only": False,
            "global_batch_size": self.rows_per_mini_batch,
            "mini_batch_size": self.rows_per_mini_batch,
            "epochs": self.actor.ppo_epochs,
            "seed": self.actor.data_loader_seed,
            "dataloader_kwargs": {"shuffle": False},
        }
        return meta

    def metrics(self) -> dict[str, float]:
        """How the rows were divided."""
        return {
            "wavalign/rows_rollout": len(self.keys),
            "wavalign/rows_anchor": self.anchors,
            "wavalign/rows_padding": len(self.new_rows) - self.anchors,
            "wavalign/optimiser_steps": len(self.mini_batches) * self.actor.ppo_epochs,
        }


def order_for_ranks(mini_batches: Sequence[Sequence[int]], seq_lens: Sequence[int], ranks: int) -> list[int]:
    """Row order such that verl's contiguous split over ranks, then over mini-batches, gives back ``mini_batches``.

    Within a mini-batch the rows are dealt so that ranks get equally many rows and about equal work.
    """
    per_rank: list[list[int]] = [[] for _ in range(ranks)]
    for rows in mini_batches:
        work = calculate_workload(torch.tensor([seq_lens[row] for row in rows], dtype=torch.int64))
        parts: Any = get_seqlen_balanced_partitions(work, ranks, equal_size=True)  # pyright: ignore[reportArgumentType]
        for rank, part in enumerate(parts):
            per_rank[rank] += [rows[position] for position in part]
    return [row for rows in per_rank for row in rows]
