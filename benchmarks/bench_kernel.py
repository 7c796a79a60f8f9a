"""The fused loss beside its peers: time, peak memory and error, forward and backward of one update.

    python benchmarks/bench_kernel.py                                       T 2048, H 512, V 32768, 60 and 15 % active
    python benchmarks/bench_kernel.py --sweep --peers floor "wavalign torch" naive      over tokens, vocabulary, share
    python benchmarks/bench_kernel.py --device cuda --hidden 3584 --vocab 168072 --tokens 8192 --dtypes bf16

Every peer has a process of its own, so that none disturbs another's memory, and they take turns, so that a busy machine
slows all alike; tables show medians. `floor` is the three products over the active rows in the inputs' dtype, and the
ratio is to the faster of it and the same in fp32. Times: on one CPU thread, the processor's time (process_time), which
other jobs on the machine disturb least, wall time beside it; on a GPU, device events, with TFLOP/s of the necessary
6·A·H·V and the share of the floor. Memory: peak above the inputs, resident (VmHWM) or the allocator's on a GPU. Errors:
‖x − fp64‖ / ‖fp64‖. Writes benchmarks/results/kernel_{cpu,cuda}.csv (or --out), and a plot beside it.
"""

import argparse
import csv
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from kernel_peers import NOTES, PEERS, Case, Skipped, Task, truth  # noqa: E402

RESULTS = Path(__file__).with_name("results")
SWEEPS: dict[str, list] = {"tokens": [512, 1024, 4096], "vocab": [8192, 16384, 65536], "share": [0.15, 0.3, 1.0]}
PACKAGES = ("torch", "triton", "verl", "liger-kernel", "cut-cross-entropy")


@dataclass
class Row:
    """One line of the table."""

    dtype: str
    tokens: int
    hidden: int
    vocab: int
    share: float
    peer: str
    ms: float
    ratio: float | None = None  # to the floor
    naive: float | None = None  # to naive
    wall_ms: float | None = None
    peak_mib: float | None = None
    tflops: float | None = None  # useful: 6·A·H·V over the time
    logp: float | None = None
    dHidden: float | None = None
    dWeight: float | None = None
    note: str = ""


def worker(peer: str, case: Case, threads: int) -> None:
    """Serve one peer over standard input and output: "run" -> times and peak, "keep PATH" -> the last results."""
    import torch

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a peer prints must not reach the answers
    torch.set_num_threads(threads)

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        task = Task(case)
        run = PEERS[peer](task)
        answer(ready=True)
    except Skipped as reason:
        return answer(skipped=str(reason))
    measure = measure_cuda if case.device == "cuda" else measure_cpu
    logp = None
    for line in sys.stdin:
        command, _, path = line.strip().partition(" ")
        if command == "keep":
            kept = {"dHidden": task.hidden.grad, "dWeight": task.weight.grad}
            kept |= {"logp": None if logp is None else logp[task.active] if len(logp) == len(task.kind) else logp}
            torch.save({k: v for k, v in kept.items() if v is not None}, path)
            answer(kept=True)
            continue
        task.hidden.grad = task.weight.grad = logp = None
        try:
            measured, logp = measure(run)
            answer(**measured)
        except Exception as error:  # a peer that fails is a line of the report, not its end
            answer(skipped=f"{type(error).__name__}: {error}"[:200])


def measure_cpu(run) -> tuple[dict[str, float], Any]:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again here
    before = status_mib("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu_ms": cpu * 1e3, "wall_ms": wall * 1e3, "peak_mib": status_mib("VmHWM") - before}, result


def measure_cuda(run) -> tuple[dict[str, float], Any]:
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    result = run()
    end.record()
    torch.cuda.synchronize()
    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
    return {"device_ms": begin.elapsed_time(end), "peak_mib": peak}, result


def status_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}; memory is measured on Linux only")


