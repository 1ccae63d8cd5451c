"""The forward kernels of the selective scan in Triton, and what the backward ones share. Launched by `triton_scan`.

A program owns one batch element b, one direction k and D_BLOCK channels; (N, D_BLOCK) states stay in its registers,
and the rows dt, B and C of a step are loaded once for all of its channels. It reads row plan[k, l] of the tokens and of
the projections and adds to row plan[k, l] of the output, so that no permuted copy exists.

Long sequences are cut into chunks of CHUNK steps that run side by side, in three passes:

    1. chunk_ends      the state at the end of each chunk, had it begun with 0, and the sum S of its delta
    2. carry_states    start of the next chunk = exp(S A) start of this chunk + that end
    3. outputs         every chunk again, from its true start

The backward does the same in reverse (`triton_backward`), from the starts that the forward keeps.

Letters: tokens (B, P, D); projected (B, P, K, R + 2N); plan (K, L); decay (K, N, D) = A log2(e); dt_weight (K, R, D);
dt_bias, skip (K, D); starts and grad_ends (B, K, chunks, N, D): the state before a chunk's first step, the gradient of
the state after its last; delta_sums (B, K, chunks, D). The first start and the last grad_end are 0 and are never read.
N_BLOCK and R_BLOCK are N and R up to a power of two, as Triton's ranges must be.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)

# Sizes of a clip, not of a model: without it, Triton compiles anew where one is 1 or a multiple of 16.
INCIDENTAL_SIZES = ("P", "L", "chunks", "lanes", "output_from")


@triton.jit
def locate(D, K, spans, D_BLOCK: tl.constexpr):
    """Batch element, direction, span of steps and channels of this program.

    Blocks of channels that read the same rows are neighbours, for the cache.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(D, D_BLOCK)
    d = program % blocks * D_BLOCK + tl.arange(0, D_BLOCK)
    # 64 bits, and with them every offset: those of long videos do not fit 32
    b_k = (program // (blocks * spans)).to(tl.int64)
    return b_k // K, b_k % K, program // blocks % spans, d


@triton.jit
def load_tile(first, d, D, ROWS: tl.constexpr, ROW_BLOCK: tl.constexpr):
    """(ROW_BLOCK, D_BLOCK) of an array (ROWS, D); 0 outside."""
    row = tl.arange(0, ROW_BLOCK)
    inside = (row < ROWS)[:, None] & (d < D)[None, :]
    return tl.load(first + row[:, None] * D + d[None, :], mask=inside, other=0.0)


@triton.jit
def store_tile(first, tile, d, D, ROWS: tl.constexpr, ROW_BLOCK: tl.constexpr):
    row = tl.arange(0, ROW_BLOCK)
    inside = (row < ROWS)[:, None] & (d < D)[None, :]
    tl.store(first + row[:, None] * D + d[None, :], tile, mask=inside)


@triton.jit
def load_weights(
    decay,
    dt_weight,
    dt_bias,
    k,
    d,
    D,
    N: tl.constexpr,
    R: tl.constexpr,
    N_BLOCK: tl.constexpr,
    R_BLOCK: tl.constexpr,
):
    """decay (N_BLOCK, D_BLOCK), dt_weight (R_BLOCK, D_BLOCK) and dt_bias (D_BLOCK,) of direction k."""
    rate = load_tile(decay + k * N * D, d, D, N, N_BLOCK)
    weight = load_tile(dt_weight + k * R * D, d, D, R, R_BLOCK)
    return rate, weight, tl.load(dt_bias + k * D + d, mask=d < D, other=0.0)


@triton.jit
def read_step(
    tokens,
    projected,
    plan,
    weight,
    bias,
    b,
    k,
    step,
    d,
    P,
    K,
    D,
    L,
    N: tl.constexpr,
    R: tl.constexpr,
    N_BLOCK: tl.constexpr,
    R_BLOCK: tl.constexpr,
):
    """The token p of a step, where its row of `projected` begins, its u, dt and B, x = W dt + bias, and softplus(x).

    softplus(x) = max(x, 0) + log(1 + t) with t = e^-|x|, which is returned too. log(1 + t) = t q(t), q as in
    kernels/simd.h: delta is often 1e-3 and must be right relative to that, which the logarithm of 1 + t is not.
    """
    n, r = tl.arange(0, N_BLOCK), tl.arange(0, R_BLOCK)
    p = tl.load(plan + k * L + step).to(tl.int64)
    row = ((b * P + p) * K + k) * (R + 2 * N)
    u = tl.load(tokens + (b * P + p) * D + d, mask=d < D, other=0.0).to(tl.float32)
    dt = tl.load(projected + row + r, mask=r < R, other=0.0)
    B = tl.load(projected + row + R + n, mask=n < N, other=0.0)
    x = bias + tl.sum(weight * dt[:, None], axis=0)
    t = tl.exp2(-tl.abs(x) * LOG2_E)
    q = t * 5.2326926962e-3 - 2.9505232349e-2
    q = q * t + 7.8225940466e-2
    q = q * t - 1.3663244247e-1
    q = q * t + 1.9106006622e-1
    q = q * t - 2.4842981994e-1
    q = q * t + 3.3319097757e-1
    q = q * t - 4.9999493361e-1
    q = q * t + 9.9999994040e-1
    return p, row, u, dt, B, x, t, tl.maximum(x, 0.0) + t * q


@triton.jit(do_not_specialize=INCIDENTAL_SIZES)
def chunk_ends(
    tokens,
    projected,
    plan,
    decay,
    dt_weight,
    dt_bias,
    starts,
    delta_sums,
    P,
    K,
    D,
    L,
    chunks,
    N: tl.constexpr,
    R: tl.constexpr,
    N_BLOCK: tl.constexpr,
    R_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """For each chunk but the last: its end from a state of 0, left where the next chunk's start belongs, and S."""
    b, k, chunk, d = locate(D, K, chunks - 1, D_BLOCK)
    rate, weight, bias = load_weights(decay, dt_weight, dt_bias, k, d, D, N, R, N_BLOCK, R_BLOCK)
    h = tl.full((N_BLOCK, D_BLOCK), 0.0, tl.float32)
    total = tl.full((D_BLOCK,), 0.0, tl.float32)
    for step in range(chunk * CHUNK, chunk * CHUNK + CHUNK):
        _p, _row, u, _dt, B, _x, _t, delta = read_step(
            tokens, projected, plan, weight, bias, b, k, step, d, P, K, D, L, N, R, N_BLOCK, R_BLOCK
        )
        h = tl.exp2(delta[None, :] * rate) * h + B[:, None] * (delta * u)[None, :]
        total += delta
    at = (b * K + k) * chunks + chunk
    store_tile(starts + (at + 1) * N * D, h, d, D, N, N_BLOCK)
    tl.store(delta_sums + at * D + d, total, mask=d < D)


@triton.jit(do_not_specialize=INCIDENTAL_SIZES)
def carry_states(
    starts,
    delta_sums,
    decay,
    K,
    D,
    chunks,
    N: tl.constexpr,
    N_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
):
    """Turns the ends that `chunk_ends` left into the true starts of chunks 1, 2, ..."""
    b, k, _, d = locate(D, K, 1, D_BLOCK)
    rate = load_tile(decay + k * N * D, d, D, N, N_BLOCK)
    h = tl.full((N_BLOCK, D_BLOCK), 0.0, tl.float32)
    for chunk in range(0, chunks - 1):
        at = (b * K + k) * chunks + chunk
        total = tl.load(delta_sums + at * D + d, mask=d < D, other=0.0)
        start = starts + (at + 1) * N * D
        h = tl.exp2(total[None, :] * rate) * h + load_tile(start, d, D, N, N_BLOCK)
        store_tile(start, h, d, D, N, N_BLOCK)


@triton.jit(do_not_specialize=INCIDENTAL_SIZES)
def outputs(
    tokens,
    projected,
    plan,
    decay,
    dt_weight,
    dt_bias,
    skip,
    starts,
    out,
    P,
    K,
    D,
    L,
    chunks,
    output_from,
    N: tl.constexpr,
    R: tl.constexpr,
    N_BLOCK: tl.constexpr,
    R_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    SIDE_BY_SIDE: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Adds y to out (B, P - output_from, D).

    Side by side, a program takes one chunk from its start. Otherwise it takes all steps from a state of 0 and, with
    KEEP, leaves the starts of the chunks.
    """
    b, k, chunk, d = locate(D, K, chunks if SIDE_BY_SIDE else 1, D_BLOCK)
    n = tl.arange(0, N_BLOCK)
    rate, weight, bias = load_weights(decay, dt_weight, dt_bias, k, d, D, N, R, N_BLOCK, R_BLOCK)
    through = tl.load(skip + k * D + d, mask=d < D, other=0.0)
    first_start = starts + (b * K + k) * chunks * N * D
    h = tl.full((N_BLOCK, D_BLOCK), 0.0, tl.float32)
    begin, end = 0, L
    if SIDE_BY_SIDE:
        begin, end = chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, L)
        if chunk > 0:
            h = load_tile(first_start + chunk * N * D, d, D, N, N_BLOCK)
    for step in range(begin, end):
        # two conditions: the first is known when the kernel is compiled
        if KEEP and not SIDE_BY_SIDE:  # noqa: SIM102
            if step % CHUNK == 0:
                store_tile(first_start + step // CHUNK * N * D, h, d, D, N, N_BLOCK)
        p, row, u, _dt, B, _x, _t, delta = read_step(
            tokens, projected, plan, weight, bias, b, k, step, d, P, K, D, L, N, R, N_BLOCK, R_BLOCK
        )
        h = tl.exp2(delta[None, :] * rate) * h + B[:, None] * (delta * u)[None, :]
        if p >= output_from:
            C = tl.load(projected + row + R + N + n, mask=n < N, other=0.0)
            y = tl.sum(h * C[:, None], axis=0) + through * u
            # K directions add to this row
            tl.atomic_add(out + (b * (P - output_from) + p - output_from) * D + d, y, mask=d < D, sem="relaxed")
