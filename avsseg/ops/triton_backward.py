"""The backward kernels of the selective scan in Triton, with the letters of `triton_forward`.

    1. chunk_grads    the gradient of each chunk's start by the chunk's own outputs, and the sum S of its delta
    2. carry_grads    gradient of this chunk's start = exp(S A) gradient of the next one's + that
    3. gradients      every chunk again from its start, then back through its states

kernels/README.md has the formulas.
"""

from __future__ import annotations

import triton
import triton.language as tl

from avsseg.ops.triton_forward import INCIDENTAL_SIZES, load_tile, load_weights, locate, read_step, store_tile

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=INCIDENTAL_SIZES)
def chunk_grads(
    tokens,
    projected,
    plan,
    decay,
    dt_weight,
    dt_bias,
    grad_out,
    grad_ends,
    delta_sums,
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
):
    """For each chunk but the first: the gradient of its start by its own outputs, left where the grad_end of the chunk
    before belongs, and S."""
    b, k, before, d = locate(D, K, chunks - 1, D_BLOCK)
    n = tl.arange(0, N_BLOCK)
    rate, weight, bias = load_weights(decay, dt_weight, dt_bias, k, d, D, N, R, N_BLOCK, R_BLOCK)
    grad_h = tl.full((N_BLOCK, D_BLOCK), 0.0, tl.float32)
    total = tl.full((D_BLOCK,), 0.0, tl.float32)
    begin = (before + 1) * CHUNK
    end = tl.minimum(begin + CHUNK, L)
    for back in range(0, end - begin):
        p, row, _u, _dt, _B, _x, _t, delta = read_step(
            tokens, projected, plan, weight, bias, b, k, end - 1 - back, d, P, K, D, L, N, R, N_BLOCK, R_BLOCK
        )
        if p >= output_from:
            g = tl.load(grad_out + (b * (P - output_from) + p - output_from) * D + d, mask=d < D, other=0.0)
            C = tl.load(projected + row + R + N + n, mask=n < N, other=0.0)
            grad_h += C[:, None] * g.to(tl.float32)[None, :]
        grad_h *= tl.exp2(delta[None, :] * rate)
        total += delta
    at = (b * K + k) * chunks + before
    store_tile(grad_ends + at * N * D, grad_h, d, D, N, N_BLOCK)
    tl.store(delta_sums + (at + 1) * D + d, total, mask=d < D)


@triton.jit(do_not_specialize=INCIDENTAL_SIZES)
def carry_grads(
    grad_ends,
    delta_sums,
    decay,
    K,
    D,
    chunks,
    N: tl.constexpr,
    N_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
):
    """Turns what `chunk_grads` left into the true grad_ends of all chunks but the last, from the back."""
    b, k, _, d = locate(D, K, 1, D_BLOCK)
    rate = load_tile(decay + k * N * D, d, D, N, N_BLOCK)
    grad_h = tl.full((N_BLOCK, D_BLOCK), 0.0, tl.float32)
    for back in range(0, chunks - 1):
        at = (b * K + k) * chunks + chunks - 2 - back
        total = tl.load(delta_sums + (at + 1) * D + d, mask=d < D, other=0.0)
        grad_end = grad_ends + at * N * D
        grad_h = tl.exp2(total[None, :] * rate) * grad_h + load_tile(grad_end, d, D, N, N_BLOCK)
        store_tile(grad_end, grad_h, d, D, N, N_BLOCK)


