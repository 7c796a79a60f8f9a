"""The trainer ``wavalign``: verl's synchronous V1 trainer with λ and anchor rows.

Imported only after verl's own trainer (see ``patches.py``). Rows travel through verl's TransferQueue by key
``{uid}_{session}_{index}``; line numbers in comments are of verl 0.9.1's ``trainer/ppo/v1/trainer_base.py``.
"""

# TransferQueue and tensordict annotate more narrowly than they behave.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportUnusedCoroutine=false

import json
import math
import os
from typing import Any

import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.metric import reduce_metrics
from verl.utils.py_functional import rename_dict

from wavalign_ext.checkpoints.record import record
from wavalign_ext.checkpoints.whole import STATE_FILE, latest_step
from wavalign_ext.config import WavAlignConfig
from wavalign_ext.integration.ending import StopAsked
from wavalign_ext.integration.fused_head import SCORE_ONLY
from wavalign_ext.integration.mailbox import Mailbox
from wavalign_ext.integration.verl_loss import VerlLoss
from wavalign_ext.method.anchor import rows_to_tensordict
from wavalign_ext.method.loss import LossCoefficients
from wavalign_ext.method.mixing import MixingController
from wavalign_ext.method.objectives import Pairs
from wavalign_ext.method.policy_sums import policy_metrics
from wavalign_ext.method.token_weights import modality_masks
from wavalign_ext.speech.codecs import load_codec
from wavalign_ext.speech.layout import load_layout
from wavalign_ext.trainer.actor_batch import ActorUpdate
from wavalign_ext.trainer.estimator import given_advantages, preferred_tokens
from wavalign_ext.trainer.group_filter import ScoredGroups
from wavalign_ext.trainer.health import Diverged, Health, check_whole
from wavalign_ext.trainer.metrics import reward_metrics, rollout_metrics
from wavalign_ext.trainer.pairing import pair_metrics, rollout_pairs, step_terms
from wavalign_ext.trainer.rollout_dump import SampleWriter, said_if_it_fails
from wavalign_ext.trainer.saving import Saving
from wavalign_ext.trainer.step import Step, real_rows
from wavalign_ext.trainer.validation_nll import held_out_nll
from wavalign_ext.trainer.watchdog import (
    LINGER_S,
    Pace,
    Watchdog,
    explaining,
    loop_probes,
    queue_probes,
    trainer_probes,
)
from wavalign_ext.verl_keys import VerlKeys

REFERENCED = "referenced"  # column of a row: 1 on the response tokens that the reference policy scores
# verl looks for finished rollouts every 2 s: half of that is lost in every step, and a step of a small model has 6.
POLL_S = 0.2


