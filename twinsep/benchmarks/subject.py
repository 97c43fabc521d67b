"""What is asked of a framework in a process of its own, see :mod:`twinsep.benchmarks.workers`."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from twinsep.benchmarks import prepared
from twinsep.benchmarks.workers import Watch, noise, setting
from twinsep.config import PRESETS, from_dict, preset
from twinsep.errors import TwinsepError
from twinsep.frameworks import twin


class Subject:
    """One framework, and what is measured of it. Times are in seconds, sizes in MiB."""

    def __init__(self, framework: str):
        self.framework = framework
        self.watch = Watch()
        self.computations: dict[str, Callable[[], Any]] = {}

    def open(self, config: dict[str, Any], device: str = "cpu") -> dict[str, Any]:
        """Make a trainer and one batch of white noise; gives threads and environment."""
        chosen = self.config = from_dict(config)
        self.trainer = twin(self.framework, "train").Trainer(chosen, device)
        shape = (1, len(chosen.model.targets), 2, chosen.segment_samples)
        mixture, own = noise(1, 2, chosen.segment_samples, seed=0), noise(*shape, seed=1)
        self.batch = {"mixture": mixture, "target": 0.5 * mixture[:, None] + 0.5 * own}
        self.loss = float("nan")
        return setting(self.framework)

    def step(self) -> float:
        """One optimiser step; raises :class:`TwinsepError` where its loss is not finite, as it then does less."""
        t, started = self.config.training, time.perf_counter()
        # Numbers come back, so the work is done when the call is.
        report = self.trainer.step([self.batch], t.learning_rate, t.ema_decay)
        seconds = time.perf_counter() - started
        self.loss = report["loss"]
        if not np.isfinite([self.loss, report["gradient_norm"]]).all():
            raise TwinsepError(f"the loss in {self.framework} is not finite on noise; choose a smaller learning rate")
        return round(seconds, 6)

    def separate(self) -> float:
        """The averaged model on one segment."""
        started = time.perf_counter()
        self.trainer.separate(self.batch["mixture"])
        return round(time.perf_counter() - started, 6)

    def system(self, name: str, kept: bool = True) -> dict[str, Any]:
        """Make a separator with random weights, a preset's or, in PyTorch, another package's; and a chunk of noise of
        the length it was made for. Without ``kept`` the process is left as it is when a user imports that package."""
        if name in PRESETS:
            model, layers = twin(self.framework).load(name), twin(self.framework, "layers")
            self.separator = layers.on_arrays(model, layers.device_named("cpu"))
            samples, parameters = PRESETS[name].segment_samples, model.parameter_count
        else:
            name_of_module = "torch_impl.baselines.packages"
            packages = twin("torch", "baselines.packages") if kept else importlib.import_module(name_of_module)
            samples = packages.PACKAGES[name].samples
            self.separator, parameters = packages.on_arrays(name)
        self.chunk_of_noise = noise(1, 2, samples, seed=0)
        return {"parameters": parameters, "chunk_s": samples / 44_100, **setting(self.framework)}

    def chunk(self) -> float:
        """That separator on that chunk."""
        started = time.perf_counter()
        self.separator(self.chunk_of_noise)
        return round(time.perf_counter() - started, 6)

    def network(self, config: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Make the separator of a configuration, with random weights, and a chunk of noise so long; time and largest
        resident size of the first call, which compiles."""
        chosen, layers = from_dict(config), twin(self.framework, "layers")
        model = twin(self.framework, "unet").Separator(chosen)
        layers.initialise(model, 0)
        self.separator = layers.on_arrays(model, layers.device_named("cpu"))
        self.chunk_of_noise = noise(1, 2, round(seconds * chosen.model.sample_rate), seed=0)
        return {"parameters": model.parameter_count, "first_call_s": self.chunk(), **setting(self.framework)}

    def scans(self) -> list[str]:
        """Other packages' scans that are here, in PyTorch."""
        return twin("torch", "baselines.scans").available()

    def missing_packages(self) -> list[str]:
        """Other systems whose packages are not installed, in PyTorch."""
        return twin("torch", "baselines.packages").missing()

    def operations(self, name: str) -> dict[str, float]:
        """What is counted of a preset in PyTorch."""
        return twin("torch", "kernels.operations").of_model(PRESETS[name])

    def last_loss(self) -> float:
        """That of the last step: close to the other framework's, as both did the same."""
        return self.loss

    def peak(self) -> float:
        """Largest resident size of the process since the last such question, or since its start."""
        peak = self.watch.peak()
        self.watch = Watch()
        return round(peak, 1)

    def prepare(self, name: str, kind: str, **arguments: Any) -> float:
        """Make what ``kind`` of :mod:`twinsep.benchmarks.prepared` makes and call it once, which compiles: seconds of
        that. From then on it is known as ``name``."""
        compute = getattr(prepared, kind)(self.framework, **arguments)
        self.computations[name] = compute
        return self.call(name)

    def call(self, name: str) -> float:
        """What was prepared by that name, once."""
        started = time.perf_counter()
        self.computations[name]()
        return round(time.perf_counter() - started, 6)

    def peak_of(self, name: str) -> float:
        """Largest resident size during such a call, above what was resident before it; its results are held."""
        watch = Watch()
        results = self.computations[name]()
        peak = watch.peak() - watch.before
        del results
        return round(peak, 1)

    def forget(self) -> None:
        """All that was prepared."""
        self.computations.clear()

    def layer(self, sizes: dict[str, int]) -> dict[str, Any]:
        """Peak memory of forward and backward of one ``mamba`` mixer layer, above what was resident before.

        Compiled ahead, which is measured apart: in JAX the whole program, in both the kernels, by a call on eight
        frames of one sequence (Numba is imported then, and reads them from the disk where an earlier run left them).
        """
        mixer = {"kind": "mamba", **{key: sizes[key] for key in ("d_state", "expand")}}
        config = preset("paper").override({"model": {"d_model": sizes["d_model"], "mixer": mixer}})
        shape = (sizes["sequences"], sizes["length"], sizes["d_model"])
        arrays = noise(*shape, seed=0), noise(*shape, seed=1)
        module = twin(self.framework, "mixers").build(config.model)
        twin(self.framework, "layers").initialise(module, 0)
        compile_ahead = {"torch": prepared.layer_in_torch, "jax": prepared.layer_in_jax}[self.framework](
            module, *arrays
        )
        del arrays
        compiling = Watch()
        compute = compile_ahead()
        compiler = compiling.peak() - compiling.before
        running = Watch()
        results = compute()  # held, as whoever calls the layer holds them
        peak = running.peak() - running.before
        del results
        return {
            "peak_mib": round(peak, 1),
            "compiler_peak_mib": round(compiler, 1),
            "resident_before_mib": round(running.before, 1),
            "source": running.source,
            "setting": setting(self.framework),
        }

    def rates(self) -> dict[str, float]:
        """What the machine does a second in PyTorch in float32 just now: operations in products of matrices of 2,048 by
        2,048, exponentials of 4,194,304 numbers into a tensor that is there, bytes moved in copies of 256 MiB."""
        import torch

        if not hasattr(self, "limits"):
            a, b, c = (torch.full((2048, 2048), 0.5) for _ in range(3))
            x, y = torch.rand(1 << 22), torch.empty(1 << 22)
            large, other = torch.zeros(1 << 26), torch.zeros(1 << 26)
            self.limits: dict[str, tuple[Callable[[], Any], int, int]] = {
                "matrix_flop_per_s": (lambda: torch.mm(a, b, out=c), 2 * 2048**3, 5),
                "exponentials_per_s": (lambda: torch.exp(x, out=y), x.numel(), 20),
                "copied_bytes_per_s": (lambda: other.copy_(large), 8 * large.numel(), 2),
            }
            self.rates()  # the first calls are slower
        found = {}
        for name, (function, amount, times) in self.limits.items():
            started = time.perf_counter()
            for _ in range(times):
                function()
            found[name] = times * amount / (time.perf_counter() - started)
        return found
