"""One optimiser step: loss, gradient, clip, AdamW, weight average."""

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
from jax_impl.layers import autocast, initialise, named_parameters
from jax_impl.unet import BandSplitUNet
from twinsep import losses
from twinsep.checkpoints import Tensors, check_names, strip
from twinsep.config import Config
from twinsep.training.loss_scale import LossScale

#: Weights, or what belongs to each of them, by canonical name.
Tree = dict[str, jax.Array]


#: Compute types by name; float32 is none, as nothing is cast then.
COMPUTE_TYPES = {"float32": None, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


class Trainer:
    """A model, its average and its optimiser on one device; everything else is :mod:`twinsep.training`'s."""

    def __init__(self, config: Config, device: str = "cpu"):
        self.config, self.device = config, find_device(device)
        model = BandSplitUNet(config)
        initialise(model, config.training.seed)
        self.functional = Functional(model)
        self.decay = {name: weight.decay for name, weight in named_parameters(model).items()}
        t = config.training
        self.compute_type = COMPUTE_TYPES[t.precision]
        #: Only float16 needs one.
        self.scale = LossScale() if self.compute_type == jnp.float16 else None
        self.adam = optax.scale_by_adam(t.beta1, t.beta2, t.eps)
        self.weights: Tree = jax.device_put(self.functional.weights(model), self.device)
        self.average: Tree = jax.tree.map(jnp.copy, self.weights)
        self.moments = jax.device_put(self.adam.init(self.weights), self.device)
        self._gradient = jax.jit(self.gradient)
        self._update = jax.jit(self.update, donate_argnums=(0, 1, 2))
        self._average_of = jax.jit(self.functional)

    def estimate(self, x: np.ndarray) -> np.ndarray:
        """The averaged model, (b, 2, s) -> (b, stems, 2, s) in NumPy."""
        return np.asarray(self._average_of(self.average, jax.device_put(x, self.device)))

    def step(
        self, batches: Sequence[Mapping[str, np.ndarray]], learning_rate: float, ema_decay: float
    ) -> dict[str, float]:
        """Gradients averaged over ``batches``, one update; returns loss, its terms and the gradient's norm.

        Where the loss or the norm is not finite it is returned and nothing was changed, but in float16 the scale,
        which then is returned as well.
        """
        found = []
        scale = self.scale.scale if self.scale else 1.0
        for batch in batches:
            arrays = (jax.device_put(batch[key], self.device) for key in ("mixture", "target"))
            found.append(self._gradient(self.weights, *arrays, scale))
        gradients, report = jax.tree.map(lambda *x: sum(x) / len(batches), *found)
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
        """The loss' gradient, computed at ``scale`` times its size where there is a loss scale; and loss and terms."""
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
        """AdamW and the average; as they were where the loss or the gradient's norm, returned last, is not finite."""
        t = self.config.training
        norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in gradients.values()))
        # g · min(1, c/‖g‖): the libraries' clips add an epsilon, each its own.
        clip = jnp.minimum(1.0, t.clip_norm / jnp.maximum(norm, 1e-30))
        steps, new_moments = self.adam.update(jax.tree.map(lambda g: g * clip, gradients), moments)
        new_weights = {
            # AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), decay only where the parameter asks for it
            name: w * (1 - learning_rate * t.weight_decay * self.decay[name]) - learning_rate * steps[name]
            for name, w in weights.items()
        }
        new_average = jax.tree.map(lambda a, w: a + share * (w - a), average, new_weights)
        finite = jnp.isfinite(norm) & jnp.isfinite(loss)
        kept = partial(jax.tree.map, lambda new, old: jnp.where(finite, new, old))
        return kept(new_weights, weights), kept(new_average, average), kept(new_moments, moments), norm

    def loss(self, weights: Tree, mixture: jax.Array, target: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The configured mix on one batch, the network in the compute type; its norms, states of scans, attention's
        softmax and STFT in float32, the losses in float64."""
        with autocast(self.compute_type):
            estimate = self.functional(weights, mixture)
        stems = len(self.config.model.targets)  # a residual stem is derived, not trained
        estimate = estimate[:, :stems].astype(target.dtype)
        total, terms = losses.mix(estimate, target, mixture=mixture, config=self.config)
        return total, {"loss": total, **terms}

    def state(self) -> Tensors:
        """Everything needed to go on, as NumPy arrays named as in a checkpoint."""
        trees = {"model": self.weights, "ema": self.average, "adam_m": self.moments.mu, "adam_v": self.moments.nu}
        arrays = {f"{prefix}/{name}": np.array(x) for prefix, tree in trees.items() for name, x in tree.items()}
        return arrays | (self.scale.tensors() if self.scale else {})

    def restore(self, tensors: Tensors, step: int) -> None:
        """Take up a :meth:`state` after ``step`` finished steps; raises InputError where names or shapes differ."""
        shapes = {name: w.shape for name, w in self.weights.items()}
        trees = {}
        for prefix in ("model", "ema", "adam_m", "adam_v"):
            found = strip(tensors, prefix)
            check_names(found, shapes, prefix)
            trees[prefix] = {name: jax.device_put(found[name], self.device) for name in shapes}
        self.weights, self.average = trees["model"], trees["ema"]
        updates = step
        if self.scale:
            self.scale = LossScale.restored(tensors)
            updates = self.scale.updates
        self.moments = self.moments._replace(
            count=jax.device_put(np.int32(updates), self.device), mu=trees["adam_m"], nu=trees["adam_v"]
        )


class Functional:
    """A model as a function of its weights by name: what JAX differentiates and compiles."""

    def __init__(self, model: BandSplitUNet):
        self.definition, state = nnx.split(model)
        self.paths = {".".join(map(str, path)): path for path, _ in nnx.to_flat_state(state)}

    def weights(self, model: BandSplitUNet) -> Tree:
        """Those of ``model``."""
        return {name: weight[...] for name, weight in named_parameters(model).items()}

    def model(self, weights: Tree) -> BandSplitUNet:
        """The model with these weights."""
        state = nnx.from_flat_state({self.paths[name]: weight for name, weight in weights.items()})
        return nnx.merge(self.definition, state)

    def __call__(self, weights: Tree, mixture: jax.Array) -> jax.Array:
        return self.model(weights)(mixture)


def load_weights(model: BandSplitUNet, weights: Mapping[str, np.ndarray], where: str) -> None:
    """Copy ``weights`` into ``model``; raises InputError where names or shapes differ."""
    own = named_parameters(model)
    check_names(weights, {name: tuple(w.shape) for name, w in own.items()}, where)
    for name, weight in own.items():
        weight.set_value(jnp.asarray(weights[name]))