class Peer:
    """A worker process, seen from outside."""

    def __init__(self, name: str, case: Case, threads: int) -> None:
        # One wakeful thread, and large blocks returned to the system at once, so that memory is seen as it is used.
        quiet = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "MALLOC_MMAP_THRESHOLD_": "1048576"}
        command = [sys.executable, __file__, "--worker", name, "--case", json.dumps(asdict(case))]
        self.name, self.samples = name, []
        self.process = subprocess.Popen(
            [*command, "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | quiet,
        )

    def ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.listen()

    def listen(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"skipped": f"its process ended with code {self.process.wait()}"}

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure_case(case: Case, options: argparse.Namespace, errors: bool, bar: Any) -> list[Row]:
    """All peers in turn, --rounds times after one round of warming up."""
    peers, timing = [], "cpu_ms" if options.threads == 1 else "wall_ms"
    timing = "device_ms" if case.device == "cuda" else timing
    for peer in [Peer(name, case, options.threads) for name in options.peers]:
        name, reason = peer.name, peer.listen().get("skipped")
        if reason is None:
            reason = peer.ask("run").get("skipped")
        if reason is None:
            peers.append(peer)
        else:
            bar.write(f"{case.dtype}: {name} skipped: {reason}")
            peer.close()
    for _ in range(options.rounds):
        for peer in peers:
            bar.set_description(f"{case.dtype} T {case.tokens} V {case.vocab} {case.share:.0%}: {peer.name}")
            sample = peer.ask("run")
            if "skipped" in sample:
                raise RuntimeError(f"{peer.name} failed after it had run: {sample['skipped']}")
            peer.samples.append(sample)
        bar.update()
    results = collect_errors(case, peers) if errors else {}
    rows = []
    for peer in peers:
        peer.close()

        def median(field: str, peer=peer) -> float | None:
            values = [sample[field] for sample in peer.samples if field in sample]
            return statistics.median(values) if values else None

        took = median(timing) or 0.0
        row = Row(case.dtype, case.tokens, case.hidden, case.vocab, case.share, peer.name, took)
        row.wall_ms, row.peak_mib = median("wall_ms"), max(sample["peak_mib"] for sample in peer.samples)
        row.tflops, row.note = case.flops / took / 1e9, NOTES.get(peer.name, "")
        rows.append(replace(row, **results.get(peer.name, {})))
    by_name = {row.peer: row.ms for row in rows}
    floor = min((ms for name, ms in by_name.items() if name.startswith("floor")), default=None)
    for row in rows:
        row.ratio = row.ms / floor if floor else None
        row.naive = row.ms / by_name["naive"] if "naive" in by_name else None
    return rows


def collect_errors(case: Case, peers: list[Peer]) -> dict[str, dict[str, float]]:
    """Relative errors of what every peer computed last."""
    import torch

    exact, errors = truth(case), {}
    with tempfile.TemporaryDirectory() as folder:
        for peer in peers:
            path = Path(folder) / "kept.pt"
            if peer.name.startswith("floor") or peer.name == "liger GRPO" or "skipped" in peer.ask(f"keep {path}"):
                continue
            kept = torch.load(path, map_location=case.device)
            errors[peer.name] = {k: float((v.double() - exact[k]).norm() / exact[k].norm()) for k, v in kept.items()}
    return errors


def show(rows: list[Row]) -> str:
    """The table, in Markdown."""
    lines = [
        "| dtype | T | V | active | peer | ms | ÷ floor | ÷ naive | peak MiB | TFLOP/s | logp | dHidden | dWeight |  |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        numbers = [f"{r.ms:.1f}", form(r.ratio), form(r.naive), form(r.peak_mib, ".0f"), form(r.tflops, ".3f")]
        numbers += [form(e, ".1e") for e in (r.logp, r.dHidden, r.dWeight)]
        where = [r.dtype, str(r.tokens), str(r.vocab), f"{r.share:.0%}", r.peer]
        lines.append(f"| {' | '.join(where + numbers + [r.note])} |")
    return "\n".join(lines)


def form(value: float | None, spec: str = ".2f") -> str:
    return "" if value is None else format(value, spec)


def heading(options: argparse.Namespace) -> str:
    """Hardware, versions, date, configuration: a result without them is no result."""
    import torch

    if options.device == "cuda":
        hardware = torch.cuda.get_device_name()
    else:
        flags = set(Path("/proc/cpuinfo").read_text().split())
        units = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags]
        model = [s for s in Path("/proc/cpuinfo").read_text().splitlines() if s.startswith("model name")]
        hardware = f"{model[0].split(':')[1].strip() if model else platform.machine()} ({' '.join(units)})"
        hardware += f" {os.cpu_count()} CPUs {options.threads} threads used"
    have = {d.metadata["Name"].replace("_", "-"): d.version for d in metadata.distributions()}
    versions = " ".join(f"{name} {have[name]}" for name in PACKAGES if name in have)
    busy = "" if options.device == "cuda" else f"; load average before the run {os.getloadavg()[0]:.1f}"
    return (
        f"# {date.today()}; {hardware}; {versions}; {options.rounds} rounds interleaved; {' '.join(sys.argv[1:])}{busy}"
    )


def save(rows: list[Row], head: str, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", newline="") as file:
        file.write(head + "\n")
        table = csv.DictWriter(file, list(asdict(rows[0])))
        table.writeheader()
        for row in rows:
            table.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(row).items()})


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--tokens", type=int, default=2048, help="positions of the packed stream, a multiple of 4")
    p.add_argument("--hidden", type=int, default=512, help="width of the model")
    p.add_argument("--vocab", type=int, default=32768, help="vocabulary entries")
    p.add_argument("--share", type=float, nargs="+", default=[0.6, 0.15], help="shares of active positions")
    p.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16", "fp16"])
    p.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    p.add_argument(
        "--peers", nargs="+", default=list(PEERS), choices=list(PEERS), metavar="PEER", help=", ".join(PEERS)
    )
    p.add_argument("--rounds", type=int, default=5, help="counted runs of every peer")
    p.add_argument("--threads", type=int, default=1, help="CPU threads; more than one is timed by the wall")
    p.add_argument("--sweep", action="store_true", help=f"also, one at a time: {SWEEPS}; without errors")
    p.add_argument("--out", type=Path, help="CSV; default benchmarks/results/kernel_DEVICE.csv, plot beside it")
    p.add_argument("--worker", help=argparse.SUPPRESS)
    p.add_argument("--case", help=argparse.SUPPRESS)
    return p.parse_args()


