"""One optimiser step: loss, gradient, clipping, AdamW, exponential moving average (EMA) of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import torch

from torch_impl.devices import on_numpy
from torch_impl.distributed import Workers
from torch_impl.kernels import cpu_kernels
from torch_impl.layers import (
    Module,
    Parameter,
    initialise,
    named_parameters,
    named_statistics,
    named_weights,
    set_training,
)
from torch_impl.networks import build
from twinsep import losses
from twinsep.checkpoints import Tensors, check_names, strip
from twinsep.config import Config
from twinsep.errors import InputError
from twinsep.training.loss_scale import LossScale

#: Compute types by name; float32 needs no cast.
COMPUTE_TYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Trainer:
    """A model, the EMA of its weights and its optimiser on one device; :mod:`twinsep.training` does everything else."""

    def __init__(self, config: Config, device: str = "cpu", devices: int = 1):
        self.config, self.workers = config, Workers(device, devices)
        self.device = self.workers.device
        self.model = build(config)
        if self.workers.size > 1 and named_statistics(self.model):
            raise InputError("a system with batch norms is trained by one worker: its statistics are those of a batch")
        initialise(self.model, config.training.seed, config.model.init)
        set_training(self.model.to(self.device), True)
        #: The model; with several workers its backward pass averages the gradients over them.
        self.parallel = self.workers.parallel(self.model)
        self.average = build(config).to(self.device).requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        # Kept, because to list hundreds of weights takes as long as an operation on all of them.
        self.weights: list[torch.Tensor] = list(self.model.parameters())
        self.averages: list[torch.Tensor] = list(self.average.parameters())
        #: The model with averaged weights, NumPy (b, 2, s) -> (b, stems, 2, s).
        self.estimate = on_numpy(self.average, self.device)
        self.compute_type = COMPUTE_TYPES[config.training.precision]
        #: Loss scale, for float16 only.
        self.scale = LossScale() if self.compute_type == torch.float16 else None
        #: Steps so far, skipped ones included.
        self.steps = 0
        weights = named_parameters(self.model)
        self.optimiser = _adamw(weights, config)
        self.moments = {name: self.optimiser.state[weight] for name, weight in weights.items()}
        for name, weight in weights.items():
            self.moments[name].update(
                step=torch.zeros((), device=self.device),
                exp_avg=torch.zeros_like(weight),
                exp_avg_sq=torch.zeros_like(weight),
            )

    def step(
        self, batches: Sequence[Mapping[str, np.ndarray]], learning_rate: float, ema_decay: float
    ) -> dict[str, float]:
        """Update the weights once, with the gradient averaged over ``batches``.

        Returns the "loss", its terms, the "gradient_norm" before clipping and, in float16, the "loss_scale". If the
        loss or the norm is not finite, weights, statistics and optimiser stay as they are; only the loss scale changes.
        """
        # No module here draws random numbers; a module added by a user then draws the same ones after a resume.
        torch.manual_seed(np.random.SeedSequence([self.config.training.seed, self.steps]).generate_state(1).item())
        self.steps += 1
        self.optimiser.zero_grad(set_to_none=True)
        scale = self.scale.scale if self.scale else 1.0
        statistics = named_statistics(self.model)
        before = {name: x.clone() for name, x in statistics.items()}
        report: dict[str, float] = {}
        for number, batch in enumerate(batches, 1):
            # Gradients are averaged over workers once, after the last batch.
            adding = getattr(self.parallel, "no_sync", nullcontext)
            with adding() if number < len(batches) else nullcontext():
                total, terms = self.loss(self.parallel, batch)
                (total * (scale / len(batches))).backward()
            values = {"loss": total, **terms}
            # Together: each reduction over the workers waits for all of them.
            means = self.workers.mean(torch.stack([value.detach() for value in values.values()])).tolist()
            for name, value in zip(values, means, strict=True):
                report[name] = report.get(name, 0.0) + value / len(batches)
        gradients = [w.grad for w in self.weights if w.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))).item() / scale
        report["gradient_norm"] = norm
        finite = bool(np.isfinite([report["loss"], norm]).all())
        if self.scale:
            report["loss_scale"] = scale
            self.scale = self.scale.after(finite)
        if not finite:
            for name, x in statistics.items():
                x.copy_(before[name])
            return report
        # g · min(1, c/‖g‖): PyTorch and optax each add an epsilon of their own.
        torch._foreach_mul_(gradients, min(1.0, self.config.training.clip_norm / max(norm, 1e-30)) / scale)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.optimiser.step()
        torch._foreach_lerp_(self.averages, self.weights, 1 - ema_decay)
        for name, x in named_statistics(self.average).items():
            x.lerp_(statistics[name], 1 - ema_decay)
        return report

    def loss(self, model: Module, batch: Mapping[str, np.ndarray]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the configured loss on one batch and its terms.

        The network runs in the compute type, but its norms, scan states, softmax and STFT in float32; the losses in
        float64.
        """
        mixture, target = (torch.from_numpy(batch[key]).to(self.device) for key in ("mixture", "target"))
        with torch.autocast(
            self.device.type, self.compute_type, enabled=self.compute_type is not None, cache_enabled=False
        ):
            estimate = model(mixture)
        stems = len(self.config.model.targets)  # a residual stem is derived, not trained
        kernels = cpu_kernels() if self.device.type == "cpu" else None
        estimate = estimate[:, :stems].to(target.dtype)
        mean = self.workers.mean
        return losses.mix(estimate, target, mixture=mixture, config=self.config, kernels=kernels, mean=mean)

    @torch.no_grad()
    def state(self) -> Tensors:
        """Return everything needed to resume, as NumPy arrays named as in a checkpoint."""
        out = {f"model/{name}": w for name, w in named_weights(self.model).items()}
        out |= {f"ema/{name}": w for name, w in named_weights(self.average).items()}
        out |= {f"adam_m/{name}": m["exp_avg"] for name, m in self.moments.items()}
        out |= {f"adam_v/{name}": m["exp_avg_sq"] for name, m in self.moments.items()}
        arrays = {name: tensor.detach().cpu().numpy().copy() for name, tensor in out.items()}
        return arrays | (self.scale.tensors() if self.scale else {})

    def start_from(self, weights: Tensors, where: str) -> None:
        """Take weights and their average from ``weights``; raises InputError, naming ``where``, if they do not fit."""
        for model in (self.model, self.average):
            load_weights(model, weights, where)

    @torch.no_grad()
    def restore(self, tensors: Tensors, step: int) -> None:
        """Resume from a :meth:`state` after ``step`` finished steps; raises InputError if names or shapes differ."""
        load_weights(self.model, strip(tensors, "model"), "model")
        load_weights(self.average, strip(tensors, "ema"), "ema")
        self.steps = updates = step
        if self.scale:
            self.scale = LossScale.restored(tensors)
            updates = self.scale.updates
        for prefix, key in (("adam_m", "exp_avg"), ("adam_v", "exp_avg_sq")):
            for name, value in strip(tensors, prefix).items():
                self.moments[name][key].copy_(torch.from_numpy(value))
                self.moments[name]["step"].fill_(updates)


def make_deterministic() -> None:
    """Choose deterministic algorithms; PyTorch warns of every operation that has none."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


@torch.no_grad()
def load_weights(model: Module, weights: Mapping[str, np.ndarray], where: str) -> None:
    """Copy ``weights`` into ``model``; raises InputError, naming ``where``, if names or shapes differ."""
    own = named_weights(model)
    check_names(weights, {name: tuple(w.shape) for name, w in own.items()}, where)
    for name, weight in own.items():
        weight.copy_(torch.from_numpy(weights[name]))


def _adamw(weights: Mapping[str, Parameter], config: Config) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), with weight decay on parameters with ``decay``."""
    t = config.training
    groups = [
        {"params": [w for w in weights.values() if w.decay == decay], "weight_decay": t.weight_decay * decay}
        for decay in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=t.learning_rate, betas=(t.beta1, t.beta2), eps=t.eps, fused=True)
