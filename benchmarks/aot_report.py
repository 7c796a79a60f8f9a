"""What the compilers make of the Triton kernels, for accelerators that are not here.

    python benchmarks/aot_report.py                              two tables, and benchmarks/results/aot.csv
    python benchmarks/aot_report.py --target sm_90 --vocab 151936

Every way in which `triton_rows.step` can launch is built by the function that builds a launch, then compiled by Triton
and ptxas (LLVM for AMD): registers, stack, shared memory, instructions, spills inside loops. No driver is needed.
NO TIME ON A GPU IS MEASURED HERE: the second table divides operations and bytes by the makers' peaks, a floor that no
run can beat.
"""

import argparse
import csv
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from wavalign_kernels import triton_rows
from wavalign_kernels.rows import LossRows, RowGrads, Rows, RowStats

RESULTS = Path(__file__).parent / "results"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
"""Bytes of shared memory that one program may have, from the vendors' tables."""

ALIGNED = ("z_ptr", "d_ptr", "bias_ptr")
"""Pointers to whole allocations, which start at a multiple of 16 bytes; the others may point into a column."""


@dataclass(frozen=True)
class Case:
    """One way to call the row step."""

    name: str
    mode: str  # statistics, loss, slopes
    dlogits: torch.dtype | None = None
    entropy: bool = True
    full: bool = True  # bias, temperature and every column of the loss, or none of them

    @property
    def bends(self) -> bool:
        """Whether the entropy carries a gradient."""
        return self.entropy and self.mode != "statistics"


CASES = (
    Case("logp", "statistics", entropy=False, full=False),
    Case("logp+entropy", "statistics"),
    Case("loss fp32", "loss", torch.float32),
    Case("loss bf16", "loss", torch.bfloat16),
    Case("loss bf16 anchor only", "loss", torch.bfloat16, entropy=False, full=False),
    Case("slopes fp32", "slopes", torch.float32),
    Case("slopes bf16", "slopes", torch.bfloat16),
    Case("slopes bf16 logp only", "slopes", torch.bfloat16, entropy=False, full=False),
)


@dataclass(frozen=True)
class Report:
    """Resources of one compiled kernel."""

    case: str
    target: str
    vocab: int
    triton: str  # version
    warps: int
    registers: int  # per thread
    stack_bytes: int  # per thread; more than 0 where registers spill
    shared_bytes: int
    instructions: int
    loops: int  # innermost
    loop_instructions: int  # of the longest
    loop_spills: int  # LDL, STL or scratch instructions inside any loop
    wide_loads: int  # 16 bytes per thread
    mma: int
    tma: int


def arguments(case: Case, vocab: int, **knobs: int) -> dict:
    """What `step` would hand to the kernel, on a device that holds nothing."""

    def column(dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(4, dtype=dtype, device="meta")

    def optional(wanted: bool) -> torch.Tensor | None:
        return column() if wanted else None

    z = torch.empty(4, vocab, device="meta")
    d = None if case.dlogits is None else z if case.dlogits == z.dtype else z.to(case.dlogits)
    bias = torch.empty(vocab, device="meta") if case.full else None
    rows = Rows(column(torch.int64), column(torch.int64), optional(case.full))
    slopes = RowGrads(column(), optional(case.bends)) if case.mode == "slopes" else None
    loss = None
    if case.mode == "loss":
        advantage, old, ref, kl = (optional(case.full) for _ in range(4))
        loss = LossRows(
            column(torch.bool),
            column(),
            column(),
            advantage,
            old,
            ref,
            kl,
            optional(case.bends),
            clip_low=0.2,
            clip_high=0.2,
            clip_c=3.0,
        )
    stats = RowStats(column(), column(), column(), column())
    return triton_rows.launch_arguments(
        z, d, rows, bias, stats, slopes=slopes, loss=loss, entropy=case.entropy, **knobs
    )


KNOBS = [(block, warps) for block in (2048, 4096, 8192) for warps in (4, 8, 16, 32) if 64 <= block // warps <= 1024]
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int64: "i64", torch.bool: "i1"}


def compile_case(case: Case, target: str, vocab: int, knobs: dict[str, int] | None = None, **options):
    """The compiled kernel, specialised as a launch with these arguments would be; `options` are Triton's."""
    given, kernel = arguments(case, vocab, **(knobs or {})), triton_rows.row_kernel
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        value = given[name]
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + NAMES[value.dtype]
            if name in ALIGNED:
                attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name], constants[(i,)] = "constexpr", value
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=TARGETS[target], options={"num_warps": given["num_warps"], **options})