def main() -> None:
    options = parse()
    if options.worker:
        return worker(options.worker, Case(**json.loads(options.case)), options.threads)
    import torch
    from tqdm import tqdm

    torch.set_num_threads(options.threads)
    names = ("tokens", "hidden", "vocab", "device")
    base = Case(**{name: getattr(options, name) for name in names}, share=options.share[0])
    cases = [(replace(base, dtype=dtype, share=share), True) for dtype in options.dtypes for share in options.share]
    if options.sweep:
        points = [(name, value) for name, values in SWEEPS.items() for value in values]
        swept = [replace(base, dtype=d, **{n: v}) for d in options.dtypes for n, v in points]
        cases += [(case, False) for case in swept if (case, True) not in cases]
    head, rows = heading(options), []
    out = options.out or RESULTS / f"kernel_{options.device}.csv"
    with tqdm(total=len(cases) * options.rounds, unit="round") as bar:
        for case, errors in cases:
            rows += measure_case(case, options, errors, bar)
            save(rows, head, out)  # after each case: a run cut short keeps what it has
    print(head, show(rows), f"\nwritten: {out}", sep="\n")
    try:
        from kernel_plot import plot
    except ModuleNotFoundError as missing:
        print(f"plot skipped: {missing.name} is not installed")
        return
    print(f"written: {plot(rows, base, head, out.with_suffix('.png'))}")


if __name__ == "__main__":
    main()
