"""Program of a worker process: one framework and its measurements, see :mod:`twinsep.benchmarks.process`."""

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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from twinsep.benchmarks import workloads
from twinsep.benchmarks.process import MIB
from twinsep.benchmarks.workloads import noise
from twinsep.config import PRESETS, from_dict, preset
from twinsep.errors import TwinsepError
from twinsep.kernels.threads import cores
from twinsep.utils import provenance
from twinsep.utils.backend import twin, use_threads

#: Environment variables that affect the measurements.
VARIABLES = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "XLA_FLAGS", "NPROC")


class Worker:
    """Measurements of one framework. Times are in seconds, memory sizes in MiB."""

    def __init__(self, framework: str):
        self.framework = framework
        self.watch = MemoryWatch()
        self.computations: dict[str, Callable[[], Any]] = {}

    def open(self, config: dict[str, Any], device: str = "cpu", batch: int = 1) -> dict[str, Any]:
        """Make a trainer and one batch of ``batch`` segments of white noise; return threads and environment."""
        chosen = self.config = from_dict(config)
        self.trainer = twin(self.framework, "train").Trainer(chosen, device)
        shape = (batch, len(chosen.model.targets), 2, chosen.segment_samples)
        mixture, own = noise(batch, 2, chosen.segment_samples, seed=0), noise(*shape, seed=1)
        self.batch = {"mixture": mixture, "target": 0.5 * mixture[:, None] + 0.5 * own}
        self.loss = float("nan")
        return thread_settings(self.framework)

    def step(self) -> float:
        """Time one optimiser step.

        Raises :class:`TwinsepError` if its loss is not finite, because such a step does less.
        """
        t, started = self.config.training, time.perf_counter()
        # The step returns numbers, so its work is done when it returns.
        report = self.trainer.step([self.batch], t.learning_rate, t.ema_decay)
        seconds = time.perf_counter() - started
        self.loss = report["loss"]
        if not np.isfinite([self.loss, report["gradient_norm"]]).all():
            raise TwinsepError(f"the loss in {self.framework} is not finite on noise: lower training.learning_rate")
        return round(seconds, 6)

    def separate(self) -> float:
        """Time the averaged model on one segment."""
        started = time.perf_counter()
        self.trainer.estimate(self.batch["mixture"])
        return round(time.perf_counter() - started, 6)

    def system(self, name: str, kept: bool = True) -> dict[str, Any]:
        """Make the system ``name`` with random weights, and a chunk of noise of its design length.

        The system is a preset or, in PyTorch, one of another package. Without ``kept`` the allocator keeps its default
        settings, as when a user imports that package. Returns parameters, chunk length in seconds and thread settings.
        """
        config = PRESETS[name]
        if kept:
            twin(self.framework)  # sets the allocator
        networks, layers, devices = (
            importlib.import_module(f"{self.framework}_impl.{part}") for part in ("networks", "layers", "devices")
        )
        model = networks.build(config)
        layers.initialise(model, 0, config.model.init)
        self.separator = devices.on_numpy(model, devices.find_device("cpu"))
        samples = config.segment_samples
        self.chunk_of_noise = noise(1, 2, samples, seed=0)
        seconds = samples / config.model.sample_rate
        return {"parameters": model.parameter_count, "chunk_s": seconds, **thread_settings(self.framework)}

    def chunk(self) -> float:
        """Time the separator on its chunk."""
        started = time.perf_counter()
        self.separator(self.chunk_of_noise)
        return round(time.perf_counter() - started, 6)

    def network(self, config: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Make a separator with random weights and a chunk of noise of ``seconds``, and call it once, which compiles.

        Returns the number of parameters, the time of that call and the thread settings.
        """
        chosen, devices = from_dict(config), twin(self.framework, "devices")
        model = twin(self.framework, "networks").build(chosen)
        twin(self.framework, "layers").initialise(model, 0, chosen.model.init)
        self.separator = devices.on_numpy(model, devices.find_device("cpu"))
        self.chunk_of_noise = noise(1, 2, round(seconds * chosen.model.sample_rate), seed=0)
        return {"parameters": model.parameter_count, "first_call_s": self.chunk(), **thread_settings(self.framework)}

    def scans(self) -> list[str]:
        """Return the names of other packages' PyTorch scans that are installed."""
        return twin("torch", "baselines.scans").available()

    def missing_packages(self) -> list[str]:
        """Return the names of other PyTorch systems whose packages are not installed."""
        return twin("torch", "baselines.packages").missing()

    def operations(self, name: str) -> dict[str, float]:
        """Return the operations of a preset in PyTorch, counted per second of audio."""
        return twin("torch", "kernels.operations").model_cost(PRESETS[name])

    def segment_operations(self) -> float:
        """Return the operations of the opened configuration's forward pass on one training segment, in PyTorch."""
        flop = twin("torch", "kernels.operations").model_cost(self.config)["flop_per_audio_second"]
        return flop * self.config.training.segment_seconds

    def last_loss(self) -> float:
        """Return the loss of the last step, which should be close to the other framework's."""
        return self.loss

    def peak(self) -> float:
        """Return the peak resident memory since the previous call of this method, or since the start."""
        peak = self.watch.peak()
        self.watch = MemoryWatch()
        return round(peak, 1)

    def prepare(self, name: str, kind: str, **arguments: Any) -> float:
        """Prepare the workload ``kind`` of :mod:`twinsep.benchmarks.workloads` under ``name`` and time its first call.

        That call compiles.
        """
        compute = getattr(workloads, kind)(self.framework, **arguments)
        self.computations[name] = compute
        return self.call(name)

    def call(self, name: str) -> float:
        """Time one call of the workload ``name``."""
        started = time.perf_counter()
        self.computations[name]()
        return round(time.perf_counter() - started, 6)

    def calls(self, name: str, times: int) -> float:
        """Return the mean time of one of ``times`` calls of the workload ``name``, of which one before is not counted.

        On a GPU they are queued one after the other.
        """
        compute, wait = self.computations[name], workloads.waiter(self.framework)
        wait(compute())
        started, results = time.perf_counter(), None
        for _ in range(times):
            results = compute()
        wait(results)
        return (time.perf_counter() - started) / times

    def device_peak(self) -> float:
        """Return the peak memory on the GPU since the start of this process, in MiB."""
        if self.framework == "torch":
            import torch

            return round(torch.cuda.max_memory_allocated() / MIB, 1)
        import jax

        return round(jax.devices()[0].memory_stats()["peak_bytes_in_use"] / MIB, 1)

    def device_rates(self) -> dict[str, Any]:
        """Measure what the GPU can do, in PyTorch.

        That is bytes moved per second in copies of 1 GiB, and operations per second in products of matrices of 8,192 by
        8,192 in float32 and bfloat16. Returns its name, too.
        """
        import torch

        def seconds(function: Callable[[], Any]) -> float:
            function()
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(10):
                function()
            torch.cuda.synchronize()
            return (time.perf_counter() - started) / 10

        rates: dict[str, Any] = {"device": torch.cuda.get_device_name()}
        x, y = (torch.zeros(1 << 28, device="cuda") for _ in range(2))
        rates["copied_bytes_per_s"] = 8 * x.numel() / seconds(lambda: y.copy_(x))
        for dtype in (torch.float32, torch.bfloat16):
            a = torch.randn(8192, 8192, device="cuda").to(dtype)
            rates[f"flop_per_s {str(dtype).removeprefix('torch.')}"] = (
                2 * 8192**3 / seconds(partial(torch.matmul, a, a))
            )
        return rates

    def peak_of(self, name: str) -> float:
        """Return the peak resident memory during one call of the workload ``name``, above that before it.

        The results are held until the peak is read.
        """
        watch = MemoryWatch()
        results = self.computations[name]()
        peak = watch.peak() - watch.before
        del results
        return round(peak, 1)

    def forget(self) -> None:
        """Drop all prepared workloads."""
        self.computations.clear()

    def layer(self, sizes: dict[str, int]) -> dict[str, Any]:
        """Measure the peak memory of forward and backward of one ``mamba`` layer, above that before the call.

        Compilation comes first and is measured separately: in JAX the whole program, in both frameworks the kernels, by
        a call on eight frames of one sequence (which imports Numba and may read compiled kernels from its cache).
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
        results = compute()  # held, as the caller of a layer would
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
        """Measure the machine's current rates per second in PyTorch in float32.

        They are operations in products of matrices of 2,048 by 2,048, exponentials of 4,194,304 numbers into an
        existing tensor, and bytes moved in copies of 256 MiB.
        """
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
            self.rates()  # warm-up
        found = {}
        for name, (function, amount, times) in self.limits.items():
            started = time.perf_counter()
            for _ in range(times):
                function()
            found[name] = times * amount / (time.perf_counter() - started)
        return found


class MemoryWatch:
    """Peak resident memory of this process in MiB since the watch was made; ``before`` is the memory at that time."""

    def __init__(self) -> None:
        gc.collect()
        # Reuse of freed memory that the C library keeps would go unnoticed; only glibc can return it.
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to what is resident now
            self.source = "VmHWM of /proc/self/status, reset before"
        except OSError:
            self.source = "ru_maxrss, never reset: where an earlier peak was higher, the difference is too small"
        self.before = self.peak()

    def peak(self) -> float:
        """Return the peak so far."""
        if not self.source.startswith("VmHWM"):
            return provenance.peak_memory_mib()
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024  # KiB


def thread_settings(framework: str) -> dict[str, Any]:
    """Return the number of threads of the loaded framework, and the values of :data:`VARIABLES`."""
    threads = cores()  # XLA has one per core
    if framework == "torch":
        import torch

        threads = torch.get_num_threads()
    return {"threads": threads, "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ}}


def main() -> None:
    """Answer requests until the standard input ends, with the framework named by the first argument.

    A second argument limits the number of threads.
    """
    if len(sys.argv) > 2:
        use_threads(int(sys.argv[2]))
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # keeps the output of libraries out of the answers
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
