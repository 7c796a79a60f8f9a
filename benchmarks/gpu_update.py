"""FSDP2 updates of a model with Qwen2-7B's geometry, cut to the layers that fit; a stage of `gpu_kit.py`.

The model is plain PyTorch with random weights, so that no framework is needed: parameters in fp32, computed in bf16,
layers checkpointed, AdamW. A head takes the place of the output layer's forward inside the root FSDP unit, as
`wavalign_ext.integration.fused_head` does in verl, and answers with the loss. All heads start at the same weights:
losses of the first forward are compared, then whole updates are timed in turns.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from kernel_peers import Case, Skipped, Task, verl_torch_head, verl_triton_head
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint
from wavalign_kernels import linear_logprob, wavalign_loss

ROUNDS = 4
SPARE = 40 << 30
"""Bytes for activations, what FSDP2 gathers and reduces, and the hungriest head."""


@dataclass(frozen=True)
class Geometry:
    """Qwen2-7B's (Qwen/Qwen2-7B, config.json), with VITA-Audio's vocabulary."""

    hidden: int = 3584
    inner: int = 18944
    heads: int = 28
    kv_heads: int = 4
    vocab: int = 168072
    layers: int = 28

    @property
    def layer_parameters(self) -> int:
        kv = self.hidden // self.heads * self.kv_heads
        return 2 * self.hidden * self.hidden + 2 * self.hidden * kv + 3 * self.hidden * self.inner

    def fitting(self, free: int) -> "Geometry":
        """As many layers as fit: parameter, gradient and two states in fp32, and what is gathered in bf16."""
        ends = 2 * self.hidden * self.vocab
        layers = (free - SPARE - 18 * ends) // (16 * self.layer_parameters) if free else self.layers
        return replace(self, layers=max(1, min(self.layers, int(layers))))


class Layer(nn.Module):
    """Attention with grouped keys and rotary positions, then SwiGLU, each behind an RMSNorm."""

    def __init__(self, g: Geometry) -> None:
        super().__init__()
        self.g, size = g, g.hidden // g.heads
        self.norm1, self.norm2 = nn.RMSNorm(g.hidden, eps=1e-6), nn.RMSNorm(g.hidden, eps=1e-6)
        self.q = nn.Linear(g.hidden, g.hidden)
        self.kv = nn.Linear(g.hidden, 2 * g.kv_heads * size)
        self.o = nn.Linear(g.hidden, g.hidden, bias=False)
        self.gate, self.up = (nn.Linear(g.hidden, g.inner, bias=False) for _ in range(2))
        self.down = nn.Linear(g.inner, g.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # x (1, T, hidden), cos and sin (T, size)
        h, size = self.norm1(x), self.g.hidden // self.g.heads

        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (-1, size)).transpose(1, 2)

        q, (k, v) = split(self.q(h)), (split(part) for part in self.kv(h).chunk(2, -1))
        k, v = (y.repeat_interleave(self.g.heads // self.g.kv_heads, 1) for y in (k, v))  # every backend takes that
        q, k = (y * cos + torch.cat((-y[..., size // 2 :], y[..., : size // 2]), -1) * sin for y in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Model(nn.Module):
    """ids (1, T) -> whatever the head answers."""

    def __init__(self, g: Geometry) -> None:
        super().__init__()
        self.g = g
        self.embed = nn.Embedding(g.vocab, g.hidden)
        self.layers = nn.ModuleList(Layer(g) for _ in range(g.layers))
        self.norm = nn.RMSNorm(g.hidden, eps=1e-6)
        self.lm_head = nn.Linear(g.hidden, g.vocab, bias=False)

    def forward(self, ids: Tensor) -> Any:
        x, size = self.embed(ids), self.g.hidden // self.g.heads
        turns = torch.arange(0, size, 2, device=ids.device) / size
        angle = torch.outer(torch.arange(ids.shape[1], device=ids.device), 1e6**-turns).repeat(1, 2)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        for layer in self.layers:
            x = checkpoint(layer, x, cos, sin, use_reentrant=False)
        return self.lm_head(self.norm(x))


Head = Callable[[Tensor, Tensor], Tensor]  # hidden (T, H), weight (V, H) -> loss ()


def heads(task: Any) -> dict[str, Head | str]:
    """By name; a reason where one cannot run here."""
    x, device = task.inputs(), task.case.device

    def by_logprob(logprob: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Head:
        return lambda h, w: task.loss(logprob(h, w, task.targets))

    def own(h: Tensor, w: Tensor, y: Tensor) -> Tensor:
        return F.log_softmax((h @ w.T).float(), -1).gather(1, y[:, None])[:, 0]

    found: dict[str, Head | str] = {
        "wavalign_loss": lambda h, w: wavalign_loss(h, w, x).loss,
        "linear_logprob": by_logprob(lambda h, w, y: linear_logprob(h, w, y, active=task.active)[0]),
    }
    for name, make in (("verl torch", verl_torch_head), ("verl triton", verl_triton_head)):
        try:
            found[name] = by_logprob(make(device))
        except Skipped as reason:
            found[name] = f"skipped: {reason}"
        except Exception as error:
            found[name] = f"cannot be imported: {type(error).__name__}: {error}"[:200]
    return found | {"the model's own": by_logprob(own)}  # the hungriest comes last


def build(g: Geometry, device: str, sharded: bool) -> Model:
    """Random weights, made on the device; FSDP2 units of one rank as verl wraps them: each layer, then the rest."""
    torch.manual_seed(0)
    with torch.device(device):
        model = Model(g)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.02)
    if sharded:
        mesh = init_device_mesh(device, (1,))
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        for unit in (*model.layers, model):
            fully_shard(unit, mesh=mesh, mp_policy=policy)
        return model
    return model.to(torch.bfloat16)


def update(report: Any, clock: Any) -> None:
    """FSDP2; where that cannot be had in one process, the same model without it, and the report says so."""
    device = "cpu" if report.small else "cuda"
    try:
        backend, place = ("gloo", None) if report.small else ("nccl", torch.device("cuda", 0))
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=store, rank=0, world_size=1, device_id=place)
        measure(report, clock, device, sharded=True)
    except Exception as error:
        report.note(note=f"without FSDP2, in bf16 throughout: {clock.failed('FSDP2', error)}")
        report.content["rows"].clear()
        measure(report, clock, device, sharded=False)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def measure(report: Any, clock: Any, device: str, sharded: bool) -> None:
    case = Case(8192, 3584, 168072, 0.6, "bf16", device)
    g = Geometry().fitting(torch.cuda.mem_get_info()[0] if device == "cuda" else 0)
    if report.small:
        case = Case(24, 64, 300, 0.6, "bf16", device)
        g = Geometry(64, 96, 4, 2, 300, 2)
    task = Task(replace(case, vocab=8))  # hidden and weight are the model's; the rest is the loss
    task.targets = torch.randint(case.vocab, task.targets.shape, device=device)
    ids = torch.randint(case.vocab, (1, case.tokens), device=device)
    model = build(g, device, sharded)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    count = sum(p.numel() for p in model.parameters())
    report.note(model=f"{g}, {count / 1e9:.2f} billion parameters, {case.tokens} tokens, {case.active} active")
    rows, active = {}, {}
    for name, head in heads(task).items():
        rows[name] = report.add({"head": name, "note": head if isinstance(head, str) else None})
        if not isinstance(head, str):
            active[name] = head

    def run(head: Head, train: bool = True) -> float | None:
        model.lm_head.forward = lambda x: head(x[0], model.lm_head.weight)  # type: ignore[method-assign]
        with torch.set_grad_enabled(train):
            loss = model(ids)
        if not train:
            return loss.item()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def attempt(name: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:
            optimizer.zero_grad()
            rows[name]["note"] = clock.failed(name, error)
            del active[name]

    for name, head in list(active.items()):
        rows[name]["loss"] = attempt(name, lambda h=head: run(h, train=False))
    report.note()
    if not active:
        raise RuntimeError("; ".join(f"{name}: {row['note']}" for name, row in rows.items()))
    samples: dict[str, list[dict]] = {name: [] for name in active}
    for _ in range(1 if report.small else ROUNDS):
        for name, head in list(active.items()):
            clock.clean()
            if not report.in_time(4):
                return
            taken = attempt(name, lambda h=head: clock.measure(lambda: run(h)))
            if taken is None or taken["ms"] is None:
                continue
            samples[name].append(taken)
            counted = [sample["ms"] for sample in samples[name]]
            rows[name] |= {"ms": statistics.median(counted), "fastest": min(counted), "slowest": max(counted)}
            rows[name]["peak_mib"] = max(sample["peak_mib"] for sample in samples[name])
            report.note()
