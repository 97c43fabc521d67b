"""Mutants of the PyTorch twin: the measurements of :mod:`test_parity` must detect every one.

A mutant is detected if outputs or gradients of the module under test differ by more than the tolerance.
"""

from functools import lru_cache

import jax
import numpy as np
import pytest
import torch
from test_parity import STEPPED
from torch import nn

import torch_impl
from ablations import comparison
from ablations.comparison import TOLERANCE, configuration, distance
from ablations.stages import parity
from torch_impl import bandsplit, blocks, causal, layers, train, window
from torch_impl.kernels import own_operations
from torch_impl.mixers import lstm, mamba, mamba2, transformer
from twinsep.model import pooling

MAMBA = {"mixer": {"kind": "mamba", "d_state": 4}}
MODELS = {
    "mamba": MAMBA,
    "reference": {**MAMBA, "memory_alignment": "reference", "bands": "reference68", "targets": ["drums", "bass"]},
    "mamba2": {"mixer": {"kind": "mamba2", "d_state": 4, "head_dim": 8}},
    "transformer": {"mixer": {"kind": "transformer"}},
    "lstm": {"mixer": {"kind": "lstm"}},
    "levels": {"features": "complex+level", "levels": 0},
    "causal": {**MAMBA, "causal": True, "attention_window": 3},
}


def replaced(module, name, make):
    """Return a mutation that replaces ``module.name`` by ``make(module.name)``."""
    return lambda patch: patch.setattr(module, name, make(getattr(module, name)))


def rounded_half_up(numerator, denominator):
    return (2 * numerator + denominator) // (2 * denominator) if denominator else 0


def mean_over_existing(_):
    def summary(alignment, tokens, frames):
        found = pooling.summary_matrix.__wrapped__(alignment, tokens, frames)
        return found / found.sum(1, keepdims=True)

    return summary


def half_up(_):
    def summary(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pooling, "_round_half_even", rounded_half_up)
            return pooling.summary_matrix.__wrapped__(*arguments)

    return summary


def floored(_):
    def pool(frames, tokens):
        matrix = np.zeros((tokens, frames), np.float32)
        for i in range(tokens):
            lo, hi = i * frames // tokens, max(i * frames // tokens + 1, (i + 1) * frames // tokens)
            matrix[i, lo:hi] = 1 / (hi - lo)
        return matrix

    return pool


