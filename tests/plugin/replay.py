"""One actor update of a fixed mini-batch through verl's own training worker, on this many ranks, cut this way.

    torchrun --nproc_per_node=RANKS replay.py MODEL MICRO OUT [OVERRIDE ...]        MICRO: rows, or "dynamicTOKENS"

Writes {"grads", "loss", "anchor_nll", "lambdas", "log_probs", "entropy"}; the last two are of this rank's responses
before the update. Gradients come from Adam's first moment, which after one step is (1 − β1) times the clipped gradient.
"""

import os
import random
import sys
from functools import partial

import torch
import torch.distributed
import verl  # noqa: F401  (loads the plugin)
from hydra import compose, initialize_config_module
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.metric import reduce_metrics
from verl.workers.config import TrainingWorkerConfig
from verl.workers.engine_workers import TrainingWorker
from verl.workers.utils.padding import response_from_nested

from wavalign_ext.config import AnchorConfig, PreferenceConfig
from wavalign_ext.integration.verl_loss import VerlLoss
from wavalign_ext.method.anchor import padding_row, rows_to_tensordict, split_mini_batches, supervised_row
from wavalign_ext.method.loss import LossCoefficients
from wavalign_ext.method.mixing import MixingController
from wavalign_ext.method.token_weights import ANCHOR, PADDING, ROLLOUT, ROW_FIELDS, token_weights
from wavalign_ext.trainer.actor_batch import order_for_ranks

VOCABULARY, PROMPTS, ROLLOUTS = 64, 4, 3


def make_rows() -> tuple[list[dict], list[list[int]], float]:
    """(rows, row numbers by prompt, λ): ragged rollouts with random advantages, and one anchor per prompt."""
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    mixing, rewards, ids = MixingController(), [], []
    rows, groups = [], []
    for prompt_number in range(PROMPTS):
        prompt = [rng.randrange(VOCABULARY) for _ in range(rng.randint(3, 9))]
        groups.append([])
        for number in range(ROLLOUTS + 1):
            kind = ANCHOR if number == ROLLOUTS else ROLLOUT
            response = [rng.randrange(VOCABULARY) for _ in range(rng.randint(2, 14))]
            modality = torch.tensor([rng.choice([0, 1, 1, 2]) for _ in response])
            row = supervised_row(prompt, response, kind, modality)
            if kind == ROLLOUT:
                noise = torch.randn(3, len(response), generator=generator)
                row |= {"old_log_probs": -4 + 0.1 * noise[0], "ref_log_prob": -4 + 0.1 * noise[1]}
                row |= {"advantages": noise[2] * (modality == 0), "temperature": torch.tensor(0.7)}
                rewards.append(float(rng.randint(1, 5)))
                ids.append(prompt_number)
            groups[-1].append(len(rows))
            rows.append(row)
    return rows, groups, mixing.update(rewards, ids)


def make_batch(world: int, micro: int) -> tuple[torch.Tensor, list[int]]:
    """The whole mini-batch as a TensorDict, and its row order for ``world`` ranks."""
    rows, groups, lam = make_rows()
    split = split_mini_batches(groups, PROMPTS, world * micro)
    while len(split.rows[0]) < split.padded_size:
        split.rows[0].append(len(rows))
        rows.append(padding_row(0))
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    kinds = torch.tensor([int(row["row_kind"]) for row in rows])
    weights = token_weights(
        pad([row["modality"] for row in rows]),
        pad([row["response_mask"] for row in rows]),
        kinds,
        kinds != PADDING,
        preference=PreferenceConfig(),
        anchor=AnchorConfig(),
        boundary_modality="speech",
        aggregation="seq-mean-token-mean",
    )
    streams = (weights.preference, weights.anchor, weights.text, weights.speech)
    for number, row in enumerate(rows):
        row.update({n: w[number, : len(row["responses"])] for n, w in zip(ROW_FIELDS, streams, strict=True)})
    data = rows_to_tensordict(rows)
    order = order_for_ranks(split.rows, [len(row["input_ids"]) for row in rows], world)
    tu.assign_non_tensor_data(data, "wavalign_lambda", lam)
    return data, order


def make_worker(model: str, micro: str, overrides: list[str]) -> TrainingWorker:
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", ["+recipe=wavalign", f"actor_rollout_ref.model.path={model}", *overrides])
    config.actor_rollout_ref.actor.optim.total_training_steps = 1
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    worker = TrainingWorkerConfig(
        model_type="language_model",
        model_config=omega_conf_to_dataclass(config.actor_rollout_ref.model),
        engine_config=actor.engine,
        optimizer_config=actor.optim,
        checkpoint_config=actor.checkpoint,
    )
    dynamic = micro.startswith("dynamic")
    tokens, rows = (int(micro.removeprefix("dynamic")), None) if dynamic else (None, int(micro))
    engine = worker.engine_config
    engine.use_dynamic_bsz = dynamic
    engine.max_token_len_per_gpu = engine.infer_max_token_len_per_gpu = tokens
    engine.micro_batch_size_per_gpu = engine.infer_micro_batch_size_per_gpu = rows
    made = TrainingWorker(config=worker)
    made.reset()
    kl = config.wavalign.kl
    one_pass = os.environ.get("ONE_PASS", "1") == "1"
    made.set_loss_fn(VerlLoss(LossCoefficients(kl_text=kl.text, kl_speech=kl.speech), one_pass=one_pass))
    return made


def infer(worker: TrainingWorker, data: TensorDict, temperature: float = 0.7) -> dict[str, torch.Tensor]:
    """Log-probs and entropies of the responses, (tokens,), by a forward-only pass."""
    data = data.clone()
    for name, value in {"calculate_entropy": True, "compute_loss": False, "temperature": temperature}.items():
        tu.assign_non_tensor_data(data, name, value)
    output = worker.infer_batch(data)
    return {
        name: response_from_nested(output[name], data["response_mask"]).values() for name in ("log_probs", "entropy")
    }


def main() -> None:
    model, micro, out, *overrides = sys.argv[1:]
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    worker = make_worker(model, micro, overrides)
    data, order = make_batch(world, 1 if micro.startswith("dynamic") else int(micro))
    share = len(order) // world
    lam = tu.get_non_tensor_data(data, "wavalign_lambda", None)
    mine = tu.index_select_tensor_dict(data, order[rank * share : (rank + 1) * share])
    extra = dict(wavalign_lambda=lam, global_batch_size=len(order), mini_batch_size=len(order), epochs=1, seed=1)
    extra |= dict(dataloader_kwargs={"shuffle": False}, calculate_entropy=False)
    for name, value in extra.items():
        tu.assign_non_tensor_data(mine, name, value)
    before = infer(worker, mine)
    metrics = reduce_metrics(tu.get(worker.train_mini_batch(mine), "metrics"))
    state = worker.engine.optimizer.state
    grads = {}
    for name, parameter in worker.engine.module.named_parameters():
        moment = state[parameter]["exp_avg"]
        grads[name] = moment.full_tensor() if hasattr(moment, "full_tensor") else moment
    lambdas = [None] * world
    torch.distributed.all_gather_object(lambdas, lam)
    if rank == 0:
        keep = {"grads": grads, "loss": metrics["actor/total_loss"], "anchor_nll": metrics["actor/anchor_nll"]}
        torch.save(keep | before | {"lambdas": lambdas, "padding": int(sum(data["row_kind"] == PADDING))}, out)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
