"""The selective scan of Mamba: its definition, a chunked form, and the choice of an implementation.

    h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t u_t        (e, n), from h_{−1} = 0
    y_t = (C_t · h_t + D u_t) ⊙ silu(z_t)         (e,)

(Gu and Dao 2023, arXiv 2312.00752, equation 2 discretised as in algorithm 2: exp(ΔA) for A, ΔB for B.)
Every function takes u, delta (b, l, e), delta after softplus; A (e, n), negative; B, C (b, l, n); D (e,); z (b, l, e)
or None for no gate; and returns y (b, l, e).
"""

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import silu, softplus

from torch_impl.kernels import cpu_kernels, guard, published, standard_operations_only
from twinsep.model.scan_inputs import check_scan_inputs

CHUNK = 32  # frames per chunk of the chunked form
#: Shapes (b, l) on which GPU kernels are checked; mamba-ssm's processes blocks of 2,048 frames.
SAMPLES = ((2, 100), (1, 2100))
_AXES = {"u": "ble", "delta": "ble", "A": "en", "B": "bln", "C": "bln", "D": "e", "z": "ble", "y": "ble"}
SAMPLE_CHANNELS = 72  # largest e of the check, more than one block of channels in most kernels


def selective_scan(
    u: Float[Tensor, "b l e"],
    delta: Float[Tensor, "b l e"],
    A: Float[Tensor, "e n"],
    B: Float[Tensor, "b l n"],
    C: Float[Tensor, "b l n"],
    D: Float[Tensor, " e"],
    z: Float[Tensor, "b l e"] | None = None,
) -> Float[Tensor, "b l e"]:
    """Selective scan by the fastest implementation for u's device; returns y (b, l, e) in u's dtype.

    The state is float32, or float64 if all inputs are. Only first-order gradients are defined.
    Raises ValueError if shapes, devices or dtypes do not match.
    """
    _check_inputs(u, delta, A, B, C, D, z)
    if standard_operations_only():
        return selective_scan_loop(u, delta, A, B, C, D, z)
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    # Without autocast: a state that decays over thousands of frames loses too much in half precision.
    with torch.autocast(u.device.type, enabled=False):
        if u.device.type == "cuda" and dtype == torch.float32 and u.numel():
            types = tuple(None if x is None else x.dtype for x in (u, delta, A, B, C, D, z))
            kernel = gpu_kernel(u.device, types, (*u.shape, A.shape[1]), published.usable("mamba_ssm"))
            if kernel is not None:
                return kernel(u, delta, A, B, C, D, z)
        inputs: list[Any] = [x if x is None else x.to(dtype) for x in (u, delta, A, B, C, D, z)]
        kernels = cpu_kernels() if u.device.type == "cpu" else None
        if kernels is None:
            return selective_scan_chunked(*inputs).to(u.dtype)
        keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
        y, _ = kernels.selective_scan(*inputs, keep)
        return y.to(u.dtype)


def selective_scan_sequential(
    u: Float[Tensor, "b l e"],
    delta: Float[Tensor, "b l e"],
    A: Float[Tensor, "e n"],
    B: Float[Tensor, "b l n"],
    C: Float[Tensor, "b l n"],
    D: Float[Tensor, " e"],
    z: Float[Tensor, "b l e"] | None = None,
) -> Float[Tensor, "b l e"]:
    """Selective scan by its definition, frame by frame: slow, differentiable, in the inputs' dtype."""
    _check_inputs(u, delta, A, B, C, D, z)
    h = (u * delta)[:, :0].sum(1)[..., None] * A  # zeros (b, e, n)
    frames = []
    for t in range(u.shape[1]):
        h, y_t = selective_scan_step(h, u[:, t], delta[:, t], A, B[:, t], C[:, t], D)
        frames.append(y_t)
    y = torch.stack(frames, 1) if frames else D * u
    return y if z is None else y * silu(z)


def selective_scan_step(
    h: Float[Tensor, "b e n"],
    u: Float[Tensor, "b e"],
    delta: Float[Tensor, "b e"],
    A: Float[Tensor, "e n"],
    B: Float[Tensor, "b n"],
    C: Float[Tensor, "b n"],
    D: Float[Tensor, " e"],
) -> tuple[Float[Tensor, "b e n"], Float[Tensor, "b e"]]:
    """One frame of the selective scan without gate: the state h_t after h_{t−1}, and y_t."""
    delta = delta[..., None]
    # h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t u_t
    h = torch.exp(delta * A) * h + delta * B[:, None, :] * u[..., None]
    # y_t = C_t · h_t + D u_t
    return h, (h * C[:, None, :]).sum(-1) + D * u