def interleaved(_):
    def rotate(x, base):
        l, e = x.shape[-2:]
        angle = np.outer(np.arange(l), base ** (-2 * np.arange(e // 2) / e))
        cos, sin = (torch.as_tensor(f(angle), dtype=x.dtype) for f in (np.cos, np.sin))
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)

    return rotate


def without_bias(_):
    """Linear without bias, hence Δ without bias: only dt_proj of Mamba has one."""
    return lambda self, x: nn.functional.linear(x, self.weight)


#: Mutants by name: (model, module in which to detect it, mutation).
MUTANTS = {
    "B and C swapped": (
        "mamba",
        "Mixer",
        replaced(mamba, "selective_scan", lambda scan: lambda u, d, A, B, C, D, z: scan(u, d, A, C, B, D, z)),
    ),
    "no skip D u": (
        "mamba",
        "Mixer",
        replaced(mamba, "selective_scan", lambda scan: lambda u, d, A, B, C, D, z: scan(u, d, A, B, C, 0 * D, z)),
    ),
    "Δ without bias": ("mamba", "Mixer", replaced(layers.Linear, "forward", without_bias)),
    "ReLU for SiLU after the convolution": (
        "mamba",
        "Mixer",
        replaced(layers, "depthwise_silu", lambda _: lambda *a: torch.relu(layers.depthwise(*a))),
    ),
    "padding on the wrong side": (
        "mamba",
        "Mixer",
        replaced(layers, "depthwise_silu", lambda f: lambda x, w, b, left: f(x, w, b, w.shape[2] - 1 - left)),
    ),
    "A with the wrong sign": ("mamba", "Mixer", replaced(mamba, "exp", lambda f: lambda x: -f(x))),
    "flip forgotten": ("mamba", "Bidirectional", replaced(blocks, "flip", lambda _: lambda x, _axes: x)),
    "directions swapped": (
        "mamba",
        "Bidirectional",
        replaced(blocks, "concatenate", lambda f: lambda x, axis: f(x[::-1], axis)),
    ),
    "ReLU for SiLU": ("mamba", "SwiGLU", replaced(blocks, "silu_gate", lambda _: lambda a, b: a * torch.relu(b))),
    "eps 1e-5": (
        "mamba",
        "SwiGLU",
        replaced(layers, "rms_norm", lambda f: lambda x, w, *_: f(x, w, 1e-5)),
    ),
    "residual forgotten": ("mamba", "SwiGLU", replaced(blocks.SwiGLU, "forward", lambda f: lambda s, x: f(s, x) - x)),
    "Linear transposed": (
        "mamba",
        "GlobalAttention",
        replaced(
            layers.Linear,
            "forward",
            lambda f: lambda s, x: x @ s.weight if s.weight.shape[0] == s.weight.shape[1] else f(s, x),
        ),
    ),
    "scores not scaled": (
        "mamba",
        "GlobalAttention",
        replaced(layers, "attention", lambda f: lambda q, k, v: f(q * q.shape[-1] ** 0.5, k, v)),
    ),
    "taps of the convolution in reverse": (
        "mamba",
        "LocalConv",
        replaced(layers, "depthwise_silu", lambda f: lambda x, w, b, left: f(x, w.flip(2), b, left)),
    ),
    "pairs of frames swapped": (
        "mamba",
        "Upsample",
        replaced(
            layers.DoublingConv1d, "forward", lambda f: lambda s, x: f(s, x).unflatten(1, (-1, 2)).flip(2).flatten(1, 2)
        ),
    ),
    "skip not normalised": (
        "mamba",
        "SkipGate",
        replaced(
            blocks.SkipGate,
            "forward",
            lambda _: lambda s, x, skip: x + torch.sigmoid(s.gate(torch.cat([s.norm_x(x), skip], -1))) * s.proj(skip),
        ),
    ),
    "gate's halves swapped": (
        "mamba",
        "SkipGate",
        replaced(blocks, "concatenate", lambda f: lambda x, axis: f(x[::-1], axis)),
    ),
    "pooling windows that do not overlap": ("mamba", "memory_bank", replaced(blocks, "pool_matrix", floored)),
    "halves rounded up": ("reference", "MemoryAttention", replaced(blocks, "summary_matrix", half_up)),
    "mean over the existing tokens only": (
        "reference",
        "MemoryAttention",
        replaced(blocks, "summary_matrix", mean_over_existing),
    ),
    "phase without π": ("mamba", "MaskHead", replaced(bandsplit, "tanh", lambda f: lambda x: f(x) / np.pi)),
    "mask 1 instead of 0.5 outside every band": (
        "reference",
        "MaskHead",
        replaced(bandsplit, "pad_axis", lambda f: lambda x, axis, right, _: f(x, axis, right, 1.0)),
    ),
    "left and right swapped": (
        "mamba",
        "BandSplit",
        replaced(bandsplit, "split_complex", lambda f: lambda x: f(x.flip(-1))),
    ),
    "band embedding forgotten": (
        "mamba",
        "BandSplit",
        replaced(bandsplit.BandSplit, "forward", lambda f: lambda s, x: f(s, x) - s.embedding),
    ),
    "levels without the half": (
        "levels",
        "BandSplit",
        replaced(bandsplit, "log_levels", lambda f: lambda x: 2 * f(x)),
    ),
    "levels of mid and side swapped": (
        "levels",
        "BandSplit",
        replaced(bandsplit, "log_levels", lambda f: lambda x: f(x)[:, [0, 1, 3, 2]]),
    ),
    "rotary pairs interleaved": ("transformer", "Mixer", replaced(transformer, "rotate", interleaved)),
    "gates in another order": (
        "lstm",
        "Mixer",
        replaced(
            lstm,
            "lstm",
            lambda f: lambda x, *w: f(x, *(p.unflatten(0, (4, -1))[[0, 1, 3, 2]].flatten(0, 1) for p in w)),
        ),
    ),
    "gated norm forgotten": (
        "mamba2",
        "Mixer",
        replaced(layers.RMSNorm, "forward", lambda f: lambda s, x: x if s.eps == mamba2.GATED_NORM_EPS else f(s, x)),
    ),
    "states of ones before the first chunk": (
        "mamba2",
        "Mixer",
        replaced(mamba2, "zeros_like", lambda f: lambda x: f(x) + 1),
    ),
    "eps 1e-6 in the gated norm": (
        "mamba2",
        "Mixer",
        replaced(layers, "rms_norm", lambda f: lambda x, w, _: f(x, w, 1e-6)),
    ),
    "convolution that reads three later frames": (
        "causal",
        "LocalConv",
        replaced(layers, "depthwise_silu", lambda f: lambda x, w, b, left: f(x, w, b, min(left, 3))),
    ),
    "attention without its window": (
        "causal",
        "GlobalAttention",
        replaced(window, "window_bias", lambda f: lambda *a: np.zeros_like(f(*a))),
    ),
    "running mean without its weight": (
        "causal",
        "running_memory",
        replaced(causal, "chunks", lambda f: lambda *a: f(*a)._replace(weight=np.ones_like(f(*a).weight))),
    ),
    "running mean that forgets earlier chunks": (
        "causal",
        "running_memory",
        replaced(causal, "chunks", lambda f: lambda *a: f(*a)._replace(carried=np.zeros_like(f(*a).carried))),
    ),
    "summary of the slowest tokens": (
        "causal",
        "DecoderBlock",
        replaced(causal, "summary_vector", lambda f: lambda tokens: f(tokens)[::-1]),
    ),
}


@pytest.fixture(autouse=True)
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@lru_cache
def expected(model):
    """Outputs and gradients of the JAX twin for all modules of ``model`` that have a mutant."""
    names = sorted({module for its, module, _ in MUTANTS.values() if its == model})
    return comparison.modules_in_jax(configuration(MODELS[model]), "float64", names)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_mutant_is_detected(mutant, monkeypatch):
    model, module, mutate = MUTANTS[mutant]
    config, found = configuration(MODELS[model]), expected(model)[module]

    def detected():
        with own_operations():  # a fused kernel would hide the mutant
            wanted = comparison.modules_in_torch(config, "float64", [module])[module]
        pairs = (("y", TOLERANCE["block"]), ("d ", TOLERANCE["gradients"]))
        return any(distance(found, wanted, prefix) > bar["float64"] for prefix, bar in pairs)

    assert not detected()
    mutate(monkeypatch)
    assert detected()


def test_weight_decay_on_everything_is_detected(monkeypatch):
    adamw = train._adamw

    def decay_all(weights, config):
        optimiser = adamw(weights, config)
        for group in optimiser.param_groups:
            group["weight_decay"] = config.training.weight_decay
        return optimiser

    monkeypatch.setattr(train, "_adamw", decay_all)
    assert steps_apart() > TOLERANCE["steps"]["float64"]


def test_a_clip_with_an_epsilon_is_detected(monkeypatch):
    # In the moments: the weights hardly show a factor that all gradients share, because AdamW divides by their size.
    multiply = torch._foreach_mul_
    monkeypatch.setattr(torch, "_foreach_mul_", lambda x, factor: multiply(x, factor / (1 + 1e-5)))
    assert steps_apart("adam_m/") > TOLERANCE["steps"]["float64"]


@lru_cache
def stepped_in_jax():
    config = configuration(STEPPED)
    return parity.trained(parity.trainers(config, "float64")[1], config, "float64")[0]


def steps_apart(prefix="model/"):
    config = configuration(STEPPED)
    wanted, _ = parity.trained(parity.trainers(config, "float64")[0], config, "float64")
    return distance(stepped_in_jax(), wanted, prefix)


def test_steps_agree_without_a_mutation():
    for prefix in ("model/", "ema/", "adam_m/"):
        assert steps_apart(prefix) <= TOLERANCE["steps"]["float64"]


def test_mutations_are_undone():
    assert torch_impl.blocks.flip is torch.flip
