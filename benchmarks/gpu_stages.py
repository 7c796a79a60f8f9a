"""The stages of `gpu_kit.py`, one a process: python gpu_stages.py NAME --report FILE --seconds N [--small].

A stage writes its report after every row of it, so that what is known when its time is over is kept.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "triton", "pytest", "verl", "vllm", "transformers", "liger-kernel", "cut-cross-entropy")
ROUNDS = 5


class Report:
    """What the parent reads: rows, and facts about the stage."""

    def __init__(self, path: Path, seconds: float, small: bool, without: list[str]) -> None:
        self.path, self.end, self.small, self.without = path, time.monotonic() + seconds, small, without
        self.content: dict[str, Any] = {"rows": []}

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def in_time(self, seconds: float = 0.0) -> bool:
        """Whether so much time is left; if not, the report says that the stage was cut short."""
        if self.left < seconds:
            self.note(cut=True)
        return self.left >= seconds

    def note(self, **facts: Any) -> None:
        self.content |= facts
        fresh = self.path.with_suffix(".part")
        fresh.write_text(json.dumps(self.content))
        fresh.replace(self.path)

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row, of which later changes are seen at the next `note`."""
        self.content["rows"].append(row)
        self.note()
        return row


class Dead(Exception):
    """The GPU's context cannot be used any more; the message is who did it."""


class Clock:
    """Milliseconds on a GPU by events, and peak MiB; without a GPU it runs and measures nothing."""

    def __init__(self, small: bool) -> None:
        import torch

        self.torch, self.small = torch, small
        # More than any second-level cache: what the run before left there helps nobody.
        self.flush = None if small else torch.empty(256 << 20, dtype=torch.int8, device="cuda")

    def measure(self, run: Callable[[], Any], prepare: Callable[[], None] = lambda: None) -> dict[str, float | None]:
        """Once to fill the allocator's cache, then once counted."""
        torch = self.torch
        prepare()
        run()
        if self.flush is None:
            return {"ms": None, "peak_mib": None}
        prepare()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return {"ms": begin.elapsed_time(end), "peak_mib": (torch.cuda.max_memory_allocated() - before) / 2**20}

    def clean(self) -> None:
        """Memory back to the GPU, so that what one of them held in reserve is there for the next."""
        import gc

        gc.collect()
        if not self.small:
            self.torch.cuda.empty_cache()

    def failed(self, name: str, error: Exception) -> str:
        """One line; raises Dead where nothing will run any more."""
        line = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        error.__traceback__ = None  # frames hold tensors
        self.clean_or_die(name, line)
        return line

    def clean_or_die(self, name: str, line: str) -> None:
        try:
            self.clean()
            if not self.small:
                self.torch.cuda.synchronize()
        except Exception as fatal:
            raise Dead(name, line) from fatal


def machine(report: Report) -> None:
    """The card, its properties, versions."""
    have = {(d.metadata["Name"] or "").lower().replace("_", "-"): d.version for d in metadata.distributions()}
    report.note(card=None, versions={n: have[n] for n in PACKAGES if n in have} | {"python": sys.version.split()[0]})
    import torch

    if not torch.cuda.is_available():
        return
    found = torch.cuda.get_device_properties(0)
    names = ("multi_processor_count", "total_memory", "L2_cache_size", "major", "minor", "clock_rate")
    facts = {name: getattr(found, name) for name in names if hasattr(found, name)}
    facts |= {"cuda": torch.version.cuda, "hip": torch.version.hip, "gpus": torch.cuda.device_count()}
    report.note(card=found.name, properties=facts)


