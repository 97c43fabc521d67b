"""A framework in a fresh process of its own, asked in lines of JSON: for ``twinsep bench``.

Between questions a worker waits for its standard input and does nothing. It holds one framework, the process that asks
holds none.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from twinsep import provenance
from twinsep.config import PRESETS, from_dict, preset
from twinsep.errors import InputError, TwinsepError
from twinsep.frameworks import twin

MIB = 1 << 20
#: Variables of the environment that change what is measured.
VARIABLES = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "MKL_NUM_THREADS", "XLA_FLAGS", "NPROC", "JAX_COMPILATION_CACHE_DIR")


class Worker:
    """The process, as a context: on leaving, for whatever reason, it is killed."""

    def __init__(self, framework: str):
        self.framework = framework
        # On a machine with an accelerator JAX too has to choose what is fastest on the CPU.
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "twinsep.workers", framework],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            # Ctrl-C reaches the asking process alone, which then kills this one: no second traceback.
            start_new_session=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        # Leaving closes the pipes, one of which may hold a question to a process that has ended, and waits.
        with contextlib.suppress(BrokenPipeError), self.process:
            self.process.kill()

    def ask(self, method: str, **arguments: Any) -> Any:
        """What ``method`` of the worker's :class:`Subject` returns.

        Raises :class:`InputError` where that does, and :class:`TwinsepError` where the process has ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # that it has ended is told below
            self.process.stdin.write(json.dumps([method, arguments]) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            why = f"signal {-status}, perhaps for want of memory" if status < 0 else f"status {status}, as said above"
            raise TwinsepError(f"the process of {self.framework} ended during {method!r} ({why})")
        answer = json.loads(line)
        if "error" in answer:
            raise InputError(answer["error"])
        return answer["value"]


def main() -> None:
    """Answer until the standard input ends, with the framework that the first argument names."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what a library prints is no answer
        subject = Subject(sys.argv[1])
        for line in sys.stdin:
            method, arguments = json.loads(line)
            try:
                answer = {"value": getattr(subject, method)(**arguments)}
            except TwinsepError as error:
                answer = {"error": str(error)}
            print(json.dumps(answer), file=answers, flush=True)


class Subject:
    """One framework, and what is measured of it. Times are in seconds, sizes in MiB."""

    def __init__(self, framework: str):
        self.framework = framework
        self.watch = Watch()

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

    def system(self, name: str) -> dict[str, Any]:
        """Make a separator with random weights, a preset's or, in PyTorch, another package's; and a chunk of noise."""
        if name in PRESETS:
            model, layers = twin(self.framework).load(name), twin(self.framework, "layers")
            self.separator = layers.on_arrays(model, layers.device_named("cpu"))
            samples, parameters = PRESETS[name].segment_samples, model.parameter_count
        else:
            packages = twin(self.framework, "baselines.packages")
            samples = packages.PACKAGES[name].samples
            self.separator, parameters = packages.on_arrays(name)
        self.chunk_of_noise = noise(1, 2, samples, seed=0)
        return {"parameters": parameters, "chunk_s": samples / 44_100, **setting(self.framework)}

    def chunk(self) -> float:
        """That separator on that chunk."""
        started = time.perf_counter()
        self.separator(self.chunk_of_noise)
        return round(time.perf_counter() - started, 6)

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

    def scan(self, shape: list[int], way: str, backward: bool, repetitions: int) -> float:
        """Least time of ``repetitions`` calls of the selective scan at (b, l, e, n), after one that compiles.

        ``way`` is "default", "definition", or one of those that JAX has in chunks; ``backward`` adds all gradients.
        """
        module = twin(self.framework, "scan")
        named = {"default": module.selective_scan, "definition": module.selective_scan_sequential}
        function = named.get(way) or partial(module.selective_scan_chunked, frames=way)
        b, l, e, n = shape
        u, z, dy = (noise(b, l, e, seed=seed) for seed in range(3))
        B, C = noise(b, l, n, seed=3), noise(b, l, n, seed=4)
        delta, A = np.abs(noise(b, l, e, seed=5)), -1 - np.abs(noise(e, n, seed=6))
        prepare = {"torch": _scan_in_torch, "jax": _scan_in_jax}[self.framework]
        compute = prepare(function, [u, delta, A, B, C, noise(e, seed=7), z], dy, backward)
        times = []
        for _ in range(1 + repetitions):
            started = time.perf_counter()
            compute()
            times.append(time.perf_counter() - started)
        return round(min(times[1:]), 6)

    def layer(self, sizes: dict[str, int]) -> dict[str, Any]:
        """Peak memory of forward and backward of one ``mamba`` mixer layer, above what was resident before.

        Compiled ahead, which is measured apart: in JAX the whole program, in PyTorch the kernels, by a call on one
        sequence of eight frames (Numba is imported then, and reads them from the disk where an earlier run left them).
        """
        mixer = {"kind": "mamba", **{key: sizes[key] for key in ("d_state", "expand")}}
        config = preset("paper").override({"model": {"d_model": sizes["d_model"], "mixer": mixer}})
        shape = (sizes["sequences"], sizes["length"], sizes["d_model"])
        arrays = noise(*shape, seed=0), noise(*shape, seed=1)
        module = twin(self.framework, "mixers").build(config.model)
        twin(self.framework, "layers").initialise(module, 0)
        prepare = {"torch": _layer_in_torch, "jax": _layer_in_jax}[self.framework](module, *arrays)
        del arrays
        compiling = Watch()
        compute = prepare()
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

    def roofline(self) -> dict[str, float]:
        """What the machine reaches in PyTorch in float32, the best of several: operations in products of matrices of
        2,048 by 2,048, exponentials of 4,194,304 numbers into a tensor that is there, bytes moved in copies."""
        import torch

        a, b, c = (torch.full((2048, 2048), 0.5) for _ in range(3))
        x, y = torch.rand(1 << 22), torch.empty(1 << 22)
        large, other = torch.zeros(1 << 26), torch.empty(1 << 26)
        work = {
            "matrix_flop_per_s": (lambda: torch.mm(a, b, out=c), 2 * 2048**3),
            "exponentials_per_s": (lambda: torch.exp(x, out=y), x.numel()),
            "copied_bytes_per_s": (lambda: other.copy_(large), 8 * large.numel()),
        }
        return {name: amount / _least(function) for name, (function, amount) in work.items()}


def _least(function: Callable[[], Any], repetitions: int = 15) -> float:
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def _layer_in_torch(module: Any, x: np.ndarray, dy: np.ndarray) -> Callable[[], Callable[[], Any]]:
    import torch

    x_t, dy_t = torch.from_numpy(x).requires_grad_(), torch.from_numpy(dy)

    def both(x: Any, dy: Any) -> Any:
        y = module(x)
        return y, torch.autograd.grad(y, [x, *module.parameters()], dy)

    def prepare() -> Callable[[], Any]:
        both(x_t[:1, :8], dy_t[:1, :8])
        return lambda: both(x_t, dy_t)

    return prepare


def _layer_in_jax(module: Any, x: np.ndarray, dy: np.ndarray) -> Callable[[], Callable[[], Any]]:
    import jax
    from flax import nnx

    definition, weights = nnx.split(module)
    arguments = jax.block_until_ready((weights, *jax.device_put((x, dy))))

    def both(weights: Any, x: Any, dy: Any) -> Any:
        y, pull = jax.vjp(lambda weights, x: nnx.merge(definition, weights)(x), weights, x)
        return y, pull(dy)

    def prepare() -> Callable[[], Any]:
        compiled = jax.jit(both).lower(*arguments).compile()
        return lambda: jax.block_until_ready(compiled(*arguments))

    return prepare


def _scan_in_torch(function: Any, arrays: list[np.ndarray], dy: np.ndarray, backward: bool) -> Callable[[], Any]:
    import torch

    inputs, dy_t = [torch.from_numpy(x).requires_grad_(backward) for x in arrays], torch.from_numpy(dy)
    return lambda: torch.autograd.grad(function(*inputs), inputs, dy_t) if backward else function(*inputs)


def _scan_in_jax(function: Any, arrays: list[np.ndarray], dy: np.ndarray, backward: bool) -> Callable[[], Any]:
    import jax

    inputs, dy_j = jax.block_until_ready(jax.device_put((arrays, dy)))
    forward = jax.jit(function)
    both = jax.jit(lambda inputs, dy: jax.vjp(function, *inputs)[1](dy))
    return lambda: jax.block_until_ready(both(inputs, dy_j) if backward else forward(*inputs))


class Watch:
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


def setting(framework: str) -> dict[str, Any]:
    """On how many threads the loaded framework computes, and what it was told by :data:`VARIABLES`."""
    threads = cores()  # XLA's, one for each
    if framework == "torch":
        import torch

        threads = torch.get_num_threads()
    return {"threads": threads, "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ}}


def cores() -> int:
    """Cores that this process may run on, and what it starts."""
    with contextlib.suppress(AttributeError):  # Linux alone binds processes to cores
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def noise(*shape: int, seed: int) -> np.ndarray:
    """White noise of 0.1 rms in float32."""
    return (0.1 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


if __name__ == "__main__":
    main()
