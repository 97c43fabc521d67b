"""One optimiser step: loss, gradient, clipping, AdamW, exponential moving average (EMA) of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jax_impl.devices import find_device
from jax_impl.layers import initialise, named_buffers, named_parameters
from jax_impl.network import Network
from jax_impl.networks import build
from jax_impl.ops import autocast
from twinsep import losses
from twinsep.checkpoints import Tensors, check_names, strip
from twinsep.config import Config
from twinsep.errors import InputError
from twinsep.training.loss_scale import LossScale

#: Arrays by the canonical name of a weight: the weights themselves, their gradients, their moments.
Tree = dict[str, jax.Array]

#: Compute types by name; float32 needs no cast.
COMPUTE_TYPES = {"float32": None, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


class Trainer:
    """A model, the EMA of its weights and its optimiser on one device; :mod:`twinsep.training` does everything else."""

    def __init__(self, config: Config, device: str = "cpu"):
        self.config, self.device = config, find_device(device)
        model = build(config)
        if named_buffers(model):
            raise InputError(
                "this system cannot be trained here: training does not keep the running statistics of its batch norms"
            )
        initialise(model, config.training.seed, config.model.init)
        self.functional = Functional(model)
        self.decay = {name: weight.decay for name, weight in named_parameters(model).items()}
        t = config.training
        self.compute_type = COMPUTE_TYPES[t.precision]
        #: Loss scale, for float16 only.
        self.scale = LossScale() if self.compute_type == jnp.float16 else None
        self.adam = optax.scale_by_adam(t.beta1, t.beta2, t.eps)
        self.weights: Tree = jax.device_put(self.functional.weights(model), self.device)
        self.average: Tree = jax.tree.map(jnp.copy, self.weights)
        self.moments = jax.device_put(self.adam.init(self.weights), self.device)
        self._gradient = jax.jit(self.gradient)
        self._update = jax.jit(self.update, donate_argnums=(0, 1, 2))
        self._average_of = jax.jit(self.functional)

    def estimate(self, x: np.ndarray) -> np.ndarray:
        """Apply the model with averaged weights: NumPy (b, 2, s) -> (b, stems, 2, s)."""
        return np.asarray(self._average_of(self.average, jax.device_put(x, self.device)))

    def step(
        self, batches: Sequence[Mapping[str, np.ndarray]], learning_rate: float, ema_decay: float
    ) -> dict[str, float]:
        """Update the weights once, with the gradient averaged over ``batches``.

        Returns the "loss", its terms, the "gradient_norm" before clipping and, in float16, the "loss_scale". If the
        loss or the norm is not finite, weights and optimiser stay as they are, and only the loss scale changes.
        """
        results = []
        scale = self.scale.scale if self.scale else 1.0
        for batch in batches:
            arrays = (jax.device_put(batch[key], self.device) for key in ("mixture", "target"))
            results.append(self._gradient(self.weights, *arrays, scale))
        gradients, report = jax.tree.map(lambda *x: sum(x) / len(batches), *results)
        self.weights, self.average, self.moments, norm = self._update(
            self.weights, self.average, self.moments, gradients, report["loss"], learning_rate, 1 - ema_decay
        )
        out = {name: float(value) for name, value in report.items()} | {"gradient_norm": float(norm)}
        if self.scale:
            out["loss_scale"] = scale
            self.scale = self.scale.after(bool(np.isfinite([out["loss"], out["gradient_norm"]]).all()))
        return out

    def gradient(
        self, weights: Tree, mixture: jax.Array, target: jax.Array, scale: jax.Array
    ) -> tuple[Tree, dict[str, jax.Array]]:
        """Return the gradient of the loss, and the loss with its terms; in float16 ``scale`` avoids underflow."""
        if not self.scale:
            return jax.grad(self.loss, has_aux=True)(weights, mixture, target)

        def scaled(weights: Tree) -> tuple[jax.Array, dict[str, jax.Array]]:
            total, terms = self.loss(weights, mixture, target)
            return total * scale, terms

        gradients, terms = jax.grad(scaled, has_aux=True)(weights)
        return jax.tree.map(lambda g: g / scale, gradients), terms

    def update(
        self,
        weights: Tree,
        average: Tree,
        moments: Any,
        gradients: Tree,
        loss: jax.Array,
        learning_rate: jax.Array,
        share: jax.Array,
    ) -> tuple[Tree, Tree, Any, jax.Array]:
        """Return the updated weights, EMA and moments, unchanged if the loss or the norm is not finite, and the norm.

        ``share`` is 1 − the decay of the EMA.
        """
        t = self.config.training
        norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in gradients.values()))
        # g · min(1, c/‖g‖): PyTorch and optax each add an epsilon of their own.
        clip = jnp.minimum(1.0, t.clip_norm / jnp.maximum(norm, 1e-30))
        steps, new_moments = self.adam.update(jax.tree.map(lambda g: g * clip, gradients), moments)
        new_weights = {
            # AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), with weight decay on parameters with ``decay``
            name: w * (1 - learning_rate * t.weight_decay * self.decay[name]) - learning_rate * steps[name]
            for name, w in weights.items()
        }
        new_average = jax.tree.map(lambda a, w: a + share * (w - a), average, new_weights)
        finite = jnp.isfinite(norm) & jnp.isfinite(loss)
        chosen = partial(jax.tree.map, lambda new, old: jnp.where(finite, new, old))
        return chosen(new_weights, weights), chosen(new_average, average), chosen(new_moments, moments), norm

    def loss(self, weights: Tree, mixture: jax.Array, target: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the configured loss on one batch and its terms.

        The network runs in the compute type, but its norms, scan states, softmax and STFT in float32; the losses in
        float64.
        """
        with autocast(self.compute_type):
            estimate = self.functional(weights, mixture)
        stems = len(self.config.model.targets)  # a residual stem is derived, not trained
        estimate = estimate[:, :stems].astype(target.dtype)
        total, terms = losses.mix(estimate, target, mixture=mixture, config=self.config)
        return total, {"loss": total, **terms}

    def state(self) -> Tensors:
        """Return everything needed to resume, as NumPy arrays named as in a checkpoint."""
        trees = {"model": self.weights, "ema": self.average, "adam_m": self.moments.mu, "adam_v": self.moments.nu}
        arrays = {f"{prefix}/{name}": np.array(x) for prefix, tree in trees.items() for name, x in tree.items()}
        return arrays | (self.scale.tensors() if self.scale else {})

    def start_from(self, weights: Tensors, where: str) -> None:
        """Take weights and their average from ``weights``; raises InputError, naming ``where``, if they do not fit."""
        check_names(weights, {name: w.shape for name, w in self.weights.items()}, where)
        self.weights = {name: jax.device_put(weights[name], self.device) for name in self.weights}
        self.average = jax.tree.map(jnp.copy, self.weights)

    def restore(self, tensors: Tensors, step: int) -> None:
        """Resume from a :meth:`state` after ``step`` finished steps; raises InputError if names or shapes differ."""
        shapes = {name: w.shape for name, w in self.weights.items()}
        trees = {}
        for prefix in ("model", "ema", "adam_m", "adam_v"):
            arrays = strip(tensors, prefix)
            check_names(arrays, shapes, prefix)
            trees[prefix] = {name: jax.device_put(arrays[name], self.device) for name in shapes}
        self.weights, self.average = trees["model"], trees["ema"]
        updates = step
        if self.scale:
            self.scale = LossScale.restored(tensors)
            updates = self.scale.updates
        self.moments = self.moments._replace(
            count=jax.device_put(np.int32(updates), self.device), mu=trees["adam_m"], nu=trees["adam_v"]
        )


