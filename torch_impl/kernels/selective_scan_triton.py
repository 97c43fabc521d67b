"""The selective scan on a GPU, forward and backward, in Triton.

    h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t u_t        y_t = (C_t · h_t + D u_t) ⊙ silu(z_t)

(Mamba: Gu and Dao 2023, arXiv 2312.00752, equation 2 and algorithm 2.) A program holds the states of one block of
channels of one sequence in registers, as a float32 tile (N, E), and steps through the frames. Nothing of shape
(b, l, e, n) is ever stored. The forward pass saves the states at chunk boundaries, if asked. The backward pass takes
the chunks from last to first: it recomputes the states of a chunk into a buffer, then runs the recurrence in reverse.
At most PROGRAMS programs, each with one buffer, share its work.

There are no atomic operations, so results repeat to the bit: each program sums the gradients of A, B, C and D over its
own blocks and sequences in order, and the sums of all programs are then added.
"""

from math import log
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 32  # frames between saved states
STATES = 1024  # states per tile (N, E): 32 per thread of a warp
PROGRAMS = 2048  # largest number of programs of the backward pass; their buffers take 256 MiB
LOG2E, LN2 = tl.constexpr(1 / log(2)), tl.constexpr(log(2))  # exp(x) = 2^(x log2 e)


@triton.jit
def _row(x, offsets, mask):
    return tl.load(x + offsets, mask, 0.0).to(tl.float32)