def selective_scan_chunked(
    u: Float[Tensor, "b l e"],
    delta: Float[Tensor, "b l e"],
    A: Float[Tensor, "e n"],
    B: Float[Tensor, "b l n"],
    C: Float[Tensor, "b l n"],
    D: Float[Tensor, " e"],
    z: Float[Tensor, "b l e"] | None = None,
) -> Float[Tensor, "b l e"]:
    """Selective scan by tensor operations on any device: log2(CHUNK) doubling steps per chunk instead of CHUNK frames.

    Only one chunk of states (b, CHUNK, e, n) exists at a time, forward and backward; the forward pass saves the states
    at chunk boundaries. All inputs must have one dtype, float32 or float64.
    """
    _check_inputs(u, delta, A, B, C, D, z)
    y = _ChunkedScan.apply(u, delta, A, B, C) + D * u
    return y if z is None else y * silu(z)


def selective_scan_loop(
    u: Float[Tensor, "b l e"],
    delta: Float[Tensor, "b l e"],
    A: Float[Tensor, "e n"],
    B: Float[Tensor, "b l n"],
    C: Float[Tensor, "b l n"],
    D: Float[Tensor, " e"],
    z: Float[Tensor, "b l e"] | None = None,
) -> Float[Tensor, "b l e"]:
    """Selective scan by its definition as one loop operator, which exporters know (ONNX: Scan); without gradients."""
    from torch._higher_order_ops.scan import scan  # here, because it imports PyTorch's compiler

    def frame(h: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        u_t, delta_t, B_t, C_t = inputs
        h, y = selective_scan_step(h, u_t, delta_t, A, B_t, C_t, D)
        return h, y

    start = u.new_zeros(u.shape[0], *A.shape)
    _, y = scan(frame, start, (u.movedim(1, 0), delta.movedim(1, 0), B.movedim(1, 0), C.movedim(1, 0)))
    y = y.movedim(0, 1)
    return y if z is None else y * silu(z)


class _ChunkedScan(torch.autograd.Function):
    """C_t · h_t with its own gradient: autograd would save every doubling step of every chunk."""

    @staticmethod
    def forward(ctx: Any, u, delta, A, B, C):
        """Return C_t · h_t (b, l, e) and save the states at chunk boundaries."""
        h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
        y, boundaries = torch.empty_like(u), []
        for part in _chunks(u.shape[1]):
            boundaries.append(h)
            _, states = _chunk_states(u[:, part], delta[:, part], A, B[:, part], h)
            y[:, part] = torch.einsum("blen,bln->ble", states, C[:, part])
            h = states[:, -1].clone()
        ctx.save_for_backward(u, delta, A, B, C, *boundaries)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy):
        """Return the gradients of all inputs, computed from the last chunk to the first."""
        u, delta, A, B, C, *boundaries = ctx.saved_tensors
        du, ddelta, dA = torch.empty_like(u), torch.empty_like(delta), torch.zeros_like(A)
        dB, dC = torch.empty_like(B), torch.empty_like(C)
        carry = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])  # a_{t+1} ∂h_{t+1} of the first frame after the chunk
        with torch.autocast(u.device.type, enabled=False):
            for part, h in zip(reversed(_chunks(u.shape[1])), reversed(boundaries), strict=True):
                u_c, delta_c, B_c = u[:, part], delta[:, part], B[:, part]
                decay, states = _chunk_states(u_c, delta_c, A, B_c, h)
                dC[:, part] = torch.einsum("blen,ble->bln", states, dy[:, part])
                # ∂h_t = C_t ∂y_t + a_{t+1} ∂h_{t+1}: the same recurrence, backwards in time
                dstates = (dy[:, part, :, None] * C[:, part, None, :]).flip(1)
                dstates[:, 0] += carry
                _scan_in_place(decay.roll(-1, 1).flip(1), dstates)
                dstates = dstates.flip(1)
                dB[:, part] = torch.einsum("blen,ble->bln", dstates, delta_c * u_c)
                dh_B = torch.einsum("blen,bln->ble", dstates, B_c)
                dstates *= decay
                carry = dstates[:, 0].clone()
                # ∂s_t = ∂h_t a_t h_{t−1} for s_t = Δ_t A
                dstates[:, 0] *= h
                dstates[:, 1:] *= states[:, :-1]
                dA += torch.einsum("blen,ble->en", dstates, delta_c)
                ddelta[:, part] = torch.einsum("blen,en->ble", dstates, A) + u_c * dh_B
                du[:, part] = delta_c * dh_B
        return du, ddelta, dA, dB, dC