class Functional:
    """A model as a pure function of its weights by name, which JAX can differentiate and compile."""

    def __init__(self, model: Network):
        self.definition, state = nnx.split(model)
        self.paths = {".".join(map(str, path)): path for path, _ in nnx.to_flat_state(state)}

    def weights(self, model: Network) -> Tree:
        """Return the weights of ``model`` by name."""
        return {name: weight[...] for name, weight in named_parameters(model).items()}

    def model(self, weights: Tree) -> Network:
        """Return the model with these weights."""
        state = nnx.from_flat_state({self.paths[name]: weight for name, weight in weights.items()})
        return nnx.merge(self.definition, state)

    def __call__(self, weights: Tree, mixture: jax.Array) -> jax.Array:
        """Return the stems (b, stems, 2, s) of a mixture (b, 2, s)."""
        return self.model(weights)(mixture)


def load_weights(model: Network, weights: Mapping[str, np.ndarray], where: str) -> None:
    """Copy weights and running statistics into ``model``; raises InputError, naming ``where``, if they do not fit."""
    own: dict[str, nnx.Variable] = {**named_parameters(model), **named_buffers(model)}
    check_names(weights, {name: tuple(w.shape) for name, w in own.items()}, where)
    for name, weight in own.items():
        weight.set_value(jnp.asarray(weights[name]))
