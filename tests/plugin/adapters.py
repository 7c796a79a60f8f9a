"""Some actor updates of LoRA adapters through verl's own training worker, on this many ranks.

    torchrun --nproc_per_node=RANKS adapters.py MODEL STEPS OUT [OVERRIDE ...]

Writes {"moved": {"lora_A": [share, mean size], "lora_B": ...}, "dtypes": {name: dtype}, "sent": {name: tensor},
"lost": number}: how much of the adapters the updates have moved, what the parameters are stored in, what vLLM would be
sent, and the largest difference that a checkpoint makes.
"""

import os
import sys
from typing import Any

import torch
import torch.distributed
from replay import make_batch, make_worker
from torch.distributed.tensor import DTensor
from verl.utils import tensordict_utils as tu

LORA = ["actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.model.lora_alpha=16"]
LORA += ["actor_rollout_ref.actor.optim.lr=2.0e-5", "actor_rollout_ref.actor.optim.lr_warmup_steps=0"]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).float().clone()


def main() -> None:
    model, steps, out, *overrides = sys.argv[1:]
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    worker = make_worker(model, "4", LORA + overrides)
    batch, order = make_batch(world, 4)
    data: Any = batch
    engine: Any = worker.engine
    share = len(order) // world
    extra = dict(wavalign_lambda=tu.get_non_tensor_data(data, "wavalign_lambda", None), epochs=1, seed=1)
    extra |= dict(global_batch_size=len(order), mini_batch_size=len(order), dataloader_kwargs={"shuffle": False})
    module = engine.module
    adapters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    before = {name: whole(p) for name, p in adapters.items()}
    for _ in range(int(steps)):
        mine = tu.index_select_tensor_dict(data, order[rank * share : (rank + 1) * share])
        for name, value in (extra | {"calculate_entropy": False}).items():
            tu.assign_non_tensor_data(mine, name, value)
        worker.train_mini_batch(mine)
    moved = {}
    for kind in ("lora_A", "lora_B"):
        change = torch.cat([(whole(p) - before[n]).abs().flatten() for n, p in adapters.items() if kind in n])
        moved[kind] = [(change > 0).float().mean().item(), change.mean().item()]
    sent, _ = engine.get_per_tensor_param(layered_summon=True, base_sync_done=True)
    sent = dict(sent)
    worker.save_checkpoint(f"{out}.checkpoint")
    after = {name: whole(p) for name, p in adapters.items()}
    with torch.no_grad():
        for parameter in adapters.values():
            parameter.zero_()
    worker.load_checkpoint(f"{out}.checkpoint")
    lost = max((whole(p) - after[name]).abs().max().item() for name, p in adapters.items())
    if rank == 0:
        dtypes = {name: p.dtype for name, p in module.named_parameters()}
        torch.save({"moved": moved, "dtypes": dtypes, "sent": sent, "lost": lost}, out)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
