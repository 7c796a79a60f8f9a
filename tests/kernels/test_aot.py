"""The Triton kernels as compiled for four architectures: no GPU, no driver. See benchmarks/aot_report.py."""

import os
import re

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1: kernels are interpreted in this process, not compiled", allow_module_level=True)


import aot_report as aot  # noqa: E402

VOCAB = 168072  # text and speech


@pytest.mark.parametrize("case", aot.CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("target", aot.TARGETS)
def test_shipped_kernel(target: str, case) -> None:
    made = aot.report(case, target, VOCAB)
    assert made.loops == (2 if case.mode == "loss" else 1), "a pass over the row is a loop"
    assert made.loop_spills == 0
    assert made.stack_bytes == 0
    assert made.shared_bytes <= aot.SHARED_LIMIT[target]
    # Two programs of 512 threads share the 65 536 registers of a multiprocessor: what the block size was chosen for.
    assert target == "gfx942" or 2 * made.registers * made.warps * 32 <= 65536
    assert made.wide_loads >= 2, "rows of a vocabulary divisible by 8 are read 16 bytes at a time"


@pytest.mark.parametrize("vocab", [1, 507])
def test_small_vocabulary_compiles(vocab: int) -> None:
    case = next(c for c in aot.CASES if c.name == "loss bf16")
    made = aot.report(case, "sm_90", vocab)
    assert made.loop_spills == 0 and made.stack_bytes == 0


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_row_offsets_are_64_bit(target: str) -> None:
    """60 000 rows × 168 072 columns overflow 32 bits, so no row may be multiplied by the vocabulary in less than 64."""
    case = next(c for c in aot.CASES if c.name == "loss bf16")
    text = aot.compile_case(case, target, VOCAB).asm["ttir"]
    (row,) = re.findall(r"(%\S+) = arith\.muli %\S+, %c168072_i64 : i64", text)
    assert len(re.findall(r"arith\.muli", text)) == 1, "no other product of integers, so none in 32 bits"
    for pointer in ("z_ptr", "d_ptr"):
        assert re.search(rf"tt\.addptr %{pointer}, {row} : !tt\.ptr<\w+>, i64", text), pointer


def test_no_maximum_drops_a_nan() -> None:
    """The interpreter's maximum always passes NaN on; a GPU's does only when told to."""
    for case in aot.CASES:
        text = aot.compile_case(case, "sm_90", VOCAB).asm["ttir"]
        assert not re.search(r"arith\.maxnumf .*tensor<", text), case.name
        if case.entropy:
            assert re.search(r"arith\.maximumf .*tensor<", text), case.name


def test_report_notices_spills() -> None:
    """Starved of registers, the same kernel spills inside its loops: the zeros above are not blindness."""
    case = next(c for c in aot.CASES if c.name == "loss bf16")
    starved = aot.report(case, "sm_90", VOCAB, maxnreg=24)
    assert starved.loop_spills > 0 and starved.stack_bytes > 0


def test_floor_of_the_loss() -> None:
    """3 products of 2·A·H·V operations at the H100's dense peak."""
    work = aot.works(8192, 3584, VOCAB)[1]
    assert work.products * 2 * 8192 * 3584 * VOCAB / 989.4e12 == pytest.approx(29.92e-3, rel=1e-3)
    assert work.least_bytes == 2 * 2 * (8192 + VOCAB) * 3584
    assert "29.92 ms" in aot.floor_table(8192, 3584, VOCAB)
