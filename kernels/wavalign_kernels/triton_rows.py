"""The row step in Triton: one program per row of logits, nothing but the row's own numbers, no atomics.

One kernel makes both passes over the row, so the loss's slope, which needs log p_y first, is computed inside it
(`rows.loss_slopes` again, in scalars). The alternative, a kernel per pass with `loss_slopes` between them, costs a
dozen small launches per chunk and reads every row from memory again. Here the second pass runs backwards: the rows in
flight outgrow the second-level cache (0.67 MB each at V = 168 072), and what was read last is what is still in it.

First pass. Every lane keeps a running maximum m, a sum s and an energy e of the columns it meets, so that the loop has
no reduction across threads and one exponential per logit; the lanes are merged once at the end:

    s = Σ exp(x_j − m),  e = Σ exp(x_j − m)·(x_j − m)    over j ≠ y

m starts at x_y, a true member of the softmax: there is no sentinel that a row of very negative logits could fall below.
(Where x_y is −∞, at the least finite number.)
With M the largest m, S = Σ s·exp(m − M) and E likewise, 1 − p_y = S / (S + exp(x_y − M)) is exact where p_y is near 1.

A = rows of the call, V = vocabulary. Reads 4 bytes per logit and pass, writes one dlogit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .records import LOG_RATIO_LIMIT
from .rows import LossRows, RowGrads, Rows, RowStats

BLOCK = 4096
"""Columns per iteration. 16 warps take 8 each: two 16-byte loads in flight per thread, 16 KB per program, which covers
the memory's latency with two programs per multiprocessor, and state (m, s, e) that stays within 64 registers."""

COLUMNS_PER_WARP = 256

LOG2E = tl.constexpr(1.4426950408889634)
"""exp2 is the instruction; tl.exp spends three more on results below 2**-126, which are 0 here."""

FLOOR = tl.constexpr(-128.0)
"""exp of it is 0 in fp32, and so is its product with it."""

LEAST = tl.constexpr(-3.4028234663852886e38)
"""No finite logit lies below."""

LIMIT = tl.constexpr(LOG_RATIO_LIMIT)


def step(
    z: Tensor,  # (A, V) fp32 logits, overwritten where d is z
    d: Tensor | None,  # (A, V) receives dlogits, may be z; None: statistics alone
    rows: Rows,
    bias: Tensor | None,  # (V,)
    stats: RowStats,  # written, or read where slopes are given
    *,
    slopes: RowGrads | None = None,
    loss: LossRows | None = None,
    entropy: bool = True,
    block: int = BLOCK,
    warps: int | None = None,
) -> None:
    """Statistics, statistics and dlogits of `loss`, or dlogits of `slopes` (statistics known).

    `block` columns per iteration, a power of 2, by `warps`; what the defaults are tuned with.
    """
    if len(z) == 0:
        return
    arguments = launch_arguments(
        z, d, rows, bias, stats, slopes=slopes, loss=loss, entropy=entropy, block=block, warps=warps
    )
    with torch.cuda.device_of(z):  # Triton launches on the current device, not on the tensors'
        row_kernel[(len(z),)](**arguments)


