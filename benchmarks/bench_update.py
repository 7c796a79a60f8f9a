"""Actor update, time per row and peak memory: WavAlign (rollouts and anchors) against stock verl GRPO (the same
rollouts), and the fused head against the model's own, alternating.

    VERL_PLATFORM=cpu python benchmarks/bench_update.py [--rounds 7] [--model FOLDER]

One process, verl's own training worker, the pocket model unless --model says otherwise. Memory: peak resident above
what was resident before the update (VmHWM). Prints medians and ratios, and appends a line to
benchmarks/results/update.csv.
"""

import argparse
import csv
import os
import statistics
import sys
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results") / "update.csv"
PROMPTS, ROLLOUTS, PROMPT_TOKENS, RESPONSE_TOKENS = 16, 4, 48, 52


def make_worker(model: str, fused: bool) -> tuple[Any, Any]:
    """(verl's training worker on one rank, the actor's configuration)."""
    from hydra import compose, initialize_config_module
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.config import TrainingWorkerConfig
    from verl.workers.engine_workers import TrainingWorker

    with initialize_config_module("verl.trainer.config", version_base=None):
        head = f"actor_rollout_ref.model.use_fused_kernels={fused}"
        config = compose("ppo_trainer", ["+recipe=wavalign", f"actor_rollout_ref.model.path={model}", head])
    config.actor_rollout_ref.actor.optim.total_training_steps = 1000
    actor: Any = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    settings = TrainingWorkerConfig(
        model_type="language_model",
        model_config=omega_conf_to_dataclass(config.actor_rollout_ref.model),
        engine_config=actor.engine,
        optimizer_config=actor.optim,
        checkpoint_config=actor.checkpoint,
    )
    settings.engine_config.use_dynamic_bsz = True
    settings.engine_config.max_token_len_per_gpu = 4096
    worker = TrainingWorker(config=settings)
    worker.reset()
    return worker, actor


def make_rows(vocabulary: int, anchors: bool) -> Any:
    """Equal rows for both sides: rollouts with advantages, and with ``anchors`` one target per prompt."""
    import torch

    from wavalign_ext.anchor import rows_to_tensordict, supervised_row
    from wavalign_ext.config import AnchorConfig, PreferenceConfig
    from wavalign_ext.loss import ROW_FIELDS
    from wavalign_ext.weights import ANCHOR, ROLLOUT, token_weights

    generator = torch.Generator().manual_seed(0)
    kinds = [ROLLOUT] * (PROMPTS * ROLLOUTS) + [ANCHOR] * (PROMPTS * anchors)
    rows = []
    for kind in kinds:
        ids = torch.randint(vocabulary, (PROMPT_TOKENS + RESPONSE_TOKENS,), generator=generator)
        modality = (torch.arange(RESPONSE_TOKENS) % 8 > 1).long()
        row = supervised_row(ids[:PROMPT_TOKENS].tolist(), ids[PROMPT_TOKENS:].tolist(), kind, modality)
        noise = torch.randn(3, RESPONSE_TOKENS, generator=generator)
        row |= {"old_log_probs": noise[0] - 7, "ref_log_prob": noise[1] - 7, "advantages": noise[2]}
        row |= {"temperature": torch.tensor(0.9)}
        rows.append(row)
    weights = token_weights(
        torch.stack([row["modality"] for row in rows]),
        torch.stack([row["response_mask"] for row in rows]),
        torch.tensor(kinds),
        torch.ones(len(rows)),
        preference=PreferenceConfig(),
        anchor=AnchorConfig(),
        boundaries="speech",
        aggregation="seq-mean-token-mean",
    )
    streams = (weights.preference, weights.anchor, weights.text, weights.speech)
    for number, row in enumerate(rows):
        row.update({name: stream[number] for name, stream in zip(ROW_FIELDS, streams, strict=True)})
    return rows_to_tensordict(rows)


def update(worker: Any, rows: Any, loss: Any) -> dict[str, float]:
    """wall_ms and peak_mib of one optimiser step over ``rows``."""
    from bench_kernel import measure_cpu
    from verl.utils import tensordict_utils as tu

    data, count = rows.clone(), len(rows)
    extra = {"wavalign_lambda": 0.4, "global_batch_size": count, "mini_batch_size": count, "epochs": 1, "seed": 1}
    extra |= {"dataloader_kwargs": {"shuffle": False}, "calculate_entropy": False}
    for name, value in extra.items():
        tu.assign_non_tensor_data(data, name, value)
    worker.set_loss_fn(loss)
    return measure_cpu(lambda: worker.train_mini_batch(data))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds of each side, after one warm-up")
    parser.add_argument("--model", help="Hugging Face folder; default: the pocket model, built when missing")
    arguments = parser.parse_args()
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:  # so that memory is seen as it is used
        os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 20)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29655")

    import verl  # noqa: F401  (loads the plugin)
    from verl.workers.utils.losses import ppo_loss

    from wavalign_ext.loss import LossCoefficients, VerlLoss
    from wavalign_ext.pocket.build import build

    model = arguments.model or str(build() / "model")
    worker, actor = make_worker(model, fused=True)
    unfused, _ = make_worker(model, fused=False)
    vocabulary = worker.engine.module.config.vocab_size
    rollouts, mixed = make_rows(vocabulary, anchors=False), make_rows(vocabulary, anchors=True)
    sides = {
        "stock GRPO": (worker, rollouts, partial(ppo_loss, actor)),
        "WavAlign": (worker, mixed, VerlLoss(LossCoefficients())),
        "WavAlign, the model's own head": (unfused, mixed, VerlLoss(LossCoefficients())),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    peaks: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(arguments.rounds + 1):
        for name, side in sides.items():
            measured = update(*side)
            if number:
                times[name].append(measured["wall_ms"] / len(side[1]))
                peaks[name].append(measured["peak_mib"])
    report(times, peaks, arguments.rounds)


def report(times: dict[str, list[float]], peaks: dict[str, list[float]], rounds: int) -> None:
    """Print and store medians, and the ratio of pairs."""
    stock, ours, unfused = (statistics.median(column) for column in times.values())
    memory = [statistics.median(column) for column in peaks.values()]
    for name, time, peak in zip(times, (stock, ours, unfused), memory, strict=True):
        print(f"{name:<31} {time:7.2f} ms per row, peak {peak:6.0f} MiB (medians of {rounds})")
    ratios = [b / a for a, b in zip(times["stock GRPO"], times["WavAlign"], strict=True)]
    ratio = statistics.median(ratios)
    print(f"WavAlign to stock GRPO {ratio:7.3f} (median of pairs; {min(ratios):.3f} to {max(ratios):.3f})")
    values = {"date": date.today(), "rounds": rounds, "stock_ms_per_row": stock, "wavalign_ms_per_row": ours}
    values |= {"ratio": ratio, "own_head_ms_per_row": unfused, "wavalign_mib": memory[1], "own_head_mib": memory[2]}
    new = not RESULTS.exists()
    with open(RESULTS, "a", newline="") as file:
        table = csv.DictWriter(file, list(values))
        if new:
            table.writeheader()
        table.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in values.items()})


if __name__ == "__main__":
    main()
