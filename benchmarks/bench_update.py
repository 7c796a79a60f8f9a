"""What learning from a row costs, all passes counted: WavAlign beside stock verl GRPO, alternating in one process.

    VERL_PLATFORM=cpu python benchmarks/bench_update.py [--rounds 7] [--geometry pocket|large] [--model FOLDER]

Stock GRPO computes old log-probs with entropies, reference log-probs and the update, with the model's own head and with
verl's fused head (impl_backend torch). WavAlign has an anchor row beside the four rollouts of a prompt, computes
reference log-probs of the rollouts, and the loss in one pass. All sides share one model, one optimiser and verl's own
training worker. Memory: peak resident of the update above what was resident before it (VmHWM). Geometry ``large``:
vocabulary 168072, hidden 1024, 4 layers, tied, random weights, micro-batches of 4096 tokens. Prints medians of paired
ratios and appends a line per side to benchmarks/results/update.csv.
"""

import argparse
import csv
import os
import statistics
import sys
import tempfile
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results") / "update.csv"
ROLLOUTS, PROMPT_TOKENS, RESPONSE_TOKENS = 4, 48, 52
GEOMETRIES = {"pocket": (16, 4096), "large": (8, 4096)}  # prompts, tokens of a micro-batch
OWN, VERL, OURS = "stock GRPO, the model's head", "stock GRPO, verl's fused head", "WavAlign"


def large_model(folder: Path) -> str:
    """A folder with a random Qwen2 whose head matters."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

    config = Qwen2Config(
        vocab_size=168072,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=4,
        tie_word_embeddings=True,  # as Qwen2 of this size does
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    Qwen2Tokenizer().save_pretrained(folder)
    return str(folder)


def make_worker(model: str, tokens: int) -> tuple[Any, Any]:
    """(verl's training worker on one rank, the actor's configuration)."""
    from hydra import compose, initialize_config_module
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.config import TrainingWorkerConfig
    from verl.workers.engine_workers import TrainingWorker

    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", ["+recipe=wavalign", f"actor_rollout_ref.model.path={model}"])
    config.actor_rollout_ref.actor.optim.total_training_steps = 1000
    actor: Any = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    settings = TrainingWorkerConfig(
        model_type="language_model",
        model_config=omega_conf_to_dataclass(config.actor_rollout_ref.model),
        engine_config=actor.engine,
        optimizer_config=actor.optim,
        checkpoint_config=actor.checkpoint,
    )
    engine = settings.engine_config
    engine.use_dynamic_bsz = True
    engine.max_token_len_per_gpu = engine.infer_max_token_len_per_gpu = tokens
    worker = TrainingWorker(config=settings)
    worker.reset()
    return worker, actor


def make_rows(vocabulary: int, prompts: int, anchors: bool) -> Any:
    """Equal rows for all sides: rollouts with advantages, and with ``anchors`` one target per prompt."""
    import torch

    from wavalign_ext.config import AnchorConfig, PreferenceConfig
    from wavalign_ext.method.anchor import rows_to_tensordict, supervised_row
    from wavalign_ext.method.token_weights import ANCHOR, ROLLOUT, ROW_FIELDS, token_weights

    generator = torch.Generator().manual_seed(0)
    kinds = [ROLLOUT] * (prompts * ROLLOUTS) + [ANCHOR] * (prompts * anchors)
    rows = []
    for kind in kinds:
        ids = torch.randint(vocabulary, (PROMPT_TOKENS + RESPONSE_TOKENS,), generator=generator)
        modality = (torch.arange(RESPONSE_TOKENS) % 8 > 1).long()
        row = supervised_row(ids[:PROMPT_TOKENS].tolist(), ids[PROMPT_TOKENS:].tolist(), kind, modality)
        noise = torch.randn(3, RESPONSE_TOKENS, generator=generator)
        row |= {"old_log_probs": noise[0] - 7, "ref_log_prob": noise[1] - 7, "advantages": noise[2]}
        row |= {"rollout_log_probs": noise[0] - 7, "temperature": torch.tensor(0.9)}
        rows.append(row)
    weights = token_weights(
        torch.stack([row["modality"] for row in rows]),
        torch.stack([row["response_mask"] for row in rows]),
        torch.tensor(kinds),
        torch.ones(len(rows)),
        preference=PreferenceConfig(),
        anchor=AnchorConfig(),
        boundary_modality="speech",
        aggregation="seq-mean-token-mean",
    )
    streams = (weights.preference, weights.anchor, weights.text, weights.speech)
    for number, row in enumerate(rows):
        row.update({name: stream[number] for name, stream in zip(ROW_FIELDS, streams, strict=True)})
    return rows_to_tensordict(rows)


class Learner:
    """One model and optimiser, with the head of either side."""

    def __init__(self, worker: Any, actor: Any, prompts: int) -> None:
        from verl.models.transformers.dense_common import forward_with_torch_backend
        from verl.workers.utils.losses import ppo_loss

        from wavalign_ext.integration.verl_loss import VerlLoss
        from wavalign_ext.method.loss import LossCoefficients

        self.worker, self.fused = worker, worker.engine.fused
        self.model_class, self.verl_forward = type(worker.engine.module), forward_with_torch_backend
        self.stock_loss, self.our_loss = partial(ppo_loss, actor), VerlLoss(LossCoefficients())
        vocabulary = worker.engine.module.config.vocab_size
        self.rollouts = make_rows(vocabulary, prompts, anchors=False)
        self.mixed = make_rows(vocabulary, prompts, anchors=True)
        del self.mixed["old_log_probs"]

    def measure(self, side: str) -> dict[str, float]:
        """Milliseconds of each pass over one batch, per row that is learnt from, and the update's peak in MiB."""
        from bench_kernel import measure_cpu

        own = self.model_class.forward
        self.worker.engine.fused = self.fused if side == OURS else None
        if side == VERL:
            self.model_class.forward = self.verl_forward
        try:
            batch = self.mixed if side == OURS else self.rollouts
            passes = {} if side == OURS else {"old": partial(self.infer, self.rollouts, side, True)}
            passes |= {
                "reference": partial(self.infer, self.rollouts, side, False),
                "update": partial(self.update, batch, side),
            }
            measured = {name: measure_cpu(run)[0] for name, run in passes.items()}
        finally:
            self.model_class.forward = own
        times = {name: numbers["wall_ms"] / len(batch) for name, numbers in measured.items()}
        return times | {"all": sum(times.values()), "update_mib": measured["update"]["peak_mib"]}

    def infer(self, rows: Any, side: str, entropy: bool) -> Any:
        return self.worker.infer_batch(self.settings(rows, side, calculate_entropy=entropy, compute_loss=False))

    def update(self, rows: Any, side: str) -> Any:
        data = self.settings(rows, side, calculate_entropy=False, wavalign_lambda=0.4, epochs=1, seed=1)
        extra = {"global_batch_size": len(rows), "mini_batch_size": len(rows), "dataloader_kwargs": {"shuffle": False}}
        self.worker.set_loss_fn(self.our_loss if side == OURS else self.stock_loss)
        return self.worker.train_mini_batch(_with(data, extra))

    def settings(self, rows: Any, side: str, **extra: Any) -> Any:
        data = rows.clone()
        if side == VERL:  # its fused head takes one temperature for all rows
            del data["temperature"]
            extra["temperature"] = 0.9
        return _with(data, extra | {"use_fused_kernels": side == VERL})