@triton.jit(do_not_specialize=["l"])
def _forward(
    u, delta, A, B, C, D, z, y, states, l, e, n,
    u_b, u_l, delta_b, delta_l, B_b, B_l, C_b, C_l, z_b, z_l,
    GATED: tl.constexpr, KEEP: tl.constexpr, CHUNK: tl.constexpr, N: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """One block of channels of one sequence. ``x_b`` and ``x_l`` are the strides of x, whose last axis is dense."""
    blocks = tl.cdiv(e, E)
    sequence = (tl.program_id(0) // blocks).to(tl.int64)
    channel, state = tl.program_id(0) % blocks * E + tl.arange(0, E), tl.arange(0, N)
    here, real = channel < e, state < n
    tile = real[:, None] & here[None, :]
    # The padding of a tile has A = 0 and B = 0, so that its states stay 0.
    decay = tl.load(A + state[:, None] * e + channel[None, :], tile, 0.0) * LOG2E
    skip = tl.load(D + channel, here, 0.0)
    h = tl.zeros((N, E), tl.float32)
    chunks = tl.cdiv(l, CHUNK)
    for chunk in range(chunks):
        if KEEP:
            saved = (sequence * (chunks - 1) + chunk - 1) * n * e
            tl.store(states + saved + state[:, None] * e + channel[None, :], h, tile & (chunk > 0))
        start = tl.cast(chunk, tl.int64) * CHUNK
        u_c, delta_c = u + sequence * u_b + start * u_l, delta + sequence * delta_b + start * delta_l
        B_c, C_c = B + sequence * B_b + start * B_l, C + sequence * C_b + start * C_l
        z_c, y_c = z + sequence * z_b + start * z_l, y + (sequence * l + start) * e
        for t in range(min(CHUNK, l - chunk * CHUNK)):
            u_t, delta_t = _row(u_c, t * u_l + channel, here), _row(delta_c, t * delta_l + channel, here)
            B_t, C_t = _row(B_c, t * B_l + state, real), _row(C_c, t * C_l + state, real)
            h = tl.exp2(delta_t[None, :] * decay) * h + (delta_t * u_t)[None, :] * B_t[:, None]
            y_t = tl.sum(h * C_t[:, None], 0) + skip * u_t
            if GATED:
                z_t = _row(z_c, t * z_l + channel, here)
                y_t *= z_t * tl.sigmoid(z_t)
            tl.store(y_c + t * e + channel, y_t, here)


@triton.jit(do_not_specialize=["b", "l", "parts", "groups"])
def _backward(
    dy, u, delta, A, B, C, D, z, states, du, ddelta, dA, dB, dC, dD, dz, buffer, b, l, e, n, parts, groups,
    dy_b, dy_l, u_b, u_l, delta_b, delta_l, B_b, B_l, C_b, C_l, z_b, z_l,
    GATED: tl.constexpr, CHUNK: tl.constexpr, N: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """Every ``parts``-th block of channels of every ``groups``-th sequence.

    With ∂h_t = C_t g_t + a_{t+1} ∂h_{t+1}, g = ∂y before the gate and s_t = Δ_t A, per channel and state:
    ∂C_t = h_t g_t, ∂B_t = ∂h_t Δ_t u_t (both summed over channels), ∂s_t = ∂h_t a_t h_{t−1}, ∂A = Σ_t ∂s_t Δ_t,
    ∂u_t = Δ_t ∂h_t·B_t + D g_t, ∂Δ_t = ∂s_t·A + u_t ∂h_t·B_t, ∂D = Σ_t g_t u_t.

    dB and dC are (parts, b, l, n); dA (groups, n, e) and dD (groups, e) are zero on entry.
    """
    part, group = tl.program_id(0) % parts, (tl.program_id(0) // parts).to(tl.int64)
    state, real = tl.arange(0, N), tl.arange(0, N) < n
    buffer += tl.program_id(0).to(tl.int64) * CHUNK * N * E + state[:, None] * E + tl.arange(0, E)[None, :]
    chunks = tl.cdiv(l, CHUNK)
    for number in range(group, b, groups):
        sequence = tl.cast(number, tl.int64)
        for block in range(part, tl.cdiv(e, E), parts):
            channel = block * E + tl.arange(0, E)
            here = channel < e
            tile = real[:, None] & here[None, :]
            of_tile = state[:, None] * e + channel[None, :]
            decay = tl.load(A + of_tile, tile, 0.0) * LOG2E
            skip = tl.load(D + channel, here, 0.0)
            dh, dA_one = tl.zeros((N, E), tl.float32), tl.zeros((N, E), tl.float32)
            dD_one = tl.zeros((E,), tl.float32)
            for back in range(chunks):
                chunk = chunks - 1 - back
                start, frames = tl.cast(chunk, tl.int64) * CHUNK, min(CHUNK, l - chunk * CHUNK)
                dy_c, u_c = dy + sequence * dy_b + start * dy_l, u + sequence * u_b + start * u_l
                delta_c, z_c = delta + sequence * delta_b + start * delta_l, z + sequence * z_b + start * z_l
                B_c, C_c = B + sequence * B_b + start * B_l, C + sequence * C_b + start * C_l
                row = sequence * l + start
                du_c, ddelta_c, dz_c = du + row * e, ddelta + row * e, dz + row * e
                row += tl.cast(part, tl.int64) * b * l
                dB_c, dC_c = dB + row * n, dC + row * n

                # Recompute the chunk: the buffer gets the state before each frame.
                saved = (sequence * (chunks - 1) + chunk - 1) * n * e
                h = tl.load(states + saved + of_tile, tile & (chunk > 0), 0.0)
                for t in range(frames):
                    tl.store(buffer + t * N * E, h)
                    u_t, delta_t = _row(u_c, t * u_l + channel, here), _row(delta_c, t * delta_l + channel, here)
                    B_t = _row(B_c, t * B_l + state, real)
                    h = tl.exp2(delta_t[None, :] * decay) * h + (delta_t * u_t)[None, :] * B_t[:, None]
                    if GATED:
                        # d silu(z)/dz = s (1 + z (1 − s)), s = sigmoid(z)
                        C_t = _row(C_c, t * C_l + state, real)
                        dy_t, z_t = _row(dy_c, t * dy_l + channel, here), _row(z_c, t * z_l + channel, here)
                        y_t, s_t = tl.sum(h * C_t[:, None], 0) + skip * u_t, tl.sigmoid(z_t)
                        tl.store(dz_c + t * e + channel, dy_t * y_t * (s_t * (1 + z_t * (1 - s_t))), here)
                tl.debug_barrier()  # the threads that read the buffer, dB and dC may not be those that wrote them

                for done in range(frames):
                    t = frames - 1 - done
                    u_t, delta_t = _row(u_c, t * u_l + channel, here), _row(delta_c, t * delta_l + channel, here)
                    B_t, C_t = _row(B_c, t * B_l + state, real), _row(C_c, t * C_l + state, real)
                    g_t = _row(dy_c, t * dy_l + channel, here)
                    if GATED:
                        z_t = _row(z_c, t * z_l + channel, here)
                        g_t *= z_t * tl.sigmoid(z_t)
                    before = tl.load(buffer + t * N * E)
                    a = tl.exp2(delta_t[None, :] * decay)
                    h = a * before + (delta_t * u_t)[None, :] * B_t[:, None]
                    dh += g_t[None, :] * C_t[:, None]
                    more = real & (block > part)  # add to the sums of earlier blocks
                    dC_t, dB_t = tl.sum(h * g_t[None, :], 1), tl.sum(dh * (delta_t * u_t)[None, :], 1)
                    tl.store(dC_c + t * n + state, dC_t + _row(dC_c, t * n + state, more), real)
                    tl.store(dB_c + t * n + state, dB_t + _row(dB_c, t * n + state, more), real)
                    dh_B = tl.sum(dh * B_t[:, None], 0)
                    dh *= a
                    ds = dh * before
                    dA_one += ds * delta_t[None, :]
                    dD_one += g_t * u_t
                    tl.store(ddelta_c + t * e + channel, tl.sum(ds * decay, 0) * LN2 + u_t * dh_B, here)
                    tl.store(du_c + t * e + channel, delta_t * dh_B + skip * g_t, here)
                tl.debug_barrier()  # as above
            # Sum within each sequence first, then over sequences: smaller rounding errors than one long sum.
            dA_g, dD_g = dA + group * n * e + of_tile, dD + group * e + channel
            tl.store(dA_g, tl.load(dA_g, tile, 0.0) + dA_one, tile)
            tl.store(dD_g, tl.load(dD_g, here, 0.0) + dD_one, here)


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None = None
) -> Tensor:
    """Selective scan on a GPU: y (b, l, e) in u's dtype, from any mixture of float32, bfloat16 and float16 inputs.

    Only first-order gradients are defined.
    """
    given = [x for x in (u, delta, A, B, C, D, z) if x is not None]
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    return _Scan.apply(u, delta, A.float(), B, C, D.float(), z, keep)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u, delta, A, B, C, D, z, keep):
        """Run the forward kernel; with ``keep`` it also saves the states at chunk boundaries."""
        (b, l, e), n = u.shape, A.shape[1]
        y = u.new_empty(u.shape)
        states = A.new_empty((b, max(triton.cdiv(l, CHUNK) - 1, 0), n, e) if keep else (0,))
        ctx.save_for_backward(u, delta, A, B, C, D, z, states)
        if y.numel():
            N, E = _tile(n, e)
            arrays, strides = _arrays(u, delta, A, B, C, D, z)
            with torch.cuda.device_of(u):
                _forward[(b * triton.cdiv(e, E),)](
                    *arrays, y, states, l, e, n, *strides,
                    GATED=z is not None, KEEP=keep, CHUNK=CHUNK, N=N, E=E, num_warps=_warps(N, E),
                )  # fmt: skip
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy):
        """Return the gradients of all inputs, in their dtypes."""
        u, delta, A, B, C, D, z, states = ctx.saved_tensors
        (b, l, e), n = u.shape, A.shape[1]
        du, ddelta = torch.empty_like(u, memory_format=torch.contiguous_format), delta.new_empty(delta.shape)
        dz = None if z is None else z.new_empty(z.shape)
        if not du.numel():
            return du, ddelta, *(torch.zeros_like(x) for x in (A, B, C, D)), dz, None
        N, E = _tile(n, e)
        parts, groups = _programs(b, triton.cdiv(e, E))
        dA, dD = A.new_zeros(groups, n, e), D.new_zeros(groups, e)
        dB, dC = A.new_empty(parts, b, l, n), A.new_empty(parts, b, l, n)
        buffer = A.new_empty(parts * groups, CHUNK, N, E)
        arrays, strides = _arrays(u, delta, A, B, C, D, z)
        dy = _dense(dy)
        with torch.cuda.device_of(u):
            _backward[(parts * groups,)](
                dy, *arrays, states, du, ddelta, dA, dB, dC, dD, du if dz is None else dz, buffer, b, l, e, n,
                parts, groups, dy.stride(0), dy.stride(1), *strides,
                GATED=z is not None, CHUNK=CHUNK, N=N, E=E, num_warps=_warps(N, E),
            )  # fmt: skip
        return du, ddelta, dA.sum(0).mT, dB.sum(0).to(B.dtype), dC.sum(0).to(C.dtype), dD.sum(0), dz, None


def _tile(n: int, e: int) -> tuple[int, int]:
    """N and E of a tile, powers of two."""
    N = triton.next_power_of_2(n)
    return N, min(triton.next_power_of_2(e), max(STATES // N, 16))


def _programs(b: int, blocks: int) -> tuple[int, int]:
    """Backward programs: how many share the channel blocks of a sequence, and how many share the sequences."""
    rounds = triton.cdiv(blocks, max(PROGRAMS // b, 1))
    parts = triton.cdiv(blocks, rounds)
    return parts, min(b, PROGRAMS // parts)


def _warps(N: int, E: int) -> int:
    return max(N * E // STATES, 1)


def _arrays(u, delta, A, B, C, D, z) -> tuple[list[Tensor], list[int]]:
    """The kernels' input arrays, and the strides of those that may be slices of wider tensors."""
    u, delta, B, C = (_dense(x) for x in (u, delta, B, C))
    gate = u if z is None else _dense(z)  # never read without a gate
    strides = [stride for x in (u, delta, B, C, gate) for stride in x.stride()[:2]]
    return [u, delta, A.mT.contiguous(), B, C, D.contiguous(), gate], strides


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
