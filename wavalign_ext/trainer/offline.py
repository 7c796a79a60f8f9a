"""The trainer ``wavalign_offline``: pairs from the data in place of rollouts.

verl's loop, data loader, checkpoints and logs are as ever; where it would ask the agent loops for rollouts, a feeder
puts the two answers of each prompt into its queue. No rollout engine and no reward worker is started, and no reference
policy: before a checkpoint is loaded the actor has the reference's weights, and scores every answer that the cache does
not have.
"""

# TransferQueue and tensordict annotate more narrowly than they behave.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm
from verl.trainer.ppo.v1.trainer_base import register_trainer

from wavalign_ext.data.dataset import SpokenDataset
from wavalign_ext.method.anchor import rows_to_tensordict
from wavalign_ext.method.objectives import Pairs, pair_terms
from wavalign_ext.method.token_weights import ROLLOUT, chosen_tokens, modality_masks
from wavalign_ext.trainer.pairing import term_metrics
from wavalign_ext.trainer.reference_cache import ReferenceCache, content, model_fingerprint
from wavalign_ext.trainer.scoring import answer_row, prompt_builder, score_rows
from wavalign_ext.trainer.step import Step
from wavalign_ext.trainer.trainer import WavAlignTrainer
from wavalign_ext.trainer.validation_nll import held_out_nll

CHUNK = 64  # pairs that are scored and kept at a time
CHOSEN, REJECTED = 0, 1  # the session numbers of a pair's rows


class PairFeeder:
    """Takes the place of verl's agent loops (``rollout.agent.agent_loop_manager_class``)."""

    agent_loop_workers = ()
    trainer: Any = None

    @classmethod
    def create(cls, **_: Any) -> "PairFeeder":
        """As verl's task runner makes one; the trainer introduces itself in ``fit``."""
        return cls()

    def generate_sequences(self, prompts: Any) -> None:
        """Put both answers of each prompt into verl's queue."""
        self.trainer.feed(list(prompts["uid"]), [int(index) for index in prompts["index"]])