def _with(data: Any, extra: dict[str, Any]) -> Any:
    from verl.utils import tensordict_utils as tu

    for name, value in extra.items():
        tu.assign_non_tensor_data(data, name, value)
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds of each side, after one warm-up")
    parser.add_argument("--geometry", choices=GEOMETRIES, default="pocket", help="sizes of model and batch")
    parser.add_argument("--model", help="Hugging Face folder in place of the geometry's own")
    arguments = parser.parse_args()
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:  # so that memory is seen as it is used
        os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 20)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29655")
    os.environ.setdefault("VERL_ENGINE_VENDOR", "wavalign")  # before verl is imported: our engine, also on a GPU

    import verl  # noqa: F401  (loads the plugin)
    from torch.distributed.fsdp import FSDPModule

    from wavalign_ext.pocket.build import build

    prompts, tokens = GEOMETRIES[arguments.geometry]
    with tempfile.TemporaryDirectory() as folder:
        own = partial(large_model, Path(folder)) if arguments.geometry == "large" else lambda: str(build() / "model")
        learner = Learner(*make_worker(arguments.model or own(), tokens), prompts)
    measured: dict[str, list[dict[str, float]]] = {OWN: [], VERL: [], OURS: []}
    if isinstance(learner.worker.engine.module.get_output_embeddings(), FSDPModule):
        print(f"{VERL}: left out, it takes the weight of a head that FSDP has sharded by itself")
        del measured[VERL]
    for number in range(arguments.rounds + 1):
        for side, rounds in measured.items():
            numbers = learner.measure(side)
            if number:
                rounds.append(numbers)
    report(arguments.geometry, measured)


def report(geometry: str, measured: dict[str, list[dict[str, float]]]) -> None:
    """Print and store medians, and the median ratio of pairs."""
    rows = []
    for side, rounds in measured.items():
        middle = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
        pairs = {
            f"to_{name}": statistics.median(a["all"] / b["all"] for a, b in zip(rounds, measured[other], strict=True))
            for name, other in (("own_head", OWN), ("verl_head", VERL))
            if other in measured
        }
        rows.append({"date": date.today(), "geometry": geometry, "side": side, "rounds": len(rounds)} | middle | pairs)
        parts = ", ".join(f"{name} {middle[name]:.2f}" for name in ("old", "reference", "update") if name in middle)
        ratios = " and ".join(f"{value:.2f} x {name[3:]}" for name, value in pairs.items())
        print(f"{side:<30} {middle['all']:8.2f} ms a row ({parts}), update {middle['update_mib']:.0f} MiB; {ratios}")
    names = [
        "date",
        "geometry",
        "side",
        "rounds",
        "old",
        "reference",
        "update",
        "all",
        "update_mib",
        "to_own_head",
        "to_verl_head",
    ]
    new = not RESULTS.exists()
    with open(RESULTS, "a", newline="") as file:
        table = csv.DictWriter(file, names)
        if new:
            table.writeheader()
        table.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


if __name__ == "__main__":
    main()
