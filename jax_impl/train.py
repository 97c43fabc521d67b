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

from jax_impl.distributed import Workers
from jax_impl.layers import Module, initialise, named_parameters, named_statistics, named_weights, set_training
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

    def __init__(self, config: Config, device: str = "cpu", devices: int = 1):
        self.config, self.workers = config, Workers(device, devices)
        self.device = self.workers.device
        model = build(config)
        if self.workers.size > 1 and named_statistics(model):
            raise InputError("a system with batch norms is trained by one worker: its statistics are those of a batch")
        initialise(model, config.training.seed, config.model.init)
        self.functional = Functional(model)
        self.decay = {name: weight.decay for name, weight in named_parameters(model).items()}
        t = config.training
        self.compute_type = COMPUTE_TYPES[t.precision]
        #: Loss scale, for float16 only.
        self.scale = LossScale() if self.compute_type == jnp.float16 else None
        self.adam = optax.scale_by_adam(t.beta1, t.beta2, t.eps)
        self.weights: Tree = self.workers.place(self.functional.weights(model))
        #: Running statistics of batch norms; empty for a network without.
        self.statistics: Tree = self.workers.place(self.functional.statistics(model))
        #: The EMA of the weights and of the statistics.
        self.average: Tree = jax.tree.map(jnp.copy, self.weights | self.statistics)
        self.moments = self.workers.place(self.adam.init(self.weights))
        self._gradient = self.workers.parallel(self.gradient, (True, True, False, False, True))
        self._update = jax.jit(self.update, donate_argnums=(0, 1, 2))
        self._average_of = jax.jit(self.functional)

    def estimate(self, x: np.ndarray) -> np.ndarray:
        """Apply the model with averaged weights: NumPy (b, 2, s) -> (b, stems, 2, s)."""
        return np.asarray(self._average_of(self.workers.local(self.average), jax.device_put(x, self.device)))

    def step(
        self, batches: Sequence[Mapping[str, np.ndarray]], learning_rate: float, ema_decay: float
    ) -> dict[str, float]:
        """Update the weights once, with the gradient averaged over ``batches``.

        Returns the "loss", its terms, the "gradient_norm" before clipping and, in float16, the "loss_scale". If the
        loss or the norm is not finite, weights, statistics and optimiser stay as they are; only the loss scale changes.
        """
        results = []
        scale = self.scale.scale if self.scale else 1.0
        statistics = self.statistics
        for batch in batches:
            arrays = (self.workers.place(batch[key], split=True) for key in ("mixture", "target"))
            *result, statistics = self._gradient(self.weights, statistics, *arrays, scale)
            results.append(result)
        if len(results) > 1:  # operations outside a compiled function take longer to start than to compute
            results = [jax.tree.map(lambda *x: sum(x) / len(x), *results)]
        ((gradients, report),) = results
        self.weights, self.average, self.moments, self.statistics, norm = self._update(
            self.weights,
            self.average,
            self.moments,
            gradients,
            (self.statistics, statistics),
            report["loss"],
            learning_rate,
            1 - ema_decay,
        )
        out = {name: float(value) for name, value in report.items()} | {"gradient_norm": float(norm)}
        if self.scale:
            out["loss_scale"] = scale
            self.scale = self.scale.after(bool(np.isfinite([out["loss"], out["gradient_norm"]]).all()))
        return out

    def gradient(
        self, weights: Tree, statistics: Tree, mixture: jax.Array, target: jax.Array, scale: jax.Array
    ) -> tuple[Tree, dict[str, jax.Array], Tree]:
        """Return the gradient of the loss, the loss with its terms, and the statistics after this batch.

        In float16 ``scale`` avoids underflow.
        """
        if not self.scale:
            gradients, (terms, statistics) = jax.grad(self.loss, has_aux=True)(weights, statistics, mixture, target)
            return *self.workers.mean((gradients, terms)), statistics

        def scaled(weights: Tree) -> tuple[jax.Array, Any]:
            total, others = self.loss(weights, statistics, mixture, target)
            return total * scale, others

        gradients, (terms, statistics) = jax.grad(scaled, has_aux=True)(weights)
        gradients, terms = self.workers.mean((gradients, terms))
        return jax.tree.map(lambda g: g / scale, gradients), terms, statistics

    def update(
        self,
        weights: Tree,
        average: Tree,
        moments: Any,
        gradients: Tree,
        statistics: tuple[Tree, Tree],
        loss: jax.Array,
        learning_rate: jax.Array,
        share: jax.Array,
    ) -> tuple[Tree, Tree, Any, Tree, jax.Array]:
        """Return the updated weights, EMA, moments and statistics, and the norm of the gradient.

        ``statistics`` are those before and after the step, ``share`` is 1 − the decay of the EMA. If the loss or the
        norm is not finite, everything stays as it was.
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
        new_average = jax.tree.map(lambda a, w: a + share * (w - a), average, new_weights | statistics[1])
        finite = jnp.isfinite(norm) & jnp.isfinite(loss)
        chosen = partial(jax.tree.map, lambda new, old: jnp.where(finite, new, old))
        pairs = (new_weights, weights), (new_average, average), (new_moments, moments), statistics[::-1]
        return *(chosen(*pair) for pair in pairs), norm

    def loss(
        self, weights: Tree, statistics: Tree, mixture: jax.Array, target: jax.Array
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Tree]]:
        """Return the configured loss on one batch; its terms, and the statistics after it.

        The network runs in the compute type, but its norms, scan states, softmax and STFT in float32; the losses in
        float64.
        """
        with autocast(self.compute_type):
            estimate, statistics = self.functional.train(weights | statistics, mixture)
        stems = len(self.config.model.targets)  # a residual stem is derived, not trained
        estimate = estimate[:, :stems].astype(target.dtype)
        total, terms = losses.mix(estimate, target, mixture=mixture, config=self.config, mean=self.workers.mean)
        return total, ({"loss": total, **terms}, statistics)

    def state(self) -> Tensors:
        """Return everything needed to resume, as NumPy arrays named as in a checkpoint."""
        model = self.weights | self.statistics
        trees = {"model": model, "ema": self.average, "adam_m": self.moments.mu, "adam_v": self.moments.nu}
        trees = {prefix: self.workers.local(tree) for prefix, tree in trees.items()}
        arrays = {f"{prefix}/{name}": np.array(x) for prefix, tree in trees.items() for name, x in tree.items()}
        return arrays | (self.scale.tensors() if self.scale else {})

    def start_from(self, weights: Tensors, where: str) -> None:
        """Take weights and their average from ``weights``; raises InputError, naming ``where``, if they do not fit."""
        check_names(weights, {name: w.shape for name, w in self.average.items()}, where)
        self._set(weights)
        self.average = jax.tree.map(jnp.copy, self.weights | self.statistics)

    def _set(self, weights: Mapping[str, Any]) -> None:
        """Take the weights and the statistics by name."""
        self.weights = {name: self.workers.place(weights[name]) for name in self.weights}
        self.statistics = {name: self.workers.place(weights[name]) for name in self.statistics}

    def restore(self, tensors: Tensors, step: int) -> None:
        """Resume from a :meth:`state` after ``step`` finished steps; raises InputError if names or shapes differ."""
        trees = {}
        for prefix in ("model", "ema", "adam_m", "adam_v"):
            arrays = strip(tensors, prefix)
            own = self.weights if prefix.startswith("adam") else self.average
            check_names(arrays, {name: w.shape for name, w in own.items()}, prefix)
            trees[prefix] = {name: self.workers.place(arrays[name]) for name in own}
        self._set(trees["model"])
        self.average = trees["ema"]
        updates = step
        if self.scale:
            self.scale = LossScale.restored(tensors)
            updates = self.scale.updates
        self.moments = self.moments._replace(
            count=self.workers.place(np.int32(updates)), mu=trees["adam_m"], nu=trees["adam_v"]
        )


class Functional:
    """A model as a pure function of its weights by name, which JAX can differentiate and compile.

    The running statistics of batch norms count among the weights of a call.
    """

    def __init__(self, model: Network):
        self.definition, state = nnx.split(model)
        self.paths = {".".join(map(str, path)): path for path, _ in nnx.to_flat_state(state)}

    def weights(self, model: Network) -> Tree:
        """Return the weights of ``model`` by name."""
        return {name: weight[...] for name, weight in named_parameters(model).items()}

    def statistics(self, model: Network) -> Tree:
        """Return the running statistics of ``model`` by name."""
        return {name: statistic[...] for name, statistic in named_statistics(model).items()}

    def model(self, weights: Tree) -> Network:
        """Return the model with these weights."""
        state = nnx.from_flat_state({self.paths[name]: weight for name, weight in weights.items()})
        return nnx.merge(self.definition, state)

    def __call__(self, weights: Tree, mixture: jax.Array) -> jax.Array:
        """Return the stems (b, stems, 2, s) of a mixture (b, 2, s)."""
        return self.model(weights)(mixture)

    def train(self, weights: Tree, mixture: jax.Array) -> tuple[jax.Array, Tree]:
        """Return the stems and the statistics after this batch, whose own statistics the batch norms use."""
        model = self.model(weights)
        set_training(model, True)
        return model(mixture), self.statistics(model)


def load_weights(model: Module, weights: Mapping[str, np.ndarray], where: str) -> None:
    """Copy ``weights`` into ``model``; raises InputError, naming ``where``, if names or shapes differ."""
    own = named_weights(model)
    check_names(weights, {name: tuple(w.shape) for name, w in own.items()}, where)
    for name, weight in own.items():
        weight.set_value(jnp.asarray(weights[name]))