def report(case: Case, target: str, vocab: int, knobs: dict[str, int] | None = None, **options) -> Report:
    """Compile and read the machine code."""
    kernel = compile_case(case, target, vocab, knobs, **options)
    if target.startswith("sm_"):
        registers, stack, code = _nvidia(kernel.asm["cubin"])
        spill, wide, mma, tma = r"\b(LDL|STL)\b", r"\bLDG\S*\.128", r"\b(HMMA|HGMMA|UTC\w*MMA)\b", r"\bUTMA(LDG|STG)\b"
    else:
        registers, stack, code = _amd(kernel.asm["amdgcn"])
        spill, wide, mma, tma = r"\bscratch_", r"\b(global|buffer)_load_dwordx4\b", r"\bv_mfma", r"\btensor_load"
    instructions = [line for line in code if not line.endswith(":")]
    loops = innermost_loops(code)
    every = backward_spans(code)

    def count(pattern: str, lines: list[str]) -> int:
        return sum(bool(re.search(pattern, line)) for line in lines)

    return Report(
        case=case.name,
        target=target,
        vocab=vocab,
        triton=triton.__version__,
        warps=kernel.metadata.num_warps,
        registers=registers,
        stack_bytes=stack,
        shared_bytes=kernel.metadata.shared,
        instructions=len(instructions),
        loops=len(loops),
        loop_instructions=max((b - a for a, b in loops), default=0),
        loop_spills=sum(count(spill, code[a:b]) for a, b in every),
        wide_loads=count(wide, instructions),
        mma=count(mma, instructions),
        tma=count(tma, instructions),
    )