@triton.jit(do_not_specialize=INCIDENTAL_SIZES)
def gradients(
    tokens,
    projected,
    plan,
    decay,
    dt_weight,
    dt_bias,
    skip,
    starts,
    grad_out,
    grad_ends,
    history,
    grad_tokens,
    grad_projected,
    grad_parameters,
    P,
    K,
    D,
    L,
    chunks,
    lanes,
    output_from,
    N: tl.constexpr,
    R: tl.constexpr,
    N_BLOCK: tl.constexpr,
    R_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    SIDE_BY_SIDE: tl.constexpr,
):
    """Adds to grad_tokens (B, P, D) and grad_projected (B, P, K, R + 2N), and leaves the gradients of A, dt_weight,
    dt_bias and skip in grad_parameters (B, lanes, K, N + R + 2, D).

    A program takes every lanes-th chunk, from the last on, recomputes its states into its own part of history
    (programs, CHUNK, N_BLOCK, D_BLOCK) and walks back through them. Not side by side there is one lane, and the
    gradient of the state stays in registers from chunk to chunk.
    """
    b, k, lane, d = locate(D, K, lanes, D_BLOCK)
    n, r = tl.arange(0, N_BLOCK), tl.arange(0, R_BLOCK)
    rate, weight, bias = load_weights(decay, dt_weight, dt_bias, k, d, D, N, R, N_BLOCK, R_BLOCK)
    through = tl.load(skip + k * D + d, mask=d < D, other=0.0)
    tile = n[:, None] * D_BLOCK + tl.arange(0, D_BLOCK)[None, :]
    own_history = history + tl.program_id(0).to(tl.int64) * CHUNK * N_BLOCK * D_BLOCK + tile
    grad_h = tl.full((N_BLOCK, D_BLOCK), 0.0, tl.float32)
    grad_rate = tl.full((N_BLOCK, D_BLOCK), 0.0, tl.float32)
    grad_weight = tl.full((R_BLOCK, D_BLOCK), 0.0, tl.float32)
    grad_bias = tl.full((D_BLOCK,), 0.0, tl.float32)
    grad_skip = tl.full((D_BLOCK,), 0.0, tl.float32)
    for i in range(lane, chunks, lanes):
        chunk = chunks - 1 - i
        at = (b * K + k) * chunks + chunk
        begin = chunk * CHUNK
        steps = tl.minimum(CHUNK, L - begin)
        h = tl.full((N_BLOCK, D_BLOCK), 0.0, tl.float32)
        if chunk > 0:
            h = load_tile(starts + at * N * D, d, D, N, N_BLOCK)
        for step in range(0, steps):
            tl.store(own_history + step * N_BLOCK * D_BLOCK, h)
            _p, _row, u, _dt, B, _x, _t, delta = read_step(
                tokens, projected, plan, weight, bias, b, k, begin + step, d, P, K, D, L, N, R, N_BLOCK, R_BLOCK
            )
            h = tl.exp2(delta[None, :] * rate) * h + B[:, None] * (delta * u)[None, :]
        # another thread of the program may read what this one wrote
        tl.debug_barrier()
        if SIDE_BY_SIDE:
            grad_h = tl.full((N_BLOCK, D_BLOCK), 0.0, tl.float32)
            if chunk < chunks - 1:
                grad_h = load_tile(grad_ends + at * N * D, d, D, N, N_BLOCK)
        for back in range(0, steps):
            step = steps - 1 - back
            p, row, u, dt, B, x, t, delta = read_step(
                tokens, projected, plan, weight, bias, b, k, begin + step, d, P, K, D, L, N, R, N_BLOCK, R_BLOCK
            )
            a = tl.exp2(delta[None, :] * rate)
            h_before = tl.load(own_history + step * N_BLOCK * D_BLOCK)
            grad_u = tl.full((D_BLOCK,), 0.0, tl.float32)
            if p >= output_from:
                g = tl.load(grad_out + (b * (P - output_from) + p - output_from) * D + d, mask=d < D, other=0.0)
                g = g.to(tl.float32)
                h = a * h_before + B[:, None] * (delta * u)[None, :]
                # every block of channels adds to this row of projections
                tl.atomic_add(
                    grad_projected + row + R + N + n, tl.sum(h * g[None, :], axis=1), mask=n < N, sem="relaxed"
                )
                C = tl.load(projected + row + R + N + n, mask=n < N, other=0.0)
                grad_h += C[:, None] * g[None, :]
                grad_u = through * g
                grad_skip += u * g
            grad_B = tl.sum(grad_h * (delta * u)[None, :], axis=1)
            tl.atomic_add(grad_projected + row + R + n, grad_B, mask=n < N, sem="relaxed")
            grad_drive = tl.sum(grad_h * B[:, None], axis=0)
            grad_h = a * grad_h
            grad_exponent = grad_h * h_before
            grad_rate += grad_exponent * delta[None, :]
            grad_delta = tl.sum(grad_exponent * rate, axis=0) * LN_2 + grad_drive * u
            grad_x = grad_delta * tl.where(x < 0, t, 1.0) / (1.0 + t)
            grad_bias += grad_x
            grad_weight += dt[:, None] * grad_x[None, :]
            tl.atomic_add(grad_projected + row + r, tl.sum(weight * grad_x[None, :], axis=1), mask=r < R, sem="relaxed")
            # K directions add to this row of tokens
            tl.atomic_add(grad_tokens + (b * P + p) * D + d, grad_u + grad_drive * delta, mask=d < D, sem="relaxed")
        tl.debug_barrier()
    first = grad_parameters + ((b * lanes + lane) * K + k) * (N + R + 2) * D
    store_tile(first, grad_rate, d, D, N, N_BLOCK)
    store_tile(first + N * D, grad_weight, d, D, R, R_BLOCK)
    tl.store(first + (N + R) * D + d, grad_bias, mask=d < D)
    tl.store(first + (N + R + 1) * D + d, grad_skip, mask=d < D)
