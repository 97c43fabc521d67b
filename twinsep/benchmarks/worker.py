"""What is asked of a framework in a process of its own, see :mod:`twinsep.benchmarks.process`."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from twinsep.benchmarks import workloads
from twinsep.benchmarks.workloads import noise
from twinsep.config import PRESETS, from_dict, preset
from twinsep.errors import TwinsepError
from twinsep.kernels.threads import cores
from twinsep.utils import provenance
from twinsep.utils.backend import twin

#: Variables of the environment that change what is measured.
VARIABLES = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "MKL_NUM_THREADS", "XLA_FLAGS", "NPROC")


class Worker:
    """One framework, and what is measured of it. Times are in seconds, sizes in MiB."""

    def __init__(self, framework: str):
        self.framework = framework
        self.watch = MemoryWatch()
        self.computations: dict[str, Callable[[], Any]] = {}

    def open(self, config: dict[str, Any], device: str = "cpu") -> dict[str, Any]:
        """Make a trainer and one batch of white noise; gives threads and environment."""
        chosen = self.config = from_dict(config)
        self.trainer = twin(self.framework, "train").Trainer(chosen, device)
        shape = (1, len(chosen.model.targets), 2, chosen.segment_samples)
        mixture, own = noise(1, 2, chosen.segment_samples, seed=0), noise(*shape, seed=1)
        self.batch = {"mixture": mixture, "target": 0.5 * mixture[:, None] + 0.5 * own}
        self.loss = float("nan")
        return thread_settings(self.framework)

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
        self.trainer.estimate(self.batch["mixture"])
        return round(time.perf_counter() - started, 6)

    def system(self, name: str, kept: bool = True) -> dict[str, Any]:
        """Make a separator with random weights, a preset's or, in PyTorch, another package's; and a chunk of noise of
        the length it was made for. Without ``kept`` the process is left as it is when a user imports that package."""
        if name in PRESETS:
            model, devices = twin(self.framework).load(name), twin(self.framework, "devices")
            self.separator = devices.on_numpy(model, devices.find_device("cpu"))
            samples, parameters = PRESETS[name].segment_samples, model.parameter_count
        else:
            name_of_module = "torch_impl.baselines.packages"
            packages = twin("torch", "baselines.packages") if kept else importlib.import_module(name_of_module)
            samples = packages.PACKAGES[name].samples
            self.separator, parameters = packages.on_numpy(name)
        self.chunk_of_noise = noise(1, 2, samples, seed=0)
        return {"parameters": parameters, "chunk_s": samples / 44_100, **thread_settings(self.framework)}

    def chunk(self) -> float:
        """That separator on that chunk."""
        started = time.perf_counter()
        self.separator(self.chunk_of_noise)
        return round(time.perf_counter() - started, 6)

    def network(self, config: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Make the separator of a configuration, with random weights, and a chunk of noise so long; time and largest
        resident size of the first call, which compiles."""
        chosen, devices = from_dict(config), twin(self.framework, "devices")
        model = twin(self.framework, "unet").BandSplitUNet(chosen)
        twin(self.framework, "layers").initialise(model, 0, chosen.model.init)
        self.separator = devices.on_numpy(model, devices.find_device("cpu"))
        self.chunk_of_noise = noise(1, 2, round(seconds * chosen.model.sample_rate), seed=0)
        return {"parameters": model.parameter_count, "first_call_s": self.chunk(), **thread_settings(self.framework)}

    def scans(self) -> list[str]:
        """Other packages' scans that are here, in PyTorch."""
        return twin("torch", "baselines.scans").available()

    def missing_packages(self) -> list[str]:
        """Other systems whose packages are not installed, in PyTorch."""
        return twin("torch", "baselines.packages").missing()

    def operations(self, name: str) -> dict[str, float]:
        """What is counted of a preset in PyTorch."""
        return twin("torch", "kernels.operations").model_cost(PRESETS[name])

    def last_loss(self) -> float:
        """That of the last step: close to the other framework's, as both did the same."""
        return self.loss

    def peak(self) -> float:
        """Largest resident size of the process since the last such question, or since its start."""
        peak = self.watch.peak()
        self.watch = MemoryWatch()
        return round(peak, 1)

    def prepare(self, name: str, kind: str, **arguments: Any) -> float:
        """Make what ``kind`` of :mod:`twinsep.benchmarks.workloads` makes and call it once, which compiles: seconds of
        that. From then on it is known as ``name``."""
        compute = getattr(workloads, kind)(self.framework, **arguments)
        self.computations[name] = compute
        return self.call(name)

    def call(self, name: str) -> float:
        """What was prepared by that name, once."""
        started = time.perf_counter()
        self.computations[name]()
        return round(time.perf_counter() - started, 6)

    def peak_of(self, name: str) -> float:
        """Largest resident size during such a call, above what was resident before it; its results are held."""
        watch = MemoryWatch()
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
        compile_ahead = {"torch": workloads.layer_in_torch, "jax": workloads.layer_in_jax}[self.framework](
            module, *arrays
        )
        del arrays
        compiling = MemoryWatch()
        compute = compile_ahead()
        compiler = compiling.peak() - compiling.before
        running = MemoryWatch()
        results = compute()  # held, as whoever calls the layer holds them
        peak = running.peak() - running.before
        del results
        return {
            "peak_mib": round(peak, 1),
            "compiler_peak_mib": round(compiler, 1),
            "resident_before_mib": round(running.before, 1),
            "source": running.source,
            "setting": thread_settings(self.framework),
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


class MemoryWatch:
    """The largest resident size of this process from here on, in MiB; ``before`` is what it is here."""

    def __init__(self) -> None:
        gc.collect()
        # Freed memory that the C library keeps would be used again unseen; glibc alone has this.
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to what is resident now
            self.source = "VmHWM of /proc/self/status, reset before"
        except OSError:
            self.source = "ru_maxrss, never reset: where an earlier peak was higher, the difference is too small"
        self.before = self.peak()

    def peak(self) -> float:
        """So far."""
        if not self.source.startswith("VmHWM"):
            return provenance.peak_memory_mib()
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024  # KiB


def thread_settings(framework: str) -> dict[str, Any]:
    """On how many threads the loaded framework computes, and what it was told by :data:`VARIABLES`."""
    threads = cores()  # XLA's, one for each
    if framework == "torch":
        import torch

        threads = torch.get_num_threads()
    return {"threads": threads, "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ}}


def main() -> None:
    """Answer until the standard input ends, with the framework that the first argument names."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what a library prints is no answer
        worker = Worker(sys.argv[1])
        for line in sys.stdin:
            method, arguments = json.loads(line)
            try:
                answer = {"value": getattr(worker, method)(**arguments)}
            except TwinsepError as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
