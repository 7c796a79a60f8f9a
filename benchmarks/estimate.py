"""Memory per GPU and time per step of a recipe, computed from the model's geometry. An estimate, not a measurement.

    python benchmarks/estimate.py --recipe wavalign_vita_audio [KEY=VALUE ...]

Needs no GPU and no weights. The geometry is that of the recipe's published model, or of --model's config.json.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GB = 1e9
KNOWN = {  # config.json of the published models, without VITA-Audio's MTP layers
    "vita": dict(layers=28, hidden=3584, mlp=18944, heads=28, kv_heads=4, head_size=128, vocabulary=168072),
    "glm4": dict(layers=40, hidden=4096, mlp=13696, heads=32, kv_heads=2, head_size=128, vocabulary=168960),
}
# Parameters of what decodes: flow and hift, the classes of github.com/THUDM/GLM-4-Voice (cosyvoice/flow/flow.py,
# cosyvoice/hifigan/generator.py) built with config.yaml of glm-4-voice-decoder, and counted. They are float32.
DECODERS = {"glm4_voice": 111_166_208 + 20_460_591}
ASSUMPTIONS = """Assumed: bf16 products at {peak_tflops:g} TFLOP/s with MFU {mfu:g}; {bandwidth_tbs:g} TB/s of memory,
of which decoding gets {bandwidth_use:.0%}; {link_gbs:g} GB/s per GPU for weights sent to vLLM; {response} response and
{prompt} prompt tokens in the mean, and decoding goes on to the longest response, {longest}; {overhead_gb:g} GB per GPU
for CUDA, NCCL and fragments, and {context_gb:g} GB for the CUDA context of each reward worker that decodes on it.
Rewards are taken to be ready when the last rollout is; a judge that is slower adds its
time. The reference policy's weights lie in host memory and are streamed (verl's forward-only engines), which MFU does
not show."""


@dataclass(frozen=True)
class Geometry:
    """A decoder with grouped-query attention, biases on q, k and v, a gated MLP and an untied head."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of the matrices of one layer."""
        q, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = [(self.hidden, q), (self.hidden, kv), (self.hidden, kv), (q, self.hidden)]
        return [*attention, (self.hidden, self.mlp), (self.hidden, self.mlp), (self.mlp, self.hidden)]

    @property
    def layer(self) -> int:
        biases = (self.heads + 2 * self.kv_heads) * self.head_size
        return sum(a * b for a, b in self.linears) + biases + 2 * self.hidden

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.layer + 2 * self.embedding + self.hidden

    @property
    def kv_bytes(self) -> int:
        """Of one token in bf16, all layers."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_size

    def adapters(self, rank: int) -> int:
        """Parameters of LoRA on every linear of the layers."""
        return self.layers * sum(rank * (a + b) for a, b in self.linears)

    @classmethod
    def read(cls, folder: Path) -> "Geometry":
        c = json.loads((folder / "config.json").read_text())
        size = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
        numbers = (c["num_hidden_layers"], c["hidden_size"], c["intermediate_size"], c["num_attention_heads"])
        return cls(*numbers, c["num_key_value_heads"], size, c["vocab_size"])


@dataclass(frozen=True)
class Run:
    """What of a composed recipe the estimate depends on."""

    gpus: int
    shards: int
    tensor_parallel: int
    lora_rank: int
    weight_bytes: int
    prompts: int
    rollouts: int
    anchors: int
    reference: bool
    tokens_per_pass: int
    utilization: float
    sequences: int
    prompt: int
    response: int
    longest: int
    offload: tuple[bool, bool]
    decoders: int  # reward workers that decode on the same GPU
    decoder: int  # parameters of each

    @classmethod
    def of(cls, config: Any, prompt: int | None, response: int | None) -> "Run":
        a, trainer = config.actor_rollout_ref, config.trainer
        gpus = trainer.n_gpus_per_node * trainer.nnodes
        shards = a.actor.fsdp_config.fsdp_size
        mixing = config.wavalign.mixing
        return cls(
            gpus=gpus,
            shards=gpus if shards < 1 else shards,
            tensor_parallel=a.rollout.tensor_model_parallel_size,
            lora_rank=a.model.lora_rank,
            weight_bytes=2 if a.actor.fsdp_config.model_dtype in ("bf16", "bfloat16") else 4,
            prompts=config.data.train_batch_size,
            rollouts=a.rollout.n,
            anchors=int(not (mixing.type == "fixed" and mixing.value == 1)),
            reference=bool(a.actor.use_kl_loss),
            tokens_per_pass=a.actor.ppo_max_token_len_per_gpu * a.actor.ulysses_sequence_parallel_size,
            utilization=a.rollout.gpu_memory_utilization,
            sequences=a.rollout.max_num_seqs,
            prompt=prompt or config.data.max_prompt_length // 4,
            response=response or config.data.max_response_length // 2,
            longest=config.data.max_response_length,
            offload=(a.actor.fsdp_config.param_offload, a.actor.fsdp_config.optimizer_offload),
            decoders=decoders(config),
            decoder=decoder_parameters(config.wavalign.codec),
        )


def decoders(config: Any) -> int:
    """Reward workers on the GPU that has most: verl deals them to the nodes, and those of a node share its GPUs."""
    from wavalign_ext.speech.codecs.base import device_of

    device, trainer = device_of(config.wavalign.codec), config.trainer
    if device in (None, "cpu"):
        return 0
    on_a_node = math.ceil(config.reward.num_workers / trainer.nnodes)
    return on_a_node if device.startswith("cuda:") else math.ceil(on_a_node / trainer.n_gpus_per_node)


def decoder_parameters(codec: Any) -> int:
    """Of a codec as a reward worker loads it. Raises ValueError where neither a table nor its folder says it."""
    from wavalign_ext.checkpoints.strict_loading import Weights
    from wavalign_ext.speech.codecs.base import device_of

    if device_of(codec) is None:
        return 0  # fitted codebooks
    if codec.type in DECODERS:
        return DECODERS[codec.type]
    return Weights.of(Path(codec.path)).elements


def memory(g: Geometry, run: Run, gpu_gb: float, overhead_gb: float, context_gb: float) -> dict[str, dict[str, float]]:
    """GB per GPU, part by part, while training and while rolling out."""
    from wavalign_kernels.chunked import CHUNK_BYTES

    trained = g.adapters(run.lora_rank) if run.lora_rank else g.parameters
    weights = g.parameters * run.weight_bytes / run.shards + (4 * trained if run.lora_rank else 0)
    optimiser = 8 * trained / run.shards
    tokens, root = run.tokens_per_pass, 2 * g.embedding
    inner = 3 * g.hidden + (g.heads + 2 * g.kv_heads) * g.head_size + 3 * g.mlp
    gathered = 0 if run.lora_rank and run.shards == 1 else 2 * (root + 2 * g.layer)
    head = g.vocabulary * 3 * CHUNK_BYTES["cuda"] + (0 if run.lora_rank else 4 * g.embedding)
    training = {
        "weights": weights,
        "gradients": 4 * trained / run.shards,
        "optimiser states": optimiser,
        "gathered in bf16 (2 layers, embedding, head)": gathered,
        "gradients before they are scattered (fp32)": 0 if run.lora_rank else 4 * (root + g.layer),
        "activations (checkpointed, one layer inside)": 2 * tokens * (g.layers * g.hidden + 2 * inner),
        "head: a chunk of logits, and its gradient": head,
    }
    engine = 2 * g.parameters / run.tensor_parallel
    kept = (0 if run.offload[0] else weights) + (0 if run.offload[1] else optimiser)
    rollout = {
        "weights and optimiser states (training)": kept,
        "vLLM: weights": engine,
        "vLLM: KV cache": max(run.utilization * gpu_gb * GB - engine - 2 * GB, 0),
        "vLLM: activations": 2 * GB,
    }
    rewards = {f"speech decoders of {run.decoders} reward workers": run.decoders * (4 * run.decoder + context_gb * GB)}
    phases = {"training": training | rewards, "rollout": rollout | rewards}
    return {phase: {k: v / GB for k, v in p.items()} | {"CUDA, NCCL": overhead_gb} for phase, p in phases.items()}


def seconds(g: Geometry, run: Run, hardware: argparse.Namespace) -> dict[str, float]:
    """Of each part of a step; every GPU takes an equal share."""
    flops = hardware.peak_tflops * 1e12 * hardware.mfu * run.gpus
    active = g.layers * g.layer + g.embedding  # the embedding is looked up, the head is multiplied
    rows = run.prompts * run.rollouts
    tokens = rows * (run.prompt + run.response)
    attention = 2 * 2 * g.layers * g.heads * g.head_size * (run.prompt + run.response) / 2  # FLOPs per token, causal
    forward = tokens * (2 * active + attention) / flops
    updated = (rows + run.anchors * run.prompts) / rows * forward

    replicas = run.gpus // run.tensor_parallel
    per_replica = math.ceil(rows / replicas)
    at_once = min(per_replica, run.sequences)
    read = 2 * active + at_once * (run.prompt + run.response / 2) * g.kv_bytes
    bandwidth = hardware.bandwidth_tbs * 1e12 * hardware.bandwidth_use * run.tensor_parallel
    decode = math.ceil(per_replica / at_once) * run.longest * (read / bandwidth + hardware.step_overhead_ms / 1e3)
    prefill = run.prompts * run.prompt * 2 * active / flops  # answers to one prompt share it
    moved = g.adapters(run.lora_rank) if run.lora_rank else g.parameters
    return {
        "rollouts: prefill": prefill,
        f"rollouts: decode, {at_once} at once": decode,
        "log-probs of the policy": forward,
        "log-probs of the reference": forward if run.reference else 0.0,
        "update: forward, recompute, backward": (3 if run.lora_rank else 4) * updated,
        "weights to vLLM": run.weight_bytes * moved / (hardware.link_gbs * GB),
    }


def report(name: str, g: Geometry, run: Run, hardware: argparse.Namespace) -> str:
    """The tables as text."""
    lines = [f"{name}: an estimate from the geometry, not a measurement", ""]
    lines.append(
        f"{g.parameters / 1e9:.2f} billion parameters; {run.gpus} GPUs of {hardware.gpu_gb:g} GB, weights in "
        f"{run.shards} shards, vLLM on {run.tensor_parallel}; {run.prompts} prompts × {run.rollouts} rollouts"
    )
    for phase, parts in memory(g, run, hardware.gpu_gb, hardware.overhead_gb, hardware.context_gb).items():
        total = sum(parts.values())
        verdict = "fits" if total <= hardware.gpu_gb else "DOES NOT FIT"
        lines += ["", f"GB per GPU, {phase}"] + [f"  {value:7.1f}  {part}" for part, value in parts.items() if value]
        lines.append(f"  {total:7.1f}  in all: {verdict} in {hardware.gpu_gb:g}")
    cache = memory(g, run, hardware.gpu_gb, 0, 0)["rollout"]["vLLM: KV cache"] * GB * run.tensor_parallel / g.kv_bytes
    lines.append(
        f"  The KV cache of a replica holds {cache:,.0f} tokens, {cache / (run.prompt + run.response):,.0f} answers"
    )
    parts = seconds(g, run, hardware)
    lines += ["", "Seconds per step"] + [f"  {value:7.1f}  {part}" for part, value in parts.items() if value]
    lines.append(f"  {sum(parts.values()):7.1f}  in all, without rewards, validation and checkpoints")
    known = vars(hardware) | dict(prompt=run.prompt, response=run.response, longest=run.longest)
    return "\n".join([*lines, "", ASSUMPTIONS.format(**known)])


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--recipe", default="wavalign_vita_audio", metavar="NAME", help="a recipe of a real model (%(default)s)")
    add("--model", type=Path, metavar="FOLDER", help="model folder whose config.json gives the geometry")
    add("--gpu-gb", type=float, default=80, metavar="GB", help="memory of one GPU (%(default)s)")
    add(
        "--peak-tflops", type=float, default=989, metavar="N", help="dense bf16 peak of one GPU (%(default)s, H100 SXM)"
    )
    add("--mfu", type=float, default=0.4, metavar="SHARE", help="of the peak that training gets (%(default)s)")
    add("--bandwidth-tbs", type=float, default=3.35, metavar="TB/s", help="memory bandwidth of one GPU (%(default)s)")
    add("--bandwidth-use", type=float, default=0.6, metavar="SHARE", help="of it that decoding gets (%(default)s)")
    add(
        "--step-overhead-ms",
        type=float,
        default=3,
        metavar="MS",
        help="of one decoding step beside reading (%(default)s)",
    )
    add("--link-gbs", type=float, default=50, metavar="GB/s", help="for weights to vLLM, per GPU (%(default)s)")
    add("--overhead-gb", type=float, default=4, metavar="GB", help="CUDA, NCCL and fragments per GPU (%(default)s)")
    add("--context-gb", type=float, default=0.5, metavar="GB", help="CUDA context of a reward worker (%(default)s)")
    add("--prompt", type=int, metavar="TOKENS", help="mean prompt (a quarter of data.max_prompt_length)")
    add("--response", type=int, metavar="TOKENS", help="mean response (half of data.max_response_length)")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="as for the recipe itself")
    hardware = parser.parse_args(argv)

    import verl  # noqa: F401  (loads the plugin)
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", [f"+recipe={hardware.recipe}", *hardware.overrides])
    layout = config.wavalign.layout if isinstance(config.wavalign.layout, str) else config.wavalign.layout.name
    known = next((numbers for prefix, numbers in KNOWN.items() if layout.startswith(prefix)), None)
    if hardware.model is None and known is None:
        parser.error(f"the geometry of layout {layout!r} is not known: give --model a folder with config.json")
    geometry = Geometry.read(hardware.model) if hardware.model else Geometry(**known)  # pyright: ignore[reportCallIssue]
    print(report(hardware.recipe, geometry, Run.of(config, hardware.prompt, hardware.response), hardware))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