@register_trainer("wavalign")
class WavAlignTrainer(PPOTrainerSync):
    """One policy forward and one optimiser step for the rollouts of some prompts and for their targets."""

    # The base class compares the mode with "sync" in six places and treats any other name as asynchronous.
    trainer_mode = property(lambda self: "sync", lambda self, value: None)  # type: ignore[assignment]

    def __init__(self, config: DictConfig) -> None:
        node: Any = OmegaConf.to_container(config.wavalign, resolve=True)
        self.wav = WavAlignConfig.from_mapping(node)
        self.mixing = MixingController(self.wav.mixing, self.wav.reward.scale)
        self.saving = Saving(config.trainer)
        self.record = record(config)
        self.prompts: dict[str, tuple[int, int]] = {}  # of the step: uid → (row of the data, rollouts asked for)
        self.vanished: dict[str, int] = {}  # those without any rollout: uid → row of the data
        self.savable: tuple[int, Any, dict[str, Any]] | None = None  # step, data, state: of what the workers hold now
        self.stoppable = True
        self.lam = 0.0
        self.keys = VerlKeys.of(config)
        scored = self.wav.uses_preference and not self.keys.offline  # pairs of the data need no scores
        self.health = Health(self.wav.health, expects_scores=scored)
        # An objective over pairs needs them before the update: its advantages are made of them.
        skips = self.wav.update.skip_old_log_probs and not self.wav.preference.paired
        self.skips_old_log_probs = skips and one_step_follows(self.keys)
        if self.skips_old_log_probs:  # verl would make metrics of a correction that is off, from old log-probs
            config.algorithm.rollout_correction = None
        # verl's TensorBoard logger has no other switch for its folder.
        os.environ.setdefault("TENSORBOARD_DIR", os.path.join(config.trainer.default_local_dir, "tensorboard"))
        super().__init__(config)

    def _setup(self) -> None:
        super()._setup()
        self.replay_buffer.poll_interval = POLL_S
        kl, actor = self.wav.kl, self.keys.actor_rollout_ref.actor
        coefficients = LossCoefficients(kl_text=kl.text, kl_speech=kl.speech, **actor.coefficients)
        self.actor_rollout_wg.set_loss_fn(VerlLoss(coefficients, one_pass=self.wav.update.one_pass))

    def _build_replay_buffer(self) -> ReplayBuffer:
        buffer = super()._build_replay_buffer()
        if type(buffer) is ReplayBuffer:  # and not a sampler of the user's own
            buffer.__class__ = ScoredGroups  # verl names the class within the call above
        return buffer

    def _init_tokenizer(self) -> None:
        super()._init_tokenizer()
        self.model_type = omega_conf_to_dataclass(self.config.actor_rollout_ref.model).hf_config.model_type

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        self.layout = load_layout(self.wav.layout).resolve(self.tokenizer)
        validates_only = self.config.trainer.get("val_only", False)
        self.targets = self.train_dataset.targets() if self.wav.uses_anchor and not validates_only else []
        self.val_targets = self.val_dataset.targets()
        board = os.path.join(os.environ["TENSORBOARD_DIR"], "answers")
        board = board if "tensorboard" in self.config.trainer.logger else None
        self.samples = SampleWriter(
            self.layout, load_codec(self.wav.codec, device="cpu"), self.tokenizer, self.wav, board
        )

    def init(self) -> None:
        """verl's, watched from here to the end of :meth:`fit`."""
        self._begin_to_watch()
        with explaining(self.watch):
            super().init()
        self.watch.probes += trainer_probes(self, self.wav.watchdog)

    def fit(self, agent_loop_manager: Any) -> None:
        """verl's. Raises :class:`StopAsked` behind a checkpoint, where a signal asked the run to end."""
        workers = agent_loop_manager.agent_loop_workers
        self.watch.probes += loop_probes("agent loop worker", workers, self.wav.watchdog)
        try:
            with explaining(self.watch):
                super().fit(agent_loop_manager)
        except StopAsked as stop:
            raise StopAsked(f"{stop}; {self._save_at_the_end()}") from stop
        finally:
            self.watch.end()

    def _begin_to_watch(self) -> None:
        settings = self.wav.watchdog
        self.pace = Pace(settings)
        self.watch = Watchdog(
            [self.pace.probe, *queue_probes()],
            settings.poll_interval_s,
            mailbox=Mailbox(),
            patience_s=settings.heartbeat_timeout_s,
            phase=lambda: str(self.pace),
            stoppable=lambda: self.stoppable,
            linger_s=LINGER_S,
        )
        self.watch.start()

    def _save_at_the_end(self) -> str:
        """Save what the workers hold, if it is a whole step and not saved yet; returns how to go on."""
        if self.config.trainer.save_freq > 0 and self.savable and self.savable[0] != self.saving.last:
            step, data, state = self.savable
            self.pace.enter("the last checkpoint", step)
            self.saving.save(self, step, data, state)
            return f"step {step} is saved: start it again to go on from there"
        latest = latest_step(self.saving.run)
        return f"start it again to go on from step {latest}" if latest else "no step is saved: it would start anew"

    def target(self, text_and_codes: tuple[str, list[int]]) -> list[int]:
        """The ids of an anchor target."""
        text, codes = text_and_codes
        return self.layout.target(self.tokenizer.encode(text, add_special_tokens=False), codes)

    def _validate(self) -> dict[str, float]:
        self.pace.enter("the validation", self.global_steps)
        self.stoppable = True  # it may take long
        metrics = super()._validate()
        self.checkpoint_manager.sleep_replicas()
        metrics.update(held_out_nll(self))
        self.checkpoint_manager.update_weights(self.global_steps)
        self.stoppable = False  # until what was found is logged
        return metrics

    def _val_metrics_update(self, data_sources: Any, sample_uids: Any, infos: dict, turns: Any, **kwargs: Any) -> dict:
        """verl's statistics, which leave out None but not NaN."""
        infos["reward"] = [None if math.isnan(reward) else reward for reward in infos["reward"]]
        return super()._val_metrics_update(data_sources, sample_uids, infos, turns, **kwargs)

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def _save_checkpoint(self) -> None:
        """What verl saves, aside and whole. A step that is not healthy is not saved."""
        if self.health.problem is not None:
            print(f"wavalign: step {self.global_steps} is not saved: {self.health.problem}", flush=True)
            return
        assert self.savable is not None
        self.pace.enter("the checkpoint", self.global_steps)
        self.saving.save(self, *self.savable)

    def _hold(self, step: int) -> None:
        """From here to the next update the workers hold ``step``, and this is what a checkpoint of it needs."""
        state = {"mixing": self.mixing.state_dict(), "health": self.health.state_dict(), "run": self.record}
        self.savable = (step, self.train_dataloader.state_dict(), state)

    def _load_checkpoint(self) -> None:
        trainer = self.config.trainer
        asked = trainer.resume_mode, trainer.resume_from_path
        folder = self.saving.to_resume(*asked)
        trainer.resume_mode, trainer.resume_from_path = ("resume_path", folder) if folder else ("disable", None)
        try:
            super()._load_checkpoint()
        finally:
            trainer.resume_mode, trainer.resume_from_path = asked
        if folder:
            self._load_mixing(os.path.join(folder, STATE_FILE))

    def _load_mixing(self, path: str) -> None:
        """The λ average of a checkpoint. One of another trainer has none: λ then starts as it does at step 1."""
        if os.path.isfile(path):
            try:
                with open(path) as file:
                    state = json.load(file)
                self.mixing.load_state_dict(state["mixing"])
                self.health.load_state_dict(state.get("health", {}))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path!r} is damaged ({error}): resume from another step, or delete it") from error
            told = f"resumed step {self.global_steps} with λ average {self.mixing.average}"
        else:
            told = (
                f"WARNING: {path} is not there, so step {self.global_steps} was not saved by this trainer: weights, "
                "optimiser and data go on, and the average of λ starts anew"
            )
        print(f"wavalign: {told}", flush=True)

    # --- whole steps ----------------------------------------------------------------------------------------------

    def on_step_begin(self) -> None:
        super().on_step_begin()
        self.pace.enter("the rollouts", self.global_steps)
        self.stoppable = True  # and no earlier: the step before is logged and dumped by now
        self.prompts.clear()

    def on_step_end(self) -> None:
        self.pace.enter("the new weights", self.global_steps)
        super().on_step_end()

    def _shutdown_dump_executor(self) -> None:
        self.pace.enter("the last dumps", self.global_steps)
        super()._shutdown_dump_executor()

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        """verl's step. Raises :class:`Diverged` when the run is no longer healthy."""
        batch = super().step(metrics, timing_raw)
        try:
            self.health.look(self.global_steps, metrics)
        except Diverged as error:
            good = self.saving.doubt(self.global_steps - self.health.unhealthy + 1)
            on = f"it goes on from step {good}" if good else "there is no checkpoint, so it begins anew"
            raise Diverged(f"{error}. Change what made it so, such as actor.optim.lr, and start again: {on}") from error
        if self.health.problem is None:
            self.saving.confirm()
            self._hold(self.global_steps)
        return batch

    def _submit_batch_to_rollout(self, batch: Any) -> int:
        n = self.config.actor_rollout_ref.rollout.n
        counts = batch["__rollout_n__"].tolist() if "__rollout_n__" in batch.keys() else [n] * len(batch)
        rows = zip(list(batch["uid"]), list(batch["index"]), counts, strict=True)
        self.prompts.update({str(uid): (int(index), int(count)) for uid, index, count in rows})
        return super()._submit_batch_to_rollout(batch)

    def _balance_batch(self, batch: KVBatchMeta, metrics: dict, *args: Any, **kwargs: Any) -> KVBatchMeta:
        """verl's; before it fills up a batch with copies, the rollouts are counted."""
        share, self.vanished = check_whole(
            self.global_steps, batch.keys, self.prompts, self.config.data.train_batch_size, self.wav.health
        )
        metrics["wavalign/rollouts_missing_share"] = share
        self.pace.enter("the training", self.global_steps)
        return super()._balance_batch(batch, metrics, *args, **kwargs)

    # --- log-probs ------------------------------------------------------------------------------------------------

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """verl's pass, unless the update computes the same log-probs anyway."""
        return batch if self.skips_old_log_probs else super()._compute_old_log_prob(batch, metrics)

    def _compute_ref_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """verl's pass, over the tokens that a KL term or an objective over pairs is on."""
        if len(wanted := self.wav.referenced) == 2:
            return super()._compute_ref_log_prob(batch, metrics)
        data = tq.kv_batch_get(batch.keys, batch.partition_id, select_fields=["responses", "response_mask"])
        rows = []
        for ids, mask in zip(data["responses"].unbind(), data["response_mask"].unbind(), strict=True):
            text, speech = modality_masks(self.layout.modality(ids), mask, self.wav.boundary_modality)
            rows.append({REFERENCED: (text * ("text" in wanted) | speech * ("speech" in wanted)).long()})
        # What is put comes back with its name among the fields, without which the workers would not get it.
        batch = tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=rows_to_tensordict(rows))
        assert batch.extra_info is not None
        batch.extra_info[SCORE_ONLY] = REFERENCED
        try:
            return super()._compute_ref_log_prob(batch, metrics)
        finally:
            batch.extra_info.pop(SCORE_ONLY)

    # --- rewards → advantages, λ ----------------------------------------------------------------------------------

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        step = Step.read(batch, self.layout, self.wav.boundary_modality)
        self.lam = self.mixing.update(step.rewards[step.real].tolist(), step.groups)
        assert self.mixing.last is not None
        metrics.update(self.mixing.last.as_metrics())
        metrics.update(rollout_metrics(step.rollouts(self.layout.eos_ids, self.wav.referenced)))
        metrics.update(reward_metrics(step.infos))
        if not self.wav.preference.paired:
            with preferred_tokens(*step.preferred(self.wav)):
                result = super()._compute_advantage(batch, metrics)
            step.store()
            return result
        pairs = self._pairs(step)
        terms = step_terms(step, pairs, self.wav)
        metrics.update(pair_metrics(step, pairs, terms, self.wav.preference.pairs.beta))
        advantages = terms.advantages(pairs, len(step.uids)).float()
        with given_advantages(step.tokens(self.wav.preference), advantages):
            result = super()._compute_advantage(batch, metrics)
        step.store(pairs)
        return result

    def _pairs(self, step: Step) -> Pairs:
        return rollout_pairs(step, self.wav)

    # --- the update -----------------------------------------------------------------------------------------------

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        """verl's actor update on rollouts and anchors together; the batch returned holds the rollouts only."""
        plan = ActorUpdate(self, batch)
        self.stoppable, self.savable = False, None  # until the step is whole again
        tq.kv_batch_put(keys=plan.keys, partition_id=plan.partition, fields=rows_to_tensordict(plan.rollout_columns))
        try:
            if plan.new_rows:
                fields = rows_to_tensordict(plan.new_rows)
                tq.kv_batch_put(keys=plan.new_keys, partition_id=plan.partition, fields=fields, tags=plan.new_tags)
            output = self.actor_rollout_wg.update_actor(plan.meta(self.lam))
        finally:
            if plan.new_keys:
                tq.kv_clear(keys=plan.new_keys, partition_id=plan.partition)
        output = rename_dict(output["metrics"], "actor/")
        output["perf/mfu/actor"] = output.pop("actor/mfu")
        update = reduce_metrics(output)
        metrics.update(policy_metrics(update) | update)
        metrics.update(plan.metrics())
        return batch

    # --- what people look at --------------------------------------------------------------------------------------

    def _log_rollout_data(self, batch: KVBatchMeta, timing_raw: dict, rollout_data_dir: str) -> None:
        keys = [batch.keys[row] for row in real_rows(batch)]
        data = tq.kv_batch_get(keys, batch.partition_id, select_fields=["rm_scores", "extra_fields"])
        self._dump(self.samples.write_rollouts, rollout_data_dir, self.global_steps, keys, data)

    def _dump_generations(self, *, dump_path: str, **columns: Any) -> None:
        """verl's dump of validation answers, with their audio beside it."""
        self._dump(self.samples.write_validation, dump_path, self.global_steps, columns)

    def _dump(self, write: Any, folder: str, step: int, *rows: Any) -> None:
        self._dump_futures = [future for future in self._dump_futures if not future.done()]
        self._dump_futures.append(self._dump_executor.submit(said_if_it_fails, write, folder, step, *rows))


def one_step_follows(keys: VerlKeys) -> bool:
    """Whether the policy of an update's forward pass is the one that sampled, and nothing else wants its log-probs."""
    actor, correction = keys.actor_rollout_ref.actor, keys.algorithm.rollout_correction
    one_step = actor.ppo_epochs == 1 and actor.ppo_mini_batch_size >= keys.data.train_batch_size
    return one_step and correction.rollout_rs is None and not correction.bypass_mode