def launch_arguments(
    z: Tensor,
    d: Tensor | None,
    rows: Rows,
    bias: Tensor | None,
    stats: RowStats,
    *,
    slopes: RowGrads | None,
    loss: LossRows | None,
    entropy: bool,
    block: int = BLOCK,
    warps: int | None = None,
) -> dict:
    """The kernel's arguments by name; what is None compiles away. Also what is compiled ahead of time."""
    assert z.dtype == torch.float32 and z.is_contiguous() and (d is None or d.is_contiguous())
    assert d is None or slopes is not None or loss is not None
    given_h = None if slopes is None else slopes.entropy
    share = None if loss is None else loss.entropy_weights
    width = min(block, triton.next_power_of_2(z.shape[1]))
    return dict(
        z_ptr=z,
        d_ptr=d,
        bias_ptr=bias,
        target_ptr=rows.targets,
        inverse_ptr=rows.inv_temperature,
        logp_ptr=stats.logp,
        one_minus_p_ptr=stats.one_minus_p,
        lse_ptr=stats.lse,
        entropy_ptr=stats.entropy if entropy or given_h is not None or share is not None else None,
        slope_ptr=None if slopes is None else slopes.logp,
        slope_h_ptr=given_h,
        scale_ptr=None if loss is None else loss.scale,
        preference_ptr=None if loss is None else loss.preference,
        weight_ptr=None if loss is None else loss.weights,
        advantage_ptr=None if loss is None else loss.advantages,
        old_ptr=None if loss is None else loss.old_logp,
        ref_ptr=None if loss is None else loss.ref_logp,
        kl_ptr=None if loss is None else loss.kl_weights,
        share_ptr=share,
        ratio_low=0.0 if loss is None else 1.0 - loss.clip_low,
        ratio_high=0.0 if loss is None else 1.0 + loss.clip_high,
        ratio_c=0.0 if loss is None else loss.clip_c,
        VOCAB=z.shape[1],
        BLOCK=width,
        num_warps=warps or max(1, width // COLUMNS_PER_WARP),
    )


@triton.jit
def row_kernel(
    z_ptr,  # (A, V)
    d_ptr,  # (A, V) or None
    bias_ptr,  # (V,) or None
    target_ptr,  # (A,) as all that follow
    inverse_ptr,  # 1 / temperature, or None
    logp_ptr,
    one_minus_p_ptr,
    lse_ptr,
    entropy_ptr,
    slope_ptr,  # given: the statistics are known
    slope_h_ptr,
    scale_ptr,  # given: the loss is known; the columns of LossRows
    preference_ptr,
    weight_ptr,
    advantage_ptr,
    old_ptr,
    ref_ptr,
    kl_ptr,
    share_ptr,
    ratio_low,
    ratio_high,
    ratio_c,
    VOCAB: tl.constexpr,  # a constant, so that the compiler knows how rows are aligned: a model has one vocabulary
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # 60 000 rows × 168 000 columns overflow 32 bits
    z_ptr += row * VOCAB
    target = tl.load(target_ptr + row).to(tl.int32)
    inverse = 1.0 if inverse_ptr is None else tl.load(inverse_ptr + row)

    if slope_ptr is None:
        top, others, energy, x_y = _first_pass(  # pyright: ignore[reportGeneralTypeIssues]
            z_ptr, bias_ptr, inverse, target, entropy_ptr, VOCAB, BLOCK
        )
        e_y = tl.exp(x_y - top)
        total = others + e_y
        log_total = tl.log(total)
        logp = x_y - top - log_total
        one_minus_p = others / total
        tl.store(logp_ptr + row, logp)
        tl.store(one_minus_p_ptr + row, one_minus_p)
        tl.store(lse_ptr + row, top + log_total)
        entropy = 0.0
        if entropy_ptr is not None:
            entropy = log_total - (energy + e_y * _floored(x_y - top)) / total
            tl.store(entropy_ptr + row, entropy)
    else:
        top = tl.load(lse_ptr + row)
        log_total = 0.0
        logp = tl.load(logp_ptr + row)
        one_minus_p = tl.load(one_minus_p_ptr + row)
        entropy = 0.0
        if slope_h_ptr is not None:
            entropy = tl.load(entropy_ptr + row)

    # The target's logit was read by every thread before the reductions above, or is not read again: d may be z.
    if d_ptr is not None:
        slope_h = 0.0
        if slope_ptr is not None:
            slope = tl.load(slope_ptr + row)
            if slope_h_ptr is not None:
                slope_h = tl.load(slope_h_ptr + row)
        else:
            scale = tl.load(scale_ptr + row)
            pointers = (preference_ptr, weight_ptr, advantage_ptr, old_ptr, ref_ptr, kl_ptr)
            slope = scale * _loss_slope(row, logp, pointers, ratio_low, ratio_high, ratio_c)
            if share_ptr is not None:
                slope_h = -scale * tl.load(share_ptr + row)
        bends: tl.constexpr = slope_h_ptr is not None or share_ptr is not None  # pyright: ignore[reportAssignmentType]
        at_target = slope * one_minus_p
        if bends:
            at_target -= slope_h * tl.exp(logp) * (_floored(logp) + entropy)
        _second_pass(
            z_ptr,
            d_ptr + row * VOCAB,
            bias_ptr,
            inverse,
            target,
            top,
            log_total,
            entropy,
            slope * inverse,
            slope_h * inverse,
            at_target * inverse,
            bends,
            VOCAB,
            BLOCK,
        )


@triton.jit
def _logits(z_ptr, bias_ptr, inverse, columns, VOCAB: tl.constexpr):
    """(z + bias) / temperature, −∞ beyond the row."""
    x = tl.load(z_ptr + columns, mask=columns < VOCAB, other=float("-inf"))
    if bias_ptr is not None:
        x += tl.load(bias_ptr + columns, mask=columns < VOCAB, other=0.0)
    return x * inverse


@triton.jit
def _first_pass(z_ptr, bias_ptr, inverse, target, entropy_ptr, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """M, S, E over every column but the target, and x_y."""
    lanes = tl.arange(0, BLOCK)
    x_y = tl.load(z_ptr + target)
    if bias_ptr is not None:
        x_y += tl.load(bias_ptr + target)
    x_y *= inverse
    m = tl.zeros((BLOCK,), tl.float32) + tl.maximum(x_y, LEAST, propagate_nan=tl.PropagateNan.ALL)
    s = tl.zeros((BLOCK,), tl.float32)
    e = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, VOCAB, BLOCK):
        x = _logits(z_ptr, bias_ptr, inverse, start + lanes, VOCAB)
        # Comparing lanes with a scalar stays in 32 bits where comparing columns would be widened to 64.
        gap = _floored(tl.where(lanes == target - start, FLOOR, x - m))  # finite beyond the row: 0·∞ is NaN
        shrink = tl.exp2(tl.abs(gap) * -LOG2E)  # of what was summed where x is the new maximum, else of x
        rises = gap > 0
        if entropy_ptr is not None:
            e = tl.where(rises, shrink * (e - gap * s), e + shrink * gap)
        s = tl.where(rises, s * shrink + 1.0, s + shrink)
        m = tl.where(rises, x, m)
    top = tl.max(m, 0)
    share = tl.exp2((m - top) * LOG2E)
    others = tl.sum(s * share, 0)
    energy = 0.0
    if entropy_ptr is not None:
        energy = tl.sum(share * (e + (m - top) * s), 0)
    return top, others, energy, x_y


@triton.jit
def _second_pass(
    z_ptr,
    d_ptr,
    bias_ptr,
    inverse,
    target,
    top,
    log_total,
    entropy,
    slope,
    slope_h,
    at_target,
    bends: tl.constexpr,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """d = −p·(a + b·(log p + H)), at_target at the target."""
    lanes = tl.arange(0, BLOCK)
    last: tl.constexpr = (VOCAB - 1) // BLOCK * BLOCK
    rise = slope + slope_h * entropy
    for back in range(0, VOCAB, BLOCK):
        start = last - back
        logq = _logits(z_ptr, bias_ptr, inverse, start + lanes, VOCAB) - top - log_total
        d = -tl.exp2(logq * LOG2E)
        if bends:
            d *= rise + slope_h * _floored(logq)
        else:
            d *= rise
        d = tl.where(lanes == target - start, at_target, d)
        tl.store(d_ptr + start + lanes, d.to(d_ptr.dtype.element_ty), mask=start + lanes < VOCAB)


@triton.jit
def _loss_slope(row, logp, pointers, ratio_low, ratio_high, ratio_c):
    """∂L/∂logp before the scale: `rows.loss_slopes` of one row."""
    preference_ptr, weight_ptr, advantage_ptr, old_ptr, ref_ptr, kl_ptr = pointers
    slope = -tl.load(weight_ptr + row)
    if advantage_ptr is not None:
        advantage = tl.load(advantage_ptr + row)
        gap = logp - logp if old_ptr is None else logp - tl.load(old_ptr + row)
        ratio = tl.exp(_limited(gap))
        unclipped = tl.where(advantage > 0, ratio <= ratio_high, (ratio >= ratio_low) & (ratio <= ratio_c))
        unclipped &= tl.abs(gap) <= LIMIT
        policy = tl.where(unclipped, slope * advantage * ratio, 0.0)
        if ref_ptr is not None:
            kl = tl.load(kl_ptr + row)
            gap = tl.load(ref_ptr + row) - logp
            policy += tl.where(tl.abs(gap) <= LIMIT, -kl * _expm1(_limited(gap)), 0.0)
        slope = tl.where(tl.load(preference_ptr + row), policy, slope)
    return slope


@triton.jit
def _limited(gap):
    """Within the limit."""
    return tl.minimum(tl.maximum(gap, -LIMIT), LIMIT)


@triton.jit
def _floored(x):
    """−∞ made finite, a NaN passed on."""
    return tl.maximum(x, FLOOR, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _expm1(x):
    """exp(x) − 1 without cancellation, for tl has no expm1: the series where |x| < 1/2, its next term below 1e-8."""
    series = 1.0 + x * (1 / 8)
    series = 1.0 + x * (1 / 7) * series
    series = 1.0 + x * (1 / 6) * series
    series = 1.0 + x * (1 / 5) * series
    series = 1.0 + x * (1 / 4) * series
    series = 1.0 + x * (1 / 3) * series
    series = 1.0 + x * (1 / 2) * series
    return tl.where(tl.abs(x) < 0.5, x * series, tl.exp(x) - 1.0)
