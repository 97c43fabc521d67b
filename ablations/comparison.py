"""Distances between the twins: small models with equal weights and inputs, compared by module and as networks.

Stage :mod:`ablations.stages.parity` records the distances; the tests hold them to :data:`TOLERANCE`. A distance is
‖a − b‖ / ‖b‖ with b from PyTorch. Inputs are white noise, which fills every bin.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import jax_impl
import torch_impl
from jax_impl.kernels import own_operations
from twinsep import losses
from twinsep.config import Config, FlatConfig, SpectrogramUNetConfig, UNetConfig, preset
from twinsep.config.mixers import MIXERS
from twinsep.model import initializers

Arrays = dict[str, Any]
Draws = Sequence[tuple[float, int]]

#: Largest relative distance, by kind of comparison and type.
TOLERANCE = {
    "block": {"float64": 1e-12, "float32": 2e-6},
    "network": {"float64": 1e-10, "float32": 1e-5},
    "gradients": {"float64": 1e-9, "float32": 1e-4},
    "steps": {"float64": 1e-8, "float32": 1e-3},
}
#: Smallest level of a separated song relative to the difference between the twins, dB.
SONG_SNR_DB = 90.0
#: Rms of the noise at which gradients must meet the tolerance. The derivative of log(|X| + ε) reaches 1/ε at a spectral
#: null. The louder the noise relative to ε = 1e-3, the larger the share of single nulls in the gradient, and with it
#: that of rounding in float32.
QUIET = 0.01
DTYPES = ("float64", "float32")

# ---------------------------------------------------------------------------- configurations and distances

#: Options with which XLA compiles in a third of the time what only serves to compare definitions.
FAST_COMPILING: dict[str, Any] = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if jax.__version__.startswith("0.10."):  # later ones do not know the option, and refuse it
    FAST_COMPILING["xla_cpu_use_fusion_emitters"] = False

#: Options of a small model: most of the time is spent compiling, and a wrong twin is wrong at any size.
MICRO: dict[str, Any] = {
    "d_model": 8,
    "n_heads": 2,
    "bands": "vocal18",
    "memory_tokens": [16, 12, 8, 4],
    "mid_side": False,
}
#: The factors of the cases. Mixers of the registry that are missing in the first join it with their defaults.
_MIXERS: dict[str, dict[str, Any]] = {
    "mamba": {"kind": "mamba", "d_state": 4},
    "mamba2": {"kind": "mamba2", "d_state": 4, "head_dim": 8},
    "conv": {"kind": "conv", "kernel": 5},
}
_ALIGNMENT: dict[str, dict[str, Any]] = {
    "aligned": {},
    "reference": {"memory_alignment": "reference", "bands": "reference68"},
}
_STEMS: dict[str, dict[str, Any]] = {
    "one stem": {},
    "two stems and the rest": {"targets": ["drums", "bass"], "residual": True},
}
_SIDES: dict[str, dict[str, Any]] = {"left/right": {}, "mid/side": {"mid_side": True}}
#: Further cases, which change the shape of the network.
_OTHERS: dict[str, dict[str, Any]] = {
    "mamba, one direction; no memory": {
        "mixer": {"kind": "mamba", "d_state": 4, "directions": 1},
        "memory_tokens": [0, 0, 0, 0],
    },
    "transformer; memory of the bottleneck; four stems": {
        "mixer": {"kind": "transformer"},
        "memory_tokens": [0, 0, 0, 4],
        "targets": ["drums", "bass", "other", "vocals"],
    },
    "conv; level features; identity start": {
        "mixer": {"kind": "conv", "kernel": 5},
        "features": "complex+level",
        "init": "identity",
    },
    "level features; no U-Net": {"features": "complex+level", "levels": 0},
    "mamba; one level": {"mixer": {"kind": "mamba", "d_state": 4}, "levels": 1},
    "mamba2; flat; complex mask of four stems": {
        "network": "flat",
        "n_layers": 2,
        "feed_forward": False,
        "mask": "glu",
        "mixer": {"kind": "mamba2", "d_state": 4, "head_dim": 8},
        "targets": ["drums", "bass", "other", "vocals"],
    },
    "transformer; flat; identity start": {
        "network": "flat",
        "n_layers": 1,
        "mask": "glu",
        "mixer": {"kind": "transformer"},
        "bands": "bsroformer62",
        "init": "identity",
    },
    "mamba; causal; level features and identity start": {
        "mixer": {"kind": "mamba", "d_state": 4},
        "causal": True,
        "features": "complex+level",
        "init": "identity",
    },
    "transformer; causal; window of three frames; mid/side; two stems and the rest": {
        "mixer": {"kind": "transformer"},
        "causal": True,
        "attention_window": 3,
        "mid_side": True,
        "targets": ["drums", "bass"],
        "residual": True,
    },
    "conv; causal; memory of two levels": {
        "mixer": {"kind": "conv", "kernel": 5},
        "causal": True,
        "memory_tokens": [0, 3, 0, 1],
    },
}
_OTHERS["spectrogram U-Net"] = {
    "network": "spectrogram-unet",
    "init": "default",
    "widths": [4, 8, 8],
    "max_frequency": 8000.0,
    "targets": ["vocals", "bass"],
}
#: The modules that a further case changes, where it does not change all: a module that only contains them is not named.
_CHANGED: dict[str, list[str]] = {
    "mamba, one direction; no memory": ["Bidirectional", "DecoderBlock"],
    "transformer; memory of the bottleneck; four stems": ["DecoderBlock", "MaskHead", "MemoryAttention", "memory_bank"],
    "conv; level features; identity start": ["BandSplit", "MaskHead", "SkipGate"],
    "mamba; one level": [],
    "mamba2; flat; complex mask of four stems": ["DualPath", "MaskHead"],
    "transformer; flat; identity start": ["BandSplit", "DualPath", "MaskHead"],
    "transformer; causal; window of three frames; mid/side; two stems and the rest": [
        "GlobalAttention",
        "SequenceBlock",
    ],
    "conv; causal; memory of two levels": ["DecoderBlock", "SequenceBlock", "running_memory"],
}
#: The modules of a U-Net without the deeper levels, by ``model.levels``.
_SHALLOW = {0: {"BandSplit", "MaskHead"}, 1: {"BandSplit", "LocalConv", "EncoderBlock", "MaskHead"}}


def configuration(model: Mapping[str, Any]) -> Config:
    """Configuration of the small model with these options."""
    training = {"segment_seconds": 0.5, "warmup_steps": 4}
    return preset("tiny").override({"model": MICRO, "training": training}).override({"model": model})


def cases() -> dict[str, dict[str, Any]]:
    """Name → options of the model; any two options of different factors meet in at least one case.

    The cases are chosen greedily from the full product and include every mixer of the registry.
    """
    mixers = {kind: _MIXERS.get(kind, {"kind": kind}) for kind in MIXERS}
    factors = [mixers, _ALIGNMENT, _STEMS, _SIDES]
    product = list(itertools.product(*factors))
    missing = set().union(*map(pairs, product))
    chosen = {}
    while missing:
        best = max(product, key=lambda choice: len(pairs(choice) & missing))
        missing -= pairs(best)
        mixer, *others = (factor[name] for factor, name in zip(factors, best, strict=True))
        chosen["; ".join(best)] = reduce(lambda a, b: a | b, others, {"mixer": mixer})
    return chosen | _OTHERS


def module_cases() -> list[tuple[str, list[str] | None]]:
    """(case, its modules to compare, None for all): each module once, and again where a mixer or option changes it."""
    first, *others = (name for name in cases() if name not in _OTHERS)
    out = [(name, _CHANGED.get(name)) for name in (first, *_OTHERS) if _CHANGED.get(name) != []]
    seen = {first.split("; ")[0]}
    for name in others:
        mixer, *options = name.split("; ")
        if mixer not in seen:
            out.append((name, ["Bidirectional", "DualPath", "Mixer"]))
        elif mixer == first.split("; ")[0] and "reference" in options:
            out.append((name, ["BandSplit", "DecoderBlock", "MaskHead", "MemoryAttention"]))
        seen.add(mixer)
    return out


def pairs(options: Sequence[str]) -> set[tuple[tuple[int, str], ...]]:
    """All pairs of options, each option with its position."""
    return set(itertools.combinations(enumerate(options), 2))


def _features(model: Any, *, frames: int = 19) -> tuple[int, ...]:
    return 2, model.n_bands, frames, model.d_model


#: Module → (its path in the network, function from ModelConfig to the shapes of its inputs). A number among the shapes
#: is a further argument.
#: The path of a module in the network, and a function from the model to the shapes of its inputs.
Module = tuple[str, Callable[[Any], list[Any]]]
MODULES: dict[str, Module] = {
    "BandSplit": ("band_split", lambda m: [(2, 2, m.n_bins, 5, 2)]),
    "Mixer": ("enc3.0.dual_path.time.{mixer}", lambda m: [(3, 70, m.d_model)]),
    "Bidirectional": ("enc3.0.dual_path.time", lambda m: [(3, 19, m.d_model)]),
    "SwiGLU": ("enc3.0.dual_path.ff", lambda m: [_features(m)]),
    "DualPath": ("bottleneck.0", lambda m: [_features(m)]),
    "LocalConv": ("enc1.0.conv", lambda m: [_features(m)]),
    "EncoderBlock": ("enc1.0", lambda m: [_features(m)]),
    "Downsample": ("down1", lambda m: [_features(m)]),
    "GlobalAttention": ("bottleneck.1", lambda m: [_features(m, frames=5)]),
    "Upsample": ("up3", lambda m: [_features(m, frames=9), 19]),
    "memory_bank": ("", lambda m: [_features(m, frames=n) for n in (37, 18, 9, 4)]),
    "MemoryAttention": ("dec1.0.memory", lambda m: [_features(m), _features(m, frames=sum(m.memory_tokens))]),
    "SkipGate": ("dec1.0.skip", lambda m: [_features(m), _features(m)]),
    "DecoderBlock": (
        "dec1.0",
        lambda m: [_features(m), _features(m, frames=sum(m.memory_tokens)), _features(m)],
    ),
    "MaskHead": ("mask_head", lambda m: [_features(m, frames=5)]),
}
#: The modules of a causal network that differ from those of the others.
_CAUSAL: dict[str, Module] = {
    "Mixer": MODULES["Mixer"],
    "SequenceBlock": ("enc3.0.dual_path.time", lambda m: [(3, 70, m.d_model)]),
    "DualPath": MODULES["DualPath"],
    "LocalConv": MODULES["LocalConv"],
    "EncoderBlock": MODULES["EncoderBlock"],
    "GlobalAttention": ("bottleneck.1", lambda m: [_features(m, frames=5)]),
    "running_memory": ("", lambda m: [_features(m, frames=70)]),
    "DecoderBlock": (
        "dec1.0",
        lambda m: [_features(m), (*_features(m)[:3], sum(m.memory_tokens), m.d_model), _features(m)],
    ),
}
#: The modules of a flat network.
_FLAT: dict[str, Module] = {
    "BandSplit": MODULES["BandSplit"],
    "Mixer": ("layers.0.time.{mixer}", MODULES["Mixer"][1]),
    "DualPath": ("layers.0", MODULES["DualPath"][1]),
    "MaskHead": MODULES["MaskHead"],
}


#: The modules of a U-Net over magnitudes.
_SPECTROGRAM: dict[str, Module] = {
    "ConvBlock": ("encoder.1", lambda m: [(2, m.widths[0], 8, 6)]),
    "DecoderStage": ("decoder.0", lambda m: [(2, m.widths[-1], 4, 3), (2, m.widths[-2], 8, 6)]),
}


def distance(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> float:
    """‖found − wanted‖ / ‖wanted‖ over arrays whose name starts with ``prefix``; infinite if names or shapes differ."""
    if found.keys() != wanted.keys():
        return float("inf")
    both = [
        [np.ravel(x[name]).astype(np.float64) for name in wanted if name.startswith(prefix)] for x in (found, wanted)
    ]
    a, b = (np.concatenate(x) if x else np.zeros(0) for x in both)
    if a.shape != b.shape:
        return float("inf")
    return float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-30)


def worst_leaf(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, float]:
    """(name, distance) of the gradient with the largest distance, ignoring gradients of negligible norm."""
    whole = np.sqrt(sum(float(np.sum(np.square(g))) for name, g in wanted.items() if name.startswith("d ")))
    leaves = {name: g for name, g in wanted.items() if name.startswith("d ") and np.linalg.norm(g) > 1e-6 * whole}
    distances = {name: distance({name: found[name]}, {name: g}) for name, g in leaves.items()}
    worst = max(distances, key=lambda name: distances[name])
    return worst.removeprefix("d "), distances[worst]


def noise(*shape: int, seed: int = 0, rms: float = 0.1) -> np.ndarray:
    """White noise in float64 with values that float32 can represent, so that both types have the same exact result."""
    drawn = rms * np.random.default_rng(seed).standard_normal(shape)
    return drawn.astype(np.float32).astype(np.float64)


def weights_of(config: Config, seed: int = 0) -> Arrays:
    """Initial weights with a little noise, so that no bias is zero and no norm one, and drawn running statistics."""
    with torch.device("meta"):
        network = torch_impl.networks.build(config)
    own, statistics = torch_impl.layers.named_parameters(network), torch_impl.layers.named_statistics(network)
    start = config.model.init
    draws = {
        name: initializers.draw(name, w.shape, w.initialiser, seed, start) for name, w in own.items() if w.initialiser
    }
    weights = {name: w + noise(*w.shape, seed=i, rms=0.05) for i, (name, w) in enumerate(draws.items())}
    for i, (name, x) in enumerate(statistics.items()):
        drawn = noise(*x.shape, seed=1000 + i, rms=0.05)
        weights[name] = drawn if name.endswith("mean") else 0.01 + np.abs(drawn)
    return weights


# ---------------------------------------------------------------------------- modules


def modules(config: Config) -> dict[str, Module]:
    """The modules that a network of ``config`` has."""
    model = config.model
    if isinstance(model, FlatConfig):
        return _FLAT
    if isinstance(model, SpectrogramUNetConfig):
        return _SPECTROGRAM
    assert isinstance(model, UNetConfig)
    if model.causal:
        return _CAUSAL
    found = {name: module for name, module in MODULES.items() if name in _SHALLOW.get(model.levels, MODULES)}
    memory = ("memory_bank", "MemoryAttention")
    return {name: module for name, module in found.items() if model.has_memory or name not in memory}


def modules_in_torch(
    config: Config, dtype: str, names: Sequence[str] | None = None, device: str = "cpu"
) -> dict[str, Arrays]:
    """Module → its output ``y`` in PyTorch and its gradients ``d <name>``, as NumPy arrays."""
    model = torch_separator(config, dtype).to(device)
    parameters = torch_impl.layers.named_parameters(model)
    out = {}
    for name in names or modules(config):
        path, inputs, extra = _set_up(name, config, dtype)
        tensors = [torch.from_numpy(x).to(device).requires_grad_() for x in inputs]
        own = {n: w for n, w in parameters.items() if path and n.startswith(f"{path}.")}
        y = _call(torch_impl, name, model, config, path, tensors, extra, torch)
        dy = torch.from_numpy(_cotangent(y.shape, dtype)).to(device)
        # Inputs that the result does not depend on get the gradient 0, as in JAX.
        found = torch.autograd.grad(y, [*own.values(), *tensors], dy, allow_unused=True, materialize_grads=True)
        out[name] = {"y": y.detach().cpu().numpy()} | _named([g.cpu().numpy() for g in found], own)
    return out


def modules_in_jax(config: Config, dtype: str, names: Sequence[str] | None = None) -> dict[str, Arrays]:
    """Compute in JAX what :func:`modules_in_torch` does.

    All modules are compiled together, by :data:`FAST_COMPILING`.
    """
    model = jax_impl.networks.build(config)
    functional, parameters = jax_impl.train.Functional(model), jax_impl.layers.named_parameters(model)
    weights = {name: jnp.asarray(w, dtype) for name, w in weights_of(config).items()}
    set_up = {name: _set_up(name, config, dtype) for name in names or modules(config)}

    def everything(weights: Any, inputs: Any) -> Any:
        out = {}
        for name, (path, _, extra) in set_up.items():
            own = {n: weights[n] for n in parameters if path and n.startswith(f"{path}.")}

            def forward(own: Any, arrays: Any, name=name, path=path, extra=extra) -> Any:
                merged = functional.model(weights | own)
                return _call(jax_impl, name, merged, config, path, arrays, extra, jnp)

            y, pull = jax.vjp(forward, own, inputs[name])
            gradients, dx = pull(jnp.asarray(_cotangent(y.shape, dtype)))
            out[name] = {"y": y} | _named([*(gradients[n] for n in own), *dx], own)
        return out

    inputs = {name: [jnp.asarray(x) for x in arrays] for name, (_, arrays, _) in set_up.items()}
    return jax.device_get(jax.jit(everything, compiler_options=FAST_COMPILING)(weights, inputs))


def _set_up(name: str, config: Config, dtype: str) -> tuple[str, list[np.ndarray], list[int]]:
    path, shapes = modules(config)[name]
    model: Any = config.model
    asked = shapes(model)
    arrays = [noise(*s, seed=i).astype(dtype) for i, s in enumerate(asked) if isinstance(s, tuple) and 0 not in s]
    if "{mixer}" in path:
        both = model.mixer.passes == 2 and not getattr(model, "causal", False)
        path = path.format(mixer="forwards" if both else "mixer")
    return path, arrays, [s for s in asked if isinstance(s, int)]


def _call(twin: Any, name: str, model: Any, config: Config, path: str, arrays: Any, extra: Any, xp: Any) -> Any:
    options: Any = config.model
    if name == "memory_bank":
        return twin.blocks.memory_bank(arrays, options.memory_tokens)
    if name == "running_memory":
        return twin.causal.running_memory(arrays[0], model.rates[-1])
    module = reduce(lambda m, key: m[int(key)] if key.isdigit() else getattr(m, key), path.split("."), model)
    if name == "BandSplit":  # real arrays, because the frameworks define complex gradients differently
        arrays = [arrays[0][..., 0] + 1j * arrays[0][..., 1]]
    if name == "DecoderBlock" and not options.has_memory:
        arrays = [arrays[0], None, arrays[1]]
    y = module(*arrays, *extra)
    return xp.stack([y.real, y.imag], -1) if name == "MaskHead" else y


def _cotangent(shape: Sequence[int], dtype: str) -> np.ndarray:
    return noise(*shape, seed=99, rms=1).astype(dtype)


def _named(found: Sequence[Any], own: Mapping[str, Any]) -> Arrays:
    """``d <name>`` → gradient, for weights by name and for inputs by number."""
    names = [*own, *(f"input {i}" for i in range(len(found) - len(own)))]
    return {f"d {name}": g for name, g in zip(names, found, strict=True)}


# ---------------------------------------------------------------------------- networks


def torch_separator(config: Config, dtype: str) -> Any:
    """A network with the weights of :func:`weights_of`."""
    model = torch_impl.networks.build(config).to(getattr(torch, dtype)).eval()
    torch_impl.train.load_weights(model, {n: w.astype(dtype) for n, w in weights_of(config).items()}, "parity")
    return model


def signals(config: Config, dtype: str, *, rms: float, samples: int = 17_000, seed: int = 0) -> list[np.ndarray]:
    """[mixture (2, 2, s), target (2, stems, 2, s)] of white noise; half of the target is the mixture."""
    mixture = noise(2, 2, samples, rms=rms, seed=seed)
    own = noise(2, len(config.model.targets), 2, samples, rms=rms, seed=seed + 1000)
    return [mixture.astype(dtype), (0.5 * mixture[:, None] + 0.5 * own).astype(dtype)]


def network_in_torch(
    config: Config, dtype: str, draws: Draws = ((QUIET, 0),), *, device: str = "cpu", compute: torch.dtype | None = None
) -> list[Arrays]:
    """Estimate, loss and its gradients by all weights and the mixture, for noise of each (rms, seed) in ``draws``.

    ``compute`` is the type in which the network runs, as in training, if it is another one.
    """
    model = torch_separator(config, dtype).to(device)
    own = torch_impl.layers.named_parameters(model)
    out = []
    for rms, seed in draws:
        model.zero_grad()
        mixture, target = (torch.from_numpy(x).to(device) for x in signals(config, dtype, rms=rms, seed=seed))
        mixture.requires_grad_()
        with torch.autocast(device, compute, enabled=compute is not None, cache_enabled=False):
            estimate = model(mixture).to(target.dtype)
        total, _ = losses.mix(estimate[:, : target.shape[1]], target, mixture=mixture, config=config)
        total.backward()
        gradients = {f"d {name}": w.grad.cpu().numpy().copy() for name, w in own.items() if w.grad is not None}
        assert mixture.grad is not None
        found = {"y": estimate.detach().cpu().numpy(), "loss": total.item(), "d input": mixture.grad.cpu().numpy()}
        out.append(found | gradients)
    return out


def network_in_jax(
    config: Config, dtype: str, draws: Draws = ((QUIET, 0),), *, kernels: bool = True, as_for_users: bool = False
) -> list[Arrays]:
    """Compute in JAX what :func:`network_in_torch` does.

    Without ``kernels`` it computes by JAX's own operations, not by the CPU kernels that both twins share. It is
    compiled by :data:`FAST_COMPILING`, or ``as_for_users``.
    """
    model = jax_impl.networks.build(config)
    functional, own = jax_impl.train.Functional(model), jax_impl.layers.named_parameters(model)
    weights = {name: jnp.asarray(w, dtype) for name, w in weights_of(config).items()}

    @partial(jax.jit, compiler_options=None if as_for_users else FAST_COMPILING)
    def derivative(weights: Any, mixture: Any, target: Any) -> Any:
        def loss(weights: Any, mixture: Any) -> Any:
            estimate = functional(weights, mixture)
            total, _ = losses.mix(estimate[:, : target.shape[1]], target, mixture=mixture, config=config)
            return total, estimate

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(weights, mixture)

    out = []
    for rms, seed in draws:
        mixture, target = (jnp.asarray(x) for x in signals(config, dtype, rms=rms, seed=seed))
        with contextlib.nullcontext() if kernels else own_operations():
            (total, estimate), (gradients, dx) = jax.device_get(derivative(weights, mixture, target))
        out.append({"y": estimate, "loss": total, "d input": dx} | {f"d {name}": gradients[name] for name in own})
    return out
