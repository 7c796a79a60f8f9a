"""One update at real geometry on a CPU: a Qwen2 layer of 7B width under a head of 168072 entries.

    python benchmarks/bench_geometry.py [--tokens 1024] [--share 0.6] [--dtype bf16]

Forward and backward through the head as verl runs it here (`wavalign_ext.fused_head`), then the same step with the
model's own head: logits stored, a log-softmax for the loss and softmax and log-softmax for the entropy. Each in a
process of its own; weights are random, embedding and head untied as in VITA-Audio, no optimizer. The naive step runs
only where its computed need is free. Peak memory is all that the process ever had resident (VmHWM). Writes
benchmarks/results/kernel_geometry.csv.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results") / "kernel_geometry.csv"
VOCAB, HIDDEN = 168072, 3584
ITEMSIZE = {"bf16": 2, "fp32": 4}


def build(dtype: Any) -> Any:
    """One layer of Qwen2-7B between an embedding and a head of its own."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=18944,
        num_hidden_layers=1,
        num_attention_heads=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
        use_cache=False,
    )
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config).to(dtype)
    model.to_empty(device="cpu")
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Drawn once and repeated: a billion random numbers take longer than the step.
            block = torch.ones(1) if "norm" in name else torch.randn(1_000_003, generator=g) * 0.02
            flat = parameter.view(-1)
            for a in range(0, len(flat), len(block)):
                flat[a : a + len(block)] = block[: len(flat) - a]
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its buffer was on meta as well
    return model


def step(model: Any, head: str, tokens: int, share: float) -> float:
    """Forward and backward; returns the loss."""
    import torch

    g = torch.Generator().manual_seed(0)
    ids, targets = (torch.randint(VOCAB, (1, tokens), generator=g) for _ in range(2))
    active = (torch.randperm(tokens, generator=g) < round(tokens * share))[None]
    weights = torch.rand(1, tokens, generator=g)
    if head == "fused":
        from wavalign_ext.fused_head import FusedHead, Scored

        fused: Any = FusedHead.install(model, model.config)
        fused.scored = Scored(targets, torch.ones(1, tokens), True, active)
        logp = model(ids).logits[..., 0]
    else:
        logits = model(ids).logits
        logp = torch.log_softmax(logits, -1).gather(-1, targets[..., None])[..., 0].float()
        with torch.no_grad():
            _entropy = -(torch.softmax(logits, -1) * torch.log_softmax(logits, -1)).sum(-1)
    loss = -(logp * weights * active).sum() / active.sum()
    loss.backward()
    return loss.item()


def worker(options: argparse.Namespace) -> None:
    import torch
    from bench_kernel import status_mib

    torch.set_num_threads(options.threads)
    model = build({"bf16": torch.bfloat16, "fp32": torch.float32}[options.dtype])
    before, wall, cpu = status_mib("VmRSS"), time.perf_counter(), time.process_time()
    loss = step(model, options.worker, options.tokens, options.share)
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    peak = status_mib("VmHWM")
    answer = {"seconds": seconds[0], "cpu_seconds": seconds[1], "model_gib": before / 1024, "peak_gib": peak / 1024}
    print("answer", json.dumps(answer | {"loss": loss}), flush=True)


def needed_gib(options: argparse.Namespace) -> float:
    """Naive: parameters and gradients, and four matrices [T, V] (logits, both log-softmaxes, a gradient)."""
    parameters = 2 * VOCAB * HIDDEN + 3 * HIDDEN * 18944 + 2 * HIDDEN * (HIDDEN + 512)
    return ITEMSIZE[options.dtype] * (2 * parameters + 4 * options.tokens * VOCAB) / 2**30


def free_gib() -> float:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) / 2**20
    return 0.0


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tokens", type=int, default=1024, help="positions of the packed stream")
    p.add_argument("--share", type=float, default=0.6, help="share of active positions")
    p.add_argument("--dtype", default="bf16", choices=list(ITEMSIZE))
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--worker", choices=["fused", "naive"], help=argparse.SUPPRESS)
    options = p.parse_args()
    if options.worker:
        return worker(options)
    rows = []
    for head in ("fused", "naive"):
        free, computed = free_gib(), needed_gib(options)
        if head == "naive" and free < computed + 2:
            print(f"naive: not run, {free:.1f} GiB are free; computed need {computed:.1f} GiB")
            rows.append({"head": head, "peak_gib": f"{computed:.2f}", "how": "computed"})
            continue
        command = [sys.executable, __file__, "--worker", head, *sys.argv[1:]]
        quiet = {"OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "PASSIVE", "VERL_PLATFORM": "cpu"}
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | quiet, check=True)
        found = json.loads(next(line for line in ran.stdout.splitlines() if line.startswith("answer"))[7:])
        print(
            f"{head}: {found['seconds']:.1f} s ({found['cpu_seconds']:.1f} s of processor time), peak "
            f"{found['peak_gib']:.2f} GiB of which the model {found['model_gib']:.2f}; loss {found['loss']:.5f}"
        )
        rows.append({"head": head, **{k: f"{v:.4f}" for k, v in found.items()}, "how": "measured"})
    import torch

    with open(RESULTS, "w", newline="") as file:
        file.write(f"# {date.today()}; torch {torch.__version__}; V {VOCAB} H {HIDDEN}; {vars(options)}\n")
        names = ["head", "how", "seconds", "cpu_seconds", "model_gib", "peak_gib", "loss"]
        table = csv.DictWriter(file, names)
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    main()
