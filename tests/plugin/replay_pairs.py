"""One actor update of a two-stream model through verl's own training worker, on this many ranks.

    torchrun --nproc_per_node=RANKS replay_pairs.py MODEL MICRO OUT [OVERRIDE ...]

The rows of :func:`pair_batch`; TOKENS=text|all, ANCHORS=0|1 and LAMBDA choose the loss. Writes gradients, the loss, and
the log-probs and entropies of the answers before the update, with those that the model itself gives.
"""

import os
import random
import sys
from typing import Any

import torch
import torch.distributed
from replay import infer, make_worker
from transformers import AutoModelForCausalLM
from two_streams import HEARD, flat, prompts, taught
from verl.utils import tensordict_utils as tu
from verl.utils.metric import reduce_metrics

from wavalign_ext.config import AnchorConfig, PreferenceConfig
from wavalign_ext.method.anchor import padding_row, rows_to_tensordict, supervised_row
from wavalign_ext.method.token_weights import ANCHOR, ROLLOUT, ROW_FIELDS, token_weights

ROWS = 7


def pair_batch(c: Any) -> tuple[Any, list[Any], list[list[int]]]:
    """Four rollouts and three anchors (ANCHORS=1) of ragged lengths, and a row of padding."""
    rng, noise = random.Random(3), torch.Generator().manual_seed(3)
    asked, answers, rows = prompts(c, ROWS, seed=4, lengths=(2, 9)), [], []
    anchors = 3 * int(os.environ.get("ANCHORS", "1"))
    codes = c.audio_said - len(c.audio_end)
    for number, prompt in enumerate(asked):
        sounds = rng.randint(1, 9)
        words = rng.randint(1, c.delay + sounds - 1)
        text = [rng.randrange(5, c.text_vocab) for _ in range(words)] + [c.text_end]
        text += [c.text_blank] * (c.delay + sounds + 1 - len(text))
        audio = [c.audio_blank] * c.delay + [c.text_vocab + rng.randrange(codes) for _ in range(sounds)]
        audio.append(c.audio_end[0])
        answer = flat(torch.tensor(text), torch.tensor(audio))
        drawn = [[n <= words, n >= c.delay] for n in range(len(text))]
        drawn[-1][0] = False
        kind = ANCHOR if number < anchors else ROLLOUT
        kinds = torch.tensor([0 if n % 2 == 0 else 1 for n in range(len(answer))])
        mask = torch.tensor([said for frame in drawn for said in frame])
        row = supervised_row(flat(*prompt), answer, kind, kinds, mask)
        if kind == ROLLOUT:
            row["ref_log_prob"] = -3 + torch.randn(len(answer), generator=noise)
            row["advantages"] = torch.full((len(answer),), rng.uniform(-1, 1))
            row["temperature"] = torch.tensor(0.7)
        rows.append(row)
        answers.append(answer)
    rows.append(padding_row(c.text_blank, c.audio_end[0]))
    pad = lambda name: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True)  # noqa: E731
    weights = token_weights(
        pad("modality"),
        pad("response_mask"),
        torch.tensor([int(row["row_kind"]) for row in rows]),
        torch.tensor([True] * len(rows)),
        preference=PreferenceConfig(tokens=os.environ.get("TOKENS", "text")),  # type: ignore[arg-type]
        anchor=AnchorConfig(),
        boundary_modality="speech",
        aggregation="seq-mean-token-mean",
    )
    streams = (weights.preference, weights.anchor, weights.text, weights.speech)
    for number, row in enumerate(rows):
        row.update({n: w[number, : len(row["responses"])] for n, w in zip(ROW_FIELDS, streams, strict=True)})
        if not anchors:
            del row["ref_log_prob"]
    return rows_to_tensordict(rows), asked, answers


def reference(model: str, asked: list[Any], answers: list[list[int]]) -> list[torch.Tensor]:
    """Log-probs (2F,) of each answer at temperature 0.7, by one forward pass of the model itself."""
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa").eval()
    return [taught(plain, prompt, answer, 0.7) for prompt, answer in zip(asked, answers, strict=True)]


def main() -> None:
    model, micro, out, *overrides = sys.argv[1:]
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    worker = make_worker(model, micro, overrides)
    engine: Any = worker.engine
    data, asked, answers = pair_batch(engine.streams)
    assert HEARD and engine.streams.model_type == "wavalign_two_streams"
    order, share = list(range(ROWS + 1)), (ROWS + 1) // world
    # Unequal needs: with two ranks the first has the anchors, and the second rollouts alone.
    mine = tu.index_select_tensor_dict(data, order[rank * share : (rank + 1) * share])
    extra = dict(wavalign_lambda=float(os.environ.get("LAMBDA", "0.37")), epochs=1, seed=1, calculate_entropy=False)
    extra |= dict(global_batch_size=len(order), mini_batch_size=len(order), dataloader_kwargs={"shuffle": False})
    for name, value in extra.items():
        tu.assign_non_tensor_data(mine, name, value)
    before = infer(worker, mine)
    metrics = reduce_metrics(tu.get(worker.train_mini_batch(mine), "metrics"))
    grads, state = {}, engine.optimizer.state
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad and parameter in state:
            moment = state[parameter]["exp_avg"]
            grads[name] = moment.full_tensor() if hasattr(moment, "full_tensor") else moment
        elif parameter.requires_grad:
            grads[name] = None
    if rank == 0:
        wanted = reference(model, asked, answers) if world == 1 else []
        torch.save({"grads": grads, "loss": metrics["actor/total_loss"], "wanted": wanted, **before}, out)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
