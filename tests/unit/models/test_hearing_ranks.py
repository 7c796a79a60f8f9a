"""Two ranks of FSDP2, one of them without audio: gradients are those of one process, and nobody waits for ever."""

import os
import sys
from pathlib import Path

import forked
import pytest
from ears_world import build


@pytest.mark.parametrize("quiet", ["1", "0"])
def test_a_rank_without_audio_stays_in_step(tmp_path: Path, quiet: str) -> None:
    build(tmp_path)
    done = forked.run(Path(__file__), str(tmp_path), quiet, ranks=2, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-3000:]
    [found] = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    worst, projector = map(float, found.split()[1:])
    assert worst < 1e-5 and projector > 0


def rows(model, quiet: int):
    """A row per rank: (ids, vectors), and none for the rank ``quiet``."""
    import torch
    from ears_world import features

    token = model.config.audio_token_id
    heard = ([5, 6, *[token] * 9, 7, 8], features(1, 9))
    return [([5, 6, 7, 8], None) if rank == quiet else heard for rank in range(2)], torch


def loss(model, ids, heard, torch):
    logits = model(torch.tensor([ids]), audio_features=heard, use_cache=False).logits[0]
    return (logits.log_softmax(-1)[:, 7] * torch.arange(len(ids)).cos()).sum()


def worker(rank: int, folder: str, quiet: int) -> None:
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from transformers import AutoModelForCausalLM

    from wavalign_ext import models

    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    models.register()
    alone, sharded = (AutoModelForCausalLM.from_pretrained(f"{folder}/model").float() for _ in range(2))
    made, torch = rows(alone, quiet)
    torch.stack([loss(alone, ids, heard, torch) for ids, heard in made]).mean().backward()
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    for layer in sharded.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    loss(sharded, *made[rank], torch).backward()
    wanted = {name: weight.grad for name, weight in alone.named_parameters()}
    found = {name: weight.grad.full_tensor() for name, weight in sharded.named_parameters()}
    assert found.keys() == wanted.keys()
    off = max((found[name] - value).norm() / (value.norm() + 1e-12) for name, value in wanted.items())
    if rank == 0:
        print("FOUND", float(off), float(found["audio_projection.mlp.0.weight"].norm()), flush=True)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads sometimes abort a process that ends in the ordinary way


if __name__ == "__main__":
    worker(int(os.environ["RANK"]), sys.argv[1], int(sys.argv[2]))
