"""One DPO update of fixed pairs through verl's own training worker, on this many ranks, cut this way.

    torchrun --nproc_per_node=RANKS replay_dpo.py MODEL REFERENCE CASE MICRO OUT [OVERRIDE ...]

CASE is JSON: ``pairs`` of ids (``prompt``, ``chosen``, ``rejected``, and ``target`` for an anchor), ``tokens``,
``beta``, ``lambda`` and ``order``, the numbers of the pairs as they come. Writes {"loss", "margin", "grads",
"anchor_nll"}: the objective's loss before the update, and the gradient of λ · objective + (1 − λ) · anchor, unclipped.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from replay import infer, make_worker
from transformers import AutoModelForCausalLM
from verl.utils import tensordict_utils as tu
from verl.utils.metric import reduce_metrics

from wavalign_ext.config import AnchorConfig, PairsConfig, PreferenceConfig
from wavalign_ext.method.anchor import padding_row, rows_to_tensordict, split_mini_batches, supervised_row
from wavalign_ext.method.objectives import Pairs, pair_terms
from wavalign_ext.method.token_weights import (
    ANCHOR,
    PADDING,
    ROLLOUT,
    ROW_FIELDS,
    chosen_tokens,
    modality_masks,
    token_weights,
)
from wavalign_ext.trainer.actor_batch import order_for_ranks

SPEECH_FROM = 40  # ids from here on are speech
BETA_1 = 0.9  # Adam's first moment is (1 − β1) times the first gradient
pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)


def make_rows(case: dict[str, Any]) -> tuple[list[dict[str, Any]], list[list[int]], Pairs]:
    """(rows, row numbers by prompt, which rows are pairs)."""
    rows, groups, chosen, rejected = [], [], [], []
    for number in case["order"]:
        pair = case["pairs"][number]
        groups.append([])
        for name, kind, side in (("chosen", ROLLOUT, chosen), ("rejected", ROLLOUT, rejected), ("target", ANCHOR, [])):
            if name in pair:
                kinds = (torch.tensor(pair[name]) >= SPEECH_FROM).long()
                side.append(len(rows))
                groups[-1].append(len(rows))
                rows.append(supervised_row(pair["prompt"], pair[name], kind, kinds))
    return rows, groups, Pairs(chosen, rejected)


def scored_by(folder: str, rows: list[dict[str, Any]]) -> list[torch.Tensor]:
    """Log-probs (T,) of each row by the model itself, one row at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for row in rows:
        with torch.no_grad():
            logp = model(row["input_ids"][None]).logits[0].log_softmax(-1)
        start = len(row["prompts"]) - 1
        found.append(logp[start:-1].gather(-1, row["responses"][:, None])[:, 0])
    return found


def gathered(world: int, mine: list[int], values: torch.Tensor, rows: list[dict[str, Any]]) -> list[torch.Tensor]:
    """The log-probs of all rows, of which this rank has computed ``mine``."""
    parts: list[Any] = [None] * world
    cut = values.split([len(rows[row]["responses"]) for row in mine])
    torch.distributed.all_gather_object(parts, dict(zip(mine, cut, strict=True)))
    whole = {row: logp for part in parts for row, logp in part.items()}
    return [whole[row] for row in range(len(rows))]


def main() -> None:
    model, reference, given, micro, out, *overrides = sys.argv[1:]
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    case = json.loads(Path(given).read_text())
    preference = PreferenceConfig(tokens=case["tokens"], objective="dpo", pairs=PairsConfig(beta=case["beta"]))
    worker = make_worker(model, micro, [*overrides, "actor_rollout_ref.actor.optim.clip_grad=1e9"])
    rows, groups, pairs = make_rows(case)
    together = 1 if micro.startswith("dynamic") else int(micro)
    split = split_mini_batches(groups, len(groups), world * together)
    while len(split.rows[0]) < split.padded_size:
        split.rows[0].append(len(rows))
        rows.append(padding_row(0))
    order = order_for_ranks(split.rows, [len(row["input_ids"]) for row in rows], world)
    mine = order[rank * len(order) // world : (rank + 1) * len(order) // world]
    before = infer(worker, tu.index_select_tensor_dict(rows_to_tensordict(rows), mine), temperature=1.0)

    kinds, mask = pad([row["modality"] for row in rows]), pad([row["response_mask"] for row in rows])
    logp = pad(gathered(world, mine, before["log_probs"], rows))
    weight = chosen_tokens(preference, *modality_masks(kinds, mask, "speech"))
    terms = pair_terms(pairs, weight, logp, pad(scored_by(reference, rows)), "dpo", preference.pairs)
    row_kinds = torch.stack([row["row_kind"] for row in rows])
    weights = token_weights(
        kinds,
        mask,
        row_kinds,
        row_kinds != PADDING,
        preference=preference,
        anchor=AnchorConfig(),
        boundary_modality="speech",
        aggregation="seq-mean-token-mean",
        pair_R=pairs.numbers(len(rows)),
    )
    streams = (weights.preference, weights.anchor, weights.text, weights.speech)
    advantages = terms.advantages(pairs, len(rows)).float()[:, None] * (weight > 0)
    for number, row in enumerate(rows):
        length = len(row["responses"])
        row |= {n: w[number, :length] for n, w in zip(ROW_FIELDS, streams, strict=True)}
        row["advantages"] = advantages[number, :length]
        del row["old_log_probs"], row["rollout_log_probs"], row["ref_log_prob"]
    batch = tu.index_select_tensor_dict(rows_to_tensordict(rows), mine)
    extra = dict(wavalign_lambda=case["lambda"], global_batch_size=len(order), mini_batch_size=len(order), epochs=1)
    extra |= dict(dataloader_kwargs={"shuffle": False}, calculate_entropy=False, seed=1)
    for name, value in extra.items():
        tu.assign_non_tensor_data(batch, name, value)
    metrics = reduce_metrics(tu.get(worker.train_mini_batch(batch), "metrics"))
    state, grads = worker.engine.optimizer.state, {}
    for name, parameter in worker.engine.module.named_parameters():
        moment = state[parameter]["exp_avg"] / (1 - BETA_1)
        grads[name] = moment.full_tensor() if hasattr(moment, "full_tensor") else moment
    if rank == 0:
        kept = {"loss": terms.loss.mean().item(), "margin": (case["beta"] * terms.gap).tolist(), "grads": grads}
        torch.save(kept | {"anchor_nll": metrics.get("actor/anchor_nll")}, out)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