def tests(report: Report) -> None:
    """Each case's outcome: those of the row kernel and of the edges, and the torch path's."""
    root = Path(__file__).resolve().parents[1]
    cases = sorted(str(path) for path in (root / "tests/kernels/cases").glob("*_cases.py"))
    if importlib.util.find_spec("pytest") is None:
        paths = " ".join(str(Path(path).relative_to(root)) for path in cases)
        return report.note(cut=True, note=f"pytest is not installed; with it: python3 -m pytest -m gpu {paths}")
    import pytest

    counts: dict[str, int] = {}

    class Recorder:
        @pytest.hookimpl
        def pytest_runtest_logreport(self, report: Any) -> None:  # pytest calls it by this name
            if report.when != "call" and report.passed:
                return
            counts[report.outcome] = counts.get(report.outcome, 0) + 1
            if report.failed:
                name = report.nodeid.split("/")[-1]
                outer.add({"test": name, "outcome": "failed", "error": str(report.longrepr)[-600:]})
            outer.note(counts=counts)

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_setup(self, item: Any) -> None:
            if not outer.in_time(2):
                pytest.exit("its time is over", returncode=0)

        @pytest.hookimpl
        def pytest_collection_finish(self, session: Any) -> None:
            outer.note(collected=len(session.items))

    outer = report
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(root), "-c", str(root / "pyproject.toml")]
    if report.small:
        chosen = "test_terms_of_the_loss or test_confident_target or (test_frozen_input and weight)"
        code = pytest.main([*options, *cases, "-k", chosen], plugins=[Recorder()])
    else:
        # The row kernel's first; "GPU" is among the ids of the torch path's.
        paths = [*cases, str(root / "tests/kernels/test_torch_path.py")]
        code = pytest.main([*options, "-m", "gpu", *paths], plugins=[Recorder()])
    if code not in (0, 1):
        raise RuntimeError(f"pytest ended with {code!r}")
    if code == 1 or counts.get("failed"):
        raise SystemExit(f"{counts.get('failed', 0)} tests failed")


def accuracy(report: Report) -> None:
    """Statistics and dlogits of both row steps: relative error in the 2-norm, plain PyTorch in fp32 beside them."""
    import torch
    from definition import dlogits, error, loss, plain, slopes, softmax  # pyright: ignore[reportMissingImports]
    from kernel_peers import Case, Task
    from wavalign_kernels import torch_rows, triton_rows
    from wavalign_kernels.rows import RowStats, gather_loss, gather_rows

    device = "cpu" if report.small else "cuda"
    count, vocab = (6, 4200) if report.small else (192, 168072)
    task = Task(Case(tokens=count, hidden=8, vocab=vocab, share=1.0, device=device))
    x = replace(task.inputs(), entropy_coef=0.01, lam=0.3)
    z = torch.randn(count, vocab, device=device, generator=torch.Generator(device).manual_seed(1)) * 3
    exact = softmax(z, x.targets)
    x = replace(x, old_logp=exact.logp.float() + 0.1 * task.advantages)
    truth = dlogits(exact, x.targets, *slopes(exact, x))
    leaf = z.clone().requires_grad_()
    logp, entropy = plain(leaf, x.targets)
    (made,) = torch.autograd.grad(loss(logp, entropy, x), leaf)
    bound = {"logp": error(logp, exact.logp), "entropy": error(entropy, exact.entropy), "dlogits": error(made, truth)}
    report.note(case=f"{count} rows, V {vocab}")
    report.add({"row step": "plain PyTorch", "dlogits in": "fp32"} | bound)
    every = torch.arange(count, device=device)
    rows, cost = gather_rows(every, x.targets, 1.0, z.dtype), gather_loss(x, every, z.dtype)
    bad = []
    for name, step in (("triton", triton_rows.step), ("torch", torch_rows.step)):
        for dtype in (torch.float32, torch.bfloat16):
            stats, logits = RowStats.empty(count, z), z.clone()
            d = logits if dtype == z.dtype else torch.empty_like(z, dtype=dtype)
            factor = step(logits, d, rows, None, stats, loss=cost)
            d = d if factor is None else d * factor
            found = {"logp": error(stats.logp, exact.logp), "entropy": error(stats.entropy, exact.entropy)}
            found["dlogits"] = error(d, truth)
            # Half precision: its own rounding of dlogits, at most 2⁻⁸ of each; on a GPU exp2 is off by 2⁻²².
            allowed = {name: value + 2e-6 for name, value in bound.items()}
            allowed["dlogits"] += 2**-8 if dtype == torch.bfloat16 else 0.0
            good = all(found[key] <= allowed[key] for key in found)
            bad += [] if good else [f"{name} {dtype}"]
            report.add({"row step": name, "dlogits in": str(dtype)[6:], **found, "within bounds": good})
    if bad:
        raise SystemExit(f"not as exact as PyTorch in fp32: {', '.join(bad)}")


