"""The knobs of the kernel, and the parts of a chunk; a stage of `gpu_kit.py`."""

import statistics
from collections.abc import Callable
from typing import Any

# Columns per iteration, and warps that share them: 4 to 32 columns a thread.
BLOCKS = [(4096, 16), (4096, 8), (4096, 32), (8192, 16), (8192, 32), (2048, 8), (2048, 16), (2048, 4), (1024, 4)]
BLOCKS += [(1024, 8), (8192, 8), (16384, 32), (16384, 16)]
CHUNKS = [2048, 1024, 3072, 4096, 1536, 512, 8192]
ROUNDS = 3


def sweep(report: Any, clock: Any) -> None:
    """Rows of three kinds, the shipped values first of each: parts of a chunk, blocks, chunk rows."""
    from kernel_peers import Case

    case = Case(8192, 3584, 168072, 0.6, "bf16", "cuda")
    if report.small:
        case = Case(24, 32, 300, 0.6, "bf16", "cpu")
    report.note(case=f"T {case.tokens}, active {case.active}, H {case.hidden}, V {case.vocab}, {case.dtype}")
    for part in (parts, blocks, chunks):
        try:
            part(report, clock, case)
        except Exception as error:  # the others are worth having
            report.add({"what": part.__name__, "error": clock.failed(part.__name__, error)})
        clock.clean()


def parts(report: Any, clock: Any, case: Any) -> None:
    """Each product and the row step over one chunk of the shipped size."""
    import torch
    from wavalign_kernels import matmul

    state = Chunk(case, report.small)
    product = 2 * len(state.h) * case.hidden * case.vocab
    if report.small:  # a CPU's products of bf16 with fp32 results are made elsewhere (`amx`)
        state.h, state.weight, state.d = state.h.float(), state.weight.float(), state.d.float()
    dw = torch.empty(case.vocab, case.hidden, device=state.h.device)
    tasks: dict[str, tuple[Callable[[], Any], int, int]] = {
        "logits": (lambda: matmul.logits_into(state.z, state.h, state.weight), product, 0),
        "row step": (lambda: state.step(), 0, state.bytes),
        "dHidden": (lambda: matmul.dhidden(state.d, state.weight), product, 0),
        "dWeight, first": (lambda: matmul.dweight_into(dw, state.d, state.h, True), product, 0),
        "dWeight, added": (lambda: matmul.dweight_into(dw, state.d, state.h, False), product, 0),
    }
    for name, (run, flops, size) in tasks.items():
        found = median(report, clock, run)
        report.add({"what": f"part: {name}", "rows": len(state.h), **found, **rates(found, flops, size)})


def blocks(report: Any, clock: Any, case: Any) -> None:
    """The row step alone, statistics and dlogits of the loss."""
    state = Chunk(case, report.small)
    for block, warps in BLOCKS[: 2 if report.small else None]:
        if not report.in_time(8):
            return
        row = {"what": "row step", "rows": len(state.h), "block": block, "warps": warps}
        try:
            found = median(report, clock, lambda b=block, w=warps: state.step(block=b, warps=w))
            report.add(row | found | rates(found, 0, state.bytes))
        except Exception as error:
            report.add(row | {"error": clock.failed(f"block {block}", error)})


def chunks(report: Any, clock: Any, case: Any) -> None:
    """The whole update, over the rows of a chunk."""
    from kernel_peers import Task, ours

    task = Task(case)
    for rows in [8, 16] if report.small else CHUNKS:
        if not report.in_time(4):
            return
        row = {"what": "wavalign_loss, chunk of", "rows": rows}
        try:
            found = median(report, clock, ours(task, "triton", rows), task.clear)
            report.add(row | found | rates(found, case.flops, 0))
        except Exception as error:
            task.clear()
            report.add(row | {"error": clock.failed(f"chunk of {rows}", error)})


class Chunk:
    """What the chunk loop has in hand for its first chunk, of the shipped size."""

    def __init__(self, case: Any, small: bool) -> None:
        import torch
        from kernel_peers import Task
        from wavalign_kernels import triton_rows
        from wavalign_kernels.chunked import CHUNK_BYTES
        from wavalign_kernels.rows import RowStats, active_index, gather_loss, gather_rows

        task = Task(case)
        index = active_index(task.kind)[: 8 if small else CHUNK_BYTES["cuda"] // 2]
        self.h, self.weight = task.hidden.detach()[index], task.weight.detach()
        # The step reads z and writes d: with d its own, it can run again.
        self.z = self.h.float() @ self.weight[:64].float().T
        self.z = self.z.repeat(1, -(-case.vocab // 64))[:, : case.vocab].contiguous()
        self.d = torch.empty_like(self.z, dtype=torch.bfloat16)
        self.rows = gather_rows(index, task.targets, 1.0, self.z.dtype)
        self.loss = gather_loss(task.inputs(), index, self.z.dtype)
        self.stats = RowStats.empty(len(index), self.z)
        self.bytes = self.z.numel() * (4 + 4 + 2)  # two readings, one writing
        self.row_step = triton_rows.step
        self.step()  # dlogits as they are, for products of noise take their own time

    def step(self, **knobs: Any) -> None:
        self.row_step(self.z, self.d, self.rows, None, self.stats, loss=self.loss, **knobs)


def median(report: Any, clock: Any, run: Callable[[], Any], prepare: Callable[[], None] = lambda: None) -> dict:
    taken = [clock.measure(run, prepare) for _ in range(1 if report.small else ROUNDS)]
    if taken[0]["ms"] is None:
        return {}
    peak = max(sample["peak_mib"] for sample in taken)
    return {"ms": statistics.median(sample["ms"] for sample in taken), "peak_mib": peak}


def rates(found: dict, flops: int, size: int) -> dict[str, float]:
    """TFLOP/s of the products, GB/s of the row step's traffic."""
    if "ms" not in found:
        return {}
    return ({"tflops": flops / found["ms"] / 1e9} if flops else {}) | (
        {"gb_per_s": size / found["ms"] / 1e6} if size else {}
    )