def _tool(name: str, cubin: bytes, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([TOOLS / name, *options, file.name], capture_output=True, text=True, check=True).stdout


def _nvidia(cubin: bytes) -> tuple[int, int, list[str]]:
    """Registers, stack, and the code: labels end with a colon, every other line is an instruction."""
    usage = re.search(r"REG:(\d+) STACK:(\d+)", _tool("cuobjdump", cubin, "-res-usage"))
    assert usage is not None
    lines = (re.sub(r"/\*.*?\*/", "", line).strip() for line in _tool("nvdisasm", cubin, "-c").splitlines())
    code = [line for line in lines if line.endswith(";") or re.fullmatch(r"\.L_\w+:", line)]
    return int(usage[1]), int(usage[2]), code


def _amd(assembly: str) -> tuple[int, int, list[str]]:
    def value(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        assert found is not None, name
        return int(found[1])

    lines = (line.split(";")[0].strip() for line in assembly.splitlines())
    code = [line for line in lines if re.match(r"(\.L\w+:|[a-z]+_[a-z0-9_]+\b)", line)]
    return value("vgpr_count"), value("private_segment_fixed_size"), code


def backward_spans(code: list[str]) -> list[tuple[int, int]]:
    """(label, branch) of every jump to an earlier label: the loops. A branch to itself ends the program, it is none."""
    labels = {line[:-1]: i for i, line in enumerate(code) if line.endswith(":")}
    spans = []
    for i, line in enumerate(code):
        jump = re.search(r"\b(?:BRA|s_cbranch\w*|s_branch)\b.*?(\.L\w+)", line)
        if jump and labels.get(jump[1], i) < i - 1:
            spans.append((labels[jump[1]], i + 1))
    return spans


def innermost_loops(code: list[str]) -> list[tuple[int, int]]:
    spans = set(backward_spans(code))
    return [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]


@dataclass(frozen=True)
class Peak:
    """The maker's numbers for dense bf16 and memory."""

    name: str
    tflops: float
    tb_per_s: float


PEAKS = (
    Peak("H100 SXM", 989.4, 3.35),  # NVIDIA H100 data sheet, dense
    Peak("B200", 2250.0, 8.0),  # NVIDIA DGX B200 data sheet: an eighth of 18 PFLOP/s and 64 TB/s
)


@dataclass(frozen=True)
class Work:
    """Operations and bytes of one pass of the head over A active rows."""

    name: str
    products: int  # of 2·A·H·V operations each
    least_bytes: int  # operands read once, results written once, logits never in memory
    row_bytes: int  # traffic of the row kernel as built, if the second-level cache keeps nothing


def works(rows: int, hidden: int, vocab: int) -> tuple[Work, ...]:
    """bf16 storage. The row kernel reads fp32 logits once (statistics) or twice, and writes bf16 dlogits."""
    read = 2 * (rows * hidden + vocab * hidden)
    written = read  # dHidden and dWeight have the shapes and the dtype of what is read
    logits = rows * vocab
    return (
        Work("log-probs and entropy", 1, read, 4 * logits),
        Work("loss with gradients", 3, read + written, (4 + 4 + 2) * logits),
        Work("log-probs, then their backward", 4, 2 * read + written, (4 + 4 + 2) * logits),
    )


def floor_table(rows: int, hidden: int, vocab: int) -> str:
    """Per pass and accelerator: the floor, and what the row kernel as built adds to it."""
    product_tflop = 2 * rows * hidden * vocab / 1e12
    lines = [
        f"Model, nothing measured: A = {rows} active rows, H = {hidden}, V = {vocab}, bf16 storage, fp32 logits.",
        "floor = max(operations / peak, least bytes / bandwidth); row kernel = its bytes / bandwidth, nothing cached.",
        *(f"{p.name}: {p.tflops:g} TFLOP/s dense bf16, {p.tb_per_s:g} TB/s assumed." for p in PEAKS),
        "",
        f"{'pass':32s}{'TFLOP':>8s}{'GB least':>10s}{'GB rows':>9s}"
        + "".join(f"{p.name + ' floor':>18s}{'+ row kernel':>14s}" for p in PEAKS),
    ]
    for work in works(rows, hidden, vocab):
        tflop = work.products * product_tflop
        line = f"{work.name:32s}{tflop:8.1f}{work.least_bytes / 1e9:10.2f}{work.row_bytes / 1e9:9.2f}"
        for p in PEAKS:
            floor_ms = 1e3 * max(tflop / p.tflops, work.least_bytes / 1e12 / p.tb_per_s)
            line += f"{floor_ms:15.2f} ms{1e3 * work.row_bytes / 1e12 / p.tb_per_s:11.2f} ms"
        lines.append(line)
    return "\n".join(lines)


def resource_table(reports: list[Report]) -> str:
    """One line per kernel; the columns of `Report`."""
    titles = {
        "warps": "warps",
        "registers": "regs",
        "stack_bytes": "stack B",
        "shared_bytes": "shared B",
        "instructions": "instr",
        "loops": "loops",
        "loop_instructions": "longest",
        "loop_spills": "spills",
        "wide_loads": "16 B loads",
        "mma": "MMA",
        "tma": "TMA",
    }
    lines = [f"{'target':8s}{'configuration':26s}" + "".join(f"{t:>{len(t) + 2}s}" for t in titles.values())]
    for r in reports:
        values = (f"{getattr(r, name):>{len(title) + 2}d}" for name, title in titles.items())
        lines.append(f"{r.target:8s}{r.case:26s}" + "".join(values))
    return "\n".join(lines)


def knob_table(vocab: int) -> str:
    """Of the loss's kernel on sm_90: what a choice of block and warps leaves of a multiprocessor's 64 warps."""
    (case,) = (c for c in CASES if c.name == "loss bf16")
    lines = [f"{'block':>6s}{'warps':>7s}{'registers':>11s}{'stack':>7s}{'programs':>10s}{'KiB in flight':>15s}"]
    for block, warps in KNOBS:
        r = report(case, "sm_90", vocab, {"block": block, "warps": warps})
        programs = min(64 // warps, 65536 // (-(-r.registers // 8) * 8 * 32 * warps))
        lines.append(
            f"{block:6d}{warps:7d}{r.registers:11d}{r.stack_bytes:7d}{programs:10d}{programs * block * 4 // 1024:15d}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=list(TARGETS), action="append", help="repeatable; default: all")
    parser.add_argument("--rows", type=int, default=8192, help="active rows A of the model (default %(default)s)")
    parser.add_argument("--hidden", type=int, default=3584, help="hidden size H of the model (default %(default)s)")
    parser.add_argument(
        "--vocab", type=int, default=168072, help="vocabulary V, of the model and the kernels (default %(default)s)"
    )
    parser.add_argument(
        "--csv", type=Path, default=RESULTS / "aot.csv", help="file of the first table (results/aot.csv)"
    )
    parser.add_argument("--knobs", action="store_true", help="a table of block and warps on sm_90, and nothing else")
    given = parser.parse_args()
    if given.knobs:
        return print(knob_table(given.vocab))
    reports = [report(case, target, given.vocab) for target in given.target or TARGETS for case in CASES]
    print(f"Compiled by triton {triton.__version__} for V = {given.vocab}; loops: innermost, with the longest's length")
    print(resource_table(reports), "", floor_table(given.rows, given.hidden, given.vocab), sep="\n")
    given.csv.parent.mkdir(parents=True, exist_ok=True)
    with given.csv.open("w", newline="") as file:
        table = csv.DictWriter(file, [f.name for f in fields(Report)])
        table.writeheader()
        table.writerows(asdict(r) for r in reports)


if __name__ == "__main__":
    main()