def times(report: Report, tokens: int = 8192, vocab: int = 168072) -> None:
    """Forward and backward of one update; the peers take turns, ours first."""
    from kernel_peers import NOTES, PEERS, Case, Skipped, Task

    case = Case(tokens, 3584, vocab, 0.6, "bf16", "cuda")
    names = [name for name in PEERS if name != "floor in fp32"]
    if report.small:
        case = Case(24, 32, 300, 0.6, "bf16", "cpu")
        names = [name for name in names if name.split()[0] in ("floor", "wavalign", "naive")]
    report.note(case=", ".join(f"{key} {value}" for key, value in asdict(case).items()))
    clock, task = Clock(report.small), Task(case)
    rows = {name: report.add({"peer": name, "note": NOTES.get(name)}) for name in names if name not in report.without}
    runs: dict[str, Callable[[], Any]] = {}
    for name, row in rows.items():
        try:
            runs[name] = PEERS[name](task)
        except Skipped as reason:
            row["note"] = f"skipped: {reason}"
        except Exception as error:
            row["note"] = clock.failed(name, error)
    add_errors(report, clock, task, runs, rows)
    samples: dict[str, list[dict]] = {name: [] for name in runs}
    for _ in range(1 if report.small else ROUNDS):
        for name in list(runs):
            clock.clean()
            if not report.in_time(3):
                return
            try:
                samples[name].append(clock.measure(runs[name], task.clear))
            except Exception as error:
                rows[name]["note"] = clock.failed(name, error)
                del runs[name]
            add_times(case, rows, samples)
            report.note()
    if not report.small and "floor" in runs:
        from gpu_kit import clocks

        for _ in range(40):  # a second or more of products, while nvidia-smi looks
            runs["floor"]()
        report.note(**{"clocks under load": clocks()})
        clock.torch.cuda.synchronize()


def add_errors(report: Report, clock: Clock, task: Any, runs: dict, rows: dict) -> None:
    """Log-probs and gradients of each peer against float64, which also warms it up; who fails is out."""
    from kernel_peers import truth

    try:
        exact = truth(task.case)
    except Exception as error:
        report.note(note=f"no errors: {clock.failed('float64', error)}")
        exact = {}
    for name in list(runs):
        if not report.in_time(5):
            return
        task.clear()
        try:
            logp = runs[name]()
            if not exact or name == "floor" or name == "liger GRPO":
                continue
            kept = {"dHidden": task.hidden.grad, "dWeight": task.weight.grad}
            kept |= {} if logp is None else {"logp": logp[task.active] if len(logp) == len(task.kind) else logp}
            for key, value in kept.items():
                if value is not None:
                    rows[name][key] = float((value.double() - exact[key]).norm() / exact[key].norm())
            del logp, kept, value
        except Exception as error:
            rows[name]["note"] = clock.failed(name, error)
            del runs[name]
        report.note()
        clock.clean()


def add_times(case: Any, rows: dict[str, dict], samples: dict[str, list[dict]]) -> None:
    """Medians so far, and what they are of the floor."""
    for name, taken in samples.items():
        counted = [sample["ms"] for sample in taken if sample["ms"] is not None]
        if not counted:
            continue
        ms = statistics.median(counted)
        rows[name] |= {"ms": ms, "fastest": min(counted), "slowest": max(counted), "rounds": len(counted)}
        rows[name] |= {"tflops": case.flops / ms / 1e9, "peak_mib": max(sample["peak_mib"] for sample in taken)}
    floor = rows.get("floor", {}).get("ms")
    for row in rows.values():
        if floor and "ms" in row:
            row["of_floor"] = floor / row["ms"]


def sweep(report: Report) -> None:
    import gpu_sweep

    gpu_sweep.sweep(report, Clock(report.small))


def update(report: Report) -> None:
    import gpu_update

    gpu_update.update(report, Clock(report.small))


STAGES: dict[str, Callable[[Report], None]] = {
    "machine": machine,
    "tests": tests,
    "accuracy": accuracy,
    "times": times,
    "times_4096": lambda report: times(report, 4096, 131072),
    "sweep": sweep,
    "update": update,
}


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("stage", choices=list(STAGES))
    p.add_argument("--report", type=Path, required=True)
    p.add_argument("--seconds", type=float, required=True)
    p.add_argument("--small", action="store_true")
    p.add_argument("--without", nargs="*", default=[])
    options = p.parse_args()
    report = Report(options.report, options.seconds, options.small, options.without)
    try:
        STAGES[options.stage](report)
    except Dead as dead:
        report.note(dead=dead.args[0], note=f"{dead.args[0]} left the GPU unusable: {dead.args[1]}")
        raise
    report.note()


if __name__ == "__main__":
    main()