def _chunks(length: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK)]


def _chunk_states(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Decays and states (b, frames, e, n) of one chunk, whose preceding state is h (b, e, n)."""
    decay = torch.exp(delta[..., None] * A)
    states = (delta * u)[..., None] * B[:, :, None, :]
    states[:, 0] += decay[:, 0] * h
    _scan_in_place(decay.clone(), states)
    return decay, states


def _scan_in_place(a: Tensor, x: Tensor) -> None:
    """Recurrence x_t ← x_t + a_t x_{t−1} along axis 1 by doubling; overwrites a, ignores a_0.

    Uses products of decays, never their inverses, so that strong decay cannot overflow.
    """
    step = 1
    while step < x.shape[1]:
        x[:, step:] += a[:, step:] * x[:, :-step]
        a[:, step:] = a[:, step:] * a[:, :-step]
        step *= 2


@cache
def gpu_kernel(
    device: torch.device,
    types: tuple[torch.dtype | None, ...],
    shape: tuple[int, int, int, int],
    published_too: bool,
) -> guard.Kernel | None:
    """Return a GPU kernel for inputs of these types (None: no gate) and sizes (b, l, e, n), or None, after warnings.

    Tries mamba-ssm's kernel if ``published_too``, then our Triton kernel. Each is checked once per process on
    ``SAMPLES``, and once for each shape.
    """
    batch, l, e, n = shape

    def sample(b: int) -> guard.Inputs:
        return _sample(b, l, e, n, device, types)

    for name in ("mamba-ssm's", "The Triton") if published_too else ("The Triton",):
        kernel = _checked_kernel(name, device, types, min(e, SAMPLE_CHANNELS), n)
        if kernel is not None:
            title = f"{name} selective scan on {device}"
            kernel = guard.checked_at(title, kernel, selective_scan_chunked, sample, batch, _AXES)
        if kernel is not None:
            return kernel
    return None


@cache
def _checked_kernel(
    name: str, device: torch.device, types: tuple[torch.dtype | None, ...], e: int, n: int
) -> guard.Kernel | None:
    load = _load_triton if name == "The Triton" else published.load_selective_scan

    def samples() -> list[guard.Inputs]:
        return [_sample(b, l, e, n, device, types) for b, l in SAMPLES]

    return guard.checked(f"{name} selective scan on {device}", load, selective_scan_chunked, samples)


def _load_triton() -> guard.Kernel:
    from torch_impl.kernels import selective_scan_triton

    return selective_scan_triton.selective_scan


def _sample(b: int, l: int, e: int, n: int, device: torch.device, types: tuple) -> guard.Inputs:
    """Random inputs with the value range of an initialised model."""
    u, delta, z = (guard.random(seed, (b, l, e), device) for seed in (2, 3, 4))
    B, C = (guard.random(seed, (b, l, n), device) for seed in (5, 6))
    A = -torch.arange(1, n + 1, device=device) * torch.exp(0.3 * guard.random(7, (e, 1), device))
    named = {"u": u, "delta": softplus(delta - 2), "A": A, "B": B, "C": C, "D": guard.random(8, (e,), device), "z": z}
    return {name: x.to(device, dtype) if dtype else None for (name, x), dtype in zip(named.items(), types, strict=True)}


def _check_inputs(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None) -> None:
    """Raise ValueError unless shapes, dtypes and devices match."""
    check_scan_inputs(u, delta, A, B, C, D, z)
    named = {"delta": delta, "A": A, "B": B, "C": C, "D": D} | ({} if z is None else {"z": z})
    for name, x in named.items():
        if x.device != u.device:
            raise ValueError(f"selective_scan: {name} is on {x.device}, u on {u.device}; all must be on one device.")