@register_trainer("wavalign_offline")
class OfflineTrainer(WavAlignTrainer):
    """An objective over pairs, on pairs of the data (``rejected_text``, ``rejected_speech``)."""

    _enable_hybrid_replicas = False  # verl's own switch: no rollout engine

    def __init__(self, config: DictConfig) -> None:
        config.reward.num_workers = 0
        super().__init__(config)

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        self.builder = prompt_builder(self)

    def fit(self, agent_loop_manager: PairFeeder) -> None:
        agent_loop_manager.trainer = self
        super().fit(agent_loop_manager)

    # No engine has the weights of the actor.
    def on_init_end(self) -> None: ...
    def on_step_end(self) -> None: ...
    def on_sample_end(self) -> None: ...

    # --- rows -----------------------------------------------------------------------------------------------------

    def rows(self, dataset: SpokenDataset, number: int) -> list[dict[str, Any]]:
        """The chosen and the rejected answer of a row of the data, as rows of the update."""
        data, pair = dataset[number], dataset.pair(number)
        return [answer_row(self, self.builder, data, answer, ROLLOUT) for answer in (pair.chosen, pair.rejected)]

    def feed(self, uids: Sequence[str], numbers: Sequence[int]) -> None:
        """Put the pairs of these rows of the training data into verl's queue, as finished rollouts."""
        keys, rows, tags = [], [], []
        for uid, number in zip(uids, numbers, strict=True):
            scores = self.train_dataset.pair(number).scores
            for session, row in enumerate(self.rows(self.train_dataset, number)):
                keys.append(f"{uid}_{session}_0")
                rows.append(self._as_rollout(row, uid, number, scores[session]))
                tags.append(self._tag(row))
        tq.kv_batch_put(keys=keys, partition_id="train", fields=rows_to_tensordict(rows), tags=tags)
        for uid in uids:
            tq.kv_put(key=uid, partition_id="train", tag={"status": "finished"})

    def _as_rollout(self, row: dict[str, Any], uid: str, number: int, score: float) -> dict[str, Any]:
        """``row`` with what verl's loop reads of a rollout; nobody sampled it."""
        length = len(row["responses"])
        made = {name: value for name, value in row.items() if not name.endswith("log_probs")}
        if self.reference is not None:
            made["ref_log_prob"] = self.reference[_content(row)]
        return made | {
            "uid": uid,
            "index": torch.tensor(number),
            "rm_scores": torch.cat([torch.zeros(length - 1), torch.tensor([score])]),
            "num_turns": torch.tensor(2),
            "extra_fields": {"reward_extra_info": {}},
        }

    def _tag(self, row: dict[str, Any]) -> dict[str, Any]:
        step = self.global_steps
        lengths = {"prompt_len": len(row["prompts"]), "response_len": len(row["responses"])}
        return {
            "status": "success",
            "seq_len": sum(lengths.values()),
            "global_steps": step,
            "min_global_steps": step - 1,
            "max_global_steps": step - 1,
        } | lengths

    # --- the reference policy -------------------------------------------------------------------------------------

    def _load_checkpoint(self) -> None:
        self.reference = None if self.wav.preference.pairs.reference_free else self._score_reference()
        super()._load_checkpoint()

    def _score_reference(self) -> ReferenceCache:
        """Score what the cache lacks, by the actor as it was loaded: the weights of ``model.path``."""
        actor, model = self.config.actor_rollout_ref.actor, self.config.actor_rollout_ref.model
        how = OmegaConf.to_container(model.override_config) | {"dtype": actor.fsdp_config.model_dtype}  # type: ignore[operator]
        cache = ReferenceCache(model_fingerprint(model.path, how))
        missing = {_content(row): row for row in self._all_rows() if _content(row) not in cache}
        rows = list(missing.items())
        print(f"wavalign: the reference policy scores {len(rows)} answers; the others are in {cache.path}", flush=True)
        for start in tqdm(range(0, len(rows), 2 * CHUNK), desc="reference", disable=not rows):
            some = rows[start : start + 2 * CHUNK]
            self.pace.enter("the reference's scores", 0)  # by the chunk: all of them may take hours
            logps = score_rows(self, [row for _, row in some], without_adapter=self.ref_in_actor)
            cache.update(zip([name for name, _ in some], logps, strict=True))
        return cache

    def _all_rows(self) -> Iterator[dict[str, Any]]:
        for dataset in (self.train_dataset, self.val_dataset):
            for number in range(len(dataset)):
                yield from self.rows(dataset, number)

    # --- pairs ----------------------------------------------------------------------------------------------------

    def _pairs(self, step: Step) -> Pairs:
        """Each prompt's two rows, by their session numbers."""
        sessions: dict[str, dict[int, int]] = {}
        for row in step.real:
            sessions.setdefault(step.uids[row], {})[int(step.batch.keys[row].rsplit("_", 2)[1])] = row
        both = list(sessions.values())
        return Pairs([pair[CHOSEN] for pair in both], [pair[REJECTED] for pair in both])

    def _validate(self) -> dict[str, float]:
        self.pace.enter("the validation", self.global_steps)
        return held_out_nll(self) | self._held_out_pairs()

    def _held_out_pairs(self) -> dict[str, float]:
        """``val-pairs/loss``, ``margin`` and ``accuracy`` of the validation pairs."""
        rows = [row for number in range(len(self.val_dataset)) for row in self.rows(self.val_dataset, number)]
        preference = self.wav.preference

        def pad(columns: Sequence[torch.Tensor]) -> torch.Tensor:
            return torch.nn.utils.rnn.pad_sequence(list(columns), batch_first=True)

        text, speech = modality_masks(
            pad([row["modality"] for row in rows]),
            pad([row["response_mask"] for row in rows]),
            self.wav.boundary_modality,
        )
        reference = None if self.reference is None else pad([self.reference[_content(row)] for row in rows])
        numbers = list(range(len(rows)))
        terms = pair_terms(
            Pairs(numbers[::2], numbers[1::2]),
            chosen_tokens(preference, text, speech),
            pad(score_rows(self, rows)),
            reference,
            preference.objective,
            preference.pairs,
        )
        return {f"val-pairs/{name}": value for name, value in term_metrics(terms, preference.pairs.beta).items()}

    def _log_rollout_data(self, *_: Any) -> None:
        """The answers are those of the data."""


def _content(row: dict[str, Any]) -> str:
    heard = row["multi_modal_inputs"].values()  # in what a prompt's placeholders stand for, two may differ
    return content(
        row["prompts"].tolist(),
        row["responses"].tolist(),
        *(vectors.view(torch.uint8).numpy().tobytes() for vectors in heard),
    )
