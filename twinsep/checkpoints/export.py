"""The ``twinsep export`` command: a network as programs that run without this package."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from twinsep.config import BandSplitConfig, ExportFormat, Framework
from twinsep.errors import InputError
from twinsep.model.export import Program
from twinsep.utils.backend import twin
from twinsep.utils.files import atomic_path, write_json

#: Format → the framework that writes it, and the ending of its files.
FORMATS: dict[ExportFormat, tuple[Framework, str]] = {
    "onnx": ("torch", "onnx"),
    "torch": ("torch", "pt2"),
    "stablehlo": ("jax", "stablehlo"),
}


def export(
    checkpoint: Path, to: ExportFormat, out: Path, *, frames: int | None = None, overwrite: bool = False
) -> None:
    """Write the network of ``checkpoint`` into the folder ``out``, as :func:`write_programs` says.

    It takes spectra of ``frames`` frames; by default of any number where format and network allow it
    (:func:`torch_impl.export.takes_any_length`), else of as many as a training example has. Raises :class:`InputError`
    for a network without a band split, a file that exists unless ``overwrite``, and a framework or package that is
    missing.
    """
    framework, _ = FORMATS[to]
    network = twin(framework).load(checkpoint)
    config = network.config
    if not isinstance(config.model, BandSplitConfig):
        raise InputError(f"{checkpoint} is a network without a band split, and twinsep exports networks with one")
    exporter = twin(framework, "export")
    if frames is None and not exporter.takes_any_length(network, to):
        frames = 1 + config.segment_samples // config.model.hop
    if frames is not None and frames < 8:
        raise InputError(f"--frames {frames}: a network halves the frames three times and needs 8 or more")
    names = ["network", "step"] if config.model.latency is not None else ["network"]
    for path in (out / f"{name}.{FORMATS[to][1]}" for name in names):
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists: choose another folder or --overwrite")
    programs = exporter.export(network, to, frames)
    out.mkdir(parents=True, exist_ok=True)
    write_programs(programs, to, out, config.model)


def write_programs(programs: dict[str, Program], to: ExportFormat, out: Path, model: BandSplitConfig) -> None:
    """Write each program, the state that a step begins with as ``step.npz``, and ``signature.json``.

    The signature names the inputs in order, with shapes and types, and the numbers of the STFT that they need. An axis
    of any length is null in a shape.
    """
    for name, program in programs.items():
        with atomic_path(out / f"{name}.{FORMATS[to][1]}") as path:
            path.write_bytes(program.content)
        if name == "step":
            state = io.BytesIO()
            arrays: dict[str, Any] = {key: x for key, x in program.inputs.items() if key != "spectrum"}
            np.savez(state, **arrays)
            with atomic_path(out / "step.npz") as path:
                path.write_bytes(state.getvalue())
    inputs = {
        name: {
            key: {"shape": _shape(x, program.open_axis if key == "spectrum" else None), "type": str(x.dtype)}
            for key, x in program.inputs.items()
        }
        for name, program in programs.items()
    }
    grid = {key: getattr(model, key) for key in ("sample_rate", "n_fft", "hop", "mid_side", "latency")}
    write_json(out / "signature.json", {"format": to, "inputs": inputs, "stft": grid, "targets": list(model.targets)})


def _shape(x: np.ndarray, open_axis: int | None) -> list[int | None]:
    return [None if axis == open_axis else length for axis, length in enumerate(x.shape)]
