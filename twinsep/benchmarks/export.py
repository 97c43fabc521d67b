"""``twinsep bench export``: exported programs against the networks that they were made from: time and file size."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from twinsep.benchmarks.records import BenchmarkOptions, Record, Row
from twinsep.errors import InputError, TwinsepError
from twinsep.kernels.threads import cores
from twinsep.utils.backend import TWINS, twin
from twinsep.utils.progress import ProgressCallback

PRESET = "tiny-causal"
#: Frames of the spectrum that "network" takes; "step" takes one.
FRAMES = 128
#: Frames after which the deepest level computes again.
PERIOD = 8


def measure(options: BenchmarkOptions, report: ProgressCallback) -> Record:
    """Measure, for the preset :data:`PRESET` with random weights, in a process of each framework:

    seconds of "network" and "step" in the framework itself and in each program that it exports, and their bytes.
    ``not_installed`` names the formats whose packages are not installed.
    """
    found: dict[str, Any] = {}
    for done, framework in enumerate(TWINS, 1):
        found[framework] = _in_process(framework, options)
        report(done, len(TWINS))
    return {
        "preset": PRESET,
        "frames": FRAMES,
        "networks": {framework: x["networks"] for framework, x in found.items()},
        "programs": [program for x in found.values() for program in x["programs"]],
        "not_installed": [form for x in found.values() for form in x["not_installed"]],
    }


def rows(record: Record) -> list[Row]:
    """Format the record as table rows: times of the networks, and of the programs relative to PyTorch's."""
    torch = record["networks"]["torch"]
    table: list[Row] = [
        (f"{name} (ms)", {framework: 1000 * x[name] for framework, x in record["networks"].items()}) for name in torch
    ]
    for program in record["programs"]:
        what, framework = f"{program['format']}, {program['name']}", program["framework"]
        table.append((f"{what}: time ÷ PyTorch's", {framework: program["seconds"] / torch[program["name"]]}))
        table.append((f"{what}: file (MB)", {framework: program["bytes"] / 1e6}))
    return table


def _in_process(framework: str, options: BenchmarkOptions) -> Record:
    command = [sys.executable, "-m", "twinsep.benchmarks.export", framework]
    done = subprocess.run(
        [*command, str(options.warmups), str(options.repetitions)], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise TwinsepError(f"the export with {framework} ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def main(framework: str, warmups: int, repetitions: int) -> None:
    """Entry point of that process: print the record as JSON."""
    network, exporter = twin(framework).load(PRESET), twin(framework, "export")
    spectrum = np.zeros((1, 2, network.config.model.n_bins, FRAMES, 2), np.float32)
    inputs = {"network": [spectrum], "step": [spectrum[:, :, :, 0], *map(np.asarray, exporter.Step(network).first)]}
    programs: list[Record] = []
    missing: list[str] = []
    for form in exporter.FORMATS:
        try:
            exported = exporter.export(network, form, FRAMES)
            run = {name: _RUNNERS[form](program.content, [*program.inputs]) for name, program in exported.items()}
        except (InputError, ModuleNotFoundError):
            missing.append(form)
            continue
        for name, program in exported.items():
            seconds = _median(run[name], inputs[name], warmups, repetitions)
            size = len(program.content)
            programs.append({"framework": framework, "format": form, "name": name, "seconds": seconds, "bytes": size})
    own = {"torch": _own_torch, "jax": _own_jax}[framework](network, exporter)
    networks = {name: _median(run, inputs[name], warmups, repetitions) for name, run in own.items()}
    if framework == "torch":
        networks["step"] /= PERIOD
    print(json.dumps({"networks": networks, "programs": programs, "not_installed": missing}))


def _median(run: Callable[..., Any], inputs: list[np.ndarray], warmups: int, repetitions: int) -> float:
    """Median seconds of a call, after one call that compiles and ``warmups`` more."""
    taken = []
    for _ in range(1 + warmups + repetitions):
        began = time.perf_counter()
        run(*inputs)
        taken.append(time.perf_counter() - began)
    return float(np.median(taken[1 + warmups :]))


def _own_torch(network: Any, exporter: Any) -> dict[str, Callable[..., Any]]:
    import torch

    levels = network.start().levels

    @torch.inference_mode()
    def step(frame: np.ndarray, *_state: np.ndarray) -> Any:
        # As in a stream, where the host knows which frames reach the deeper levels; a program computes them always.
        nonlocal levels
        for _ in range(PERIOD):
            x = exporter.features(network, torch.from_numpy(frame)[:, :, :, None])[:, :, 0]
            x, levels = network.step(1, x, levels, [])
            y = exporter.masks(network, x[:, :, None])
        return y

    return {"network": _on_tensors(exporter.Masks(network)), "step": step}


def _own_jax(network: Any, exporter: Any) -> dict[str, Callable[..., Any]]:
    import jax

    made = {"network": jax.jit(exporter.Masks(network)), "step": jax.jit(exporter.Step(network))}
    return {name: lambda *inputs, run=run: jax.block_until_ready(run(*inputs)) for name, run in made.items()}


def _on_tensors(module: Any) -> Callable[..., Any]:
    import torch

    @torch.inference_mode()
    def run(*inputs: np.ndarray) -> Any:
        return module(*(torch.from_numpy(x) for x in inputs))

    return run


def _run_onnx(content: bytes, names: list[str]) -> Callable[..., Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    session = onnxruntime.InferenceSession(content, options)
    used = {found.name for found in session.get_inputs()}
    return lambda *inputs: session.run(None, {k: x for k, x in zip(names, inputs, strict=True) if k in used})


def _run_torch(content: bytes, _names: list[str]) -> Callable[..., Any]:
    import torch

    return _on_tensors(torch.export.load(io.BytesIO(content)).module())


def _run_stablehlo(content: bytes, _names: list[str]) -> Callable[..., Any]:
    import jax
    import jax.export

    run = jax.jit(jax.export.deserialize(bytearray(content)).call)
    return lambda *inputs: jax.block_until_ready(run(*inputs))


_RUNNERS = {"onnx": _run_onnx, "torch": _run_torch, "stablehlo": _run_stablehlo}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
