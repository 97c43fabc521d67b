"""``twinsep export``: the programs run without this package and give what both twins give."""

import io
import json
import subprocess
import sys
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_impl
import torch_impl
from twinsep import checkpoints
from twinsep.checkpoints import Checkpoint, export
from twinsep.config import preset
from twinsep.errors import InputError
from twinsep.model import initializers

FRAMES = 9
BAR = 1e-4
SMALL = {"d_model": 8, "n_heads": 2, "bands": "vocal18", "memory_tokens": [3, 2, 2, 1]}
CASES = {
    "causal": ("tiny-causal", {"mixer": {"kind": "conv", "kernel": 3}, "attention_window": 3}),
    # One level, because each scan is traced for seconds.
    "causal scan": ("tiny-causal", {"mixer": {"kind": "mamba", "d_state": 4}, "levels": 1}),
    "not causal": (
        "tiny",
        {"mixer": {"kind": "mamba2", "d_state": 4, "head_dim": 8}, "mask": "glu", "init": "default", "levels": 1},
    ),
    "any length": ("tiny", {"mixer": {"kind": "transformer"}, "init": "default"}),
    "any length, scan": ("tiny", {"mixer": {"kind": "mamba", "d_state": 4, "directions": 1}, "levels": 1}),
    "any length, reference": ("tiny", {"mixer": {"kind": "conv", "kernel": 3}, "memory_alignment": "reference"}),
}
ANY_LENGTH = [case for case in CASES if case.startswith("any length")]
FIXED = [case for case in CASES if case not in ANY_LENGTH]


def checkpoint(case, folder):
    """A checkpoint of small weights, and its configuration."""
    name, options = CASES[case]
    config = preset(name).override({"model": SMALL}).override({"model": options})
    with torch.device("meta"):
        own = torch_impl.layers.named_parameters(torch_impl.networks.build(config))
    drawn = {n: initializers.draw(n, w.shape, w.initialiser, 0).astype(np.float32) for n, w in own.items()}
    both = {f"{prefix}/{name}": w for prefix in ("model", "ema") for name, w in drawn.items()}
    checkpoints.write(folder / "model.safetensors", Checkpoint(config, both))
    return folder / "model.safetensors"


def spectrum(bins, frames=FRAMES):
    """A spectrum of quiet noise, (1, 2, f, t, 2)."""
    return (10 * np.random.default_rng(0).standard_normal((1, 2, bins, frames, 2))).astype(np.float32)


def masks_of_torch(path, x):
    """The masks that PyTorch computes from a complex spectrum."""
    model = torch_impl.load(path)
    with torch.inference_mode():
        mask = model.mask_head(model.network(model.band_split(torch.view_as_complex(torch.from_numpy(x)))))
    return torch.view_as_real(mask).numpy()


def masks_of_jax(path, x):
    """The masks that JAX computes."""
    model = jax_impl.load(path)

    @jax.jit
    def masks(x):
        mask = model.mask_head(model.network(model.band_split(x[..., 0] + 1j * x[..., 1])))
        return jnp.stack([mask.real, mask.imag], -1)

    return np.asarray(masks(x))


def exported(path, to, folder, *options):
    """Run the command, in a process of its own, because the checks of shapes in tests hinder the tracers."""
    command = [sys.executable, "-m", "twinsep.cli", "export", str(path), "--to", to, "--out", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


#: A program that runs several command lines of twinsep.
EXPORTS = """
import gc, json, sys
from twinsep import cli

gc.set_threshold(50_000, 20, 20)  # as in the tests: tracers make many small objects
for line in json.loads(sys.argv[1]):
    sys.argv = ["twinsep", *line]
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            raise
"""


@pytest.fixture(scope="module")
def in_pytorchs_format(tmp_path_factory):
    """Case -> folder of its checkpoint and programs; one process exports all, because importing takes long."""
    folders = {case: tmp_path_factory.mktemp("torch") for case in FIXED}
    lines = [
        ["export", str(checkpoint(case, folder)), "--to", "torch", "--out", str(folder), "--frames", str(FRAMES)]
        for case, folder in folders.items()
    ]
    command = [sys.executable, "-c", EXPORTS, json.dumps(lines)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return folders


def stepped(run, folder, x):
    """The masks of all frames by the program ``run`` of one frame."""
    with np.load(folder / "step.npz") as file:
        state = [file[f"state_{i}"] for i in range(len(file.files))]
    out = []
    for t in range(FRAMES):
        mask, *state = run(np.ascontiguousarray(x[:, :, :, t]), *state)
        out.append(mask)
    return np.stack(out, -2)


@lru_cache(maxsize=1)
def wanted_masks(path):
    """The masks of both twins for :func:`spectrum`."""
    return [masks(path, spectrum(1025)) for masks in (masks_of_torch, masks_of_jax)]


def assert_close(found, path):
    for wanted, twin in zip(wanted_masks(path), ("PyTorch", "JAX"), strict=True):
        assert np.abs(found - wanted).max() <= BAR * np.abs(wanted).max(), twin


@pytest.mark.parametrize("case", FIXED)
def test_pytorchs_format(case, in_pytorchs_format):
    folder = in_pytorchs_format[case]
    path, x = folder / "model.safetensors", spectrum(1025)

    def program(name):
        loaded = torch.export.load(io.BytesIO((folder / f"{name}.pt2").read_bytes())).module()

        def run(*inputs):
            found = loaded(*(torch.from_numpy(np.array(y)) for y in inputs))
            return [y.numpy() for y in (found if isinstance(found, tuple) else [found])]

        return run

    assert_close(program("network")(x)[0], path)
    causal = case.startswith("causal")
    assert (folder / "step.pt2").exists() == causal
    if causal:
        assert_close(stepped(program("step"), folder, x), path)
    found = json.loads((folder / "signature.json").read_text())
    assert found["inputs"]["network"] == {"spectrum": {"shape": [1, 2, 1025, FRAMES, 2], "type": "float32"}}
    assert found["inputs"].get("step", {}).get("spectrum", {}).get("shape") == ([1, 2, 1025, 2] if causal else None)
    assert (found["format"], found["stft"]["n_fft"]) == ("torch", 2048)
    assert found["stft"]["latency"] == (2048 if causal else None)


@pytest.mark.parametrize("case", FIXED)
def test_onnx(case, tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = checkpoint(case, tmp_path)
    exported(path, "onnx", tmp_path, "--frames", str(FRAMES))
    x = spectrum(1025)

    def program(name):
        session = runtime.InferenceSession(tmp_path / f"{name}.onnx")
        names = json.loads((tmp_path / "signature.json").read_text())["inputs"][name]
        used = {found.name for found in session.get_inputs()}
        return lambda *inputs: session.run(None, {k: y for k, y in zip(names, inputs, strict=True) if k in used})

    assert_close(program("network")(x)[0], path)
    nodes = onnx.load(tmp_path / "network.onnx").graph.node
    assert {node.domain for node in nodes} <= {"", "ai.onnx"}
    assert ("Scan" in {node.op_type for node in nodes}) == (case == "causal scan")  # the selective scan
    if case.startswith("causal"):
        assert_close(stepped(program("step"), tmp_path, x), path)


#: A program for a process that has neither this package nor the twins: run network and step, write the masks.
FRESH = """
import os, sys
for name in ("twinsep", "jax_impl", "torch_impl", "torch", "flax"):
    sys.modules[name] = None
import numpy as np
import jax
folder, frames = sys.argv[1], int(sys.argv[2])
load = lambda name: jax.export.deserialize(bytearray(open(f"{folder}/{name}.stablehlo", "rb").read())).call
x = np.load(f"{folder}/x.npy")
found = {"network": load("network")(x)}
if os.path.exists(f"{folder}/step.npz"):
    step, out = jax.jit(load("step")), []
    with np.load(f"{folder}/step.npz") as file:
        state = [file[f"state_{i}"] for i in range(len(file.files))]
    for t in range(frames):
        mask, *state = step(x[:, :, :, t], *state)
        out.append(mask)
    found["step"] = np.stack(out, -2)
np.savez(f"{folder}/found.npz", **found)
"""


@pytest.mark.parametrize("case", FIXED)
def test_stablehlo_in_a_process_without_this_package(case, tmp_path):
    pytest.importorskip("flatbuffers")
    path, x = checkpoint(case, tmp_path), spectrum(1025)
    exported(path, "stablehlo", tmp_path, "--frames", str(FRAMES))
    np.save(tmp_path / "x.npy", x)
    command = [sys.executable, "-c", FRESH, str(tmp_path), str(FRAMES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as found:
        assert set(found) == ({"network", "step"} if case.startswith("causal") else {"network"})
        for masks in found.values():
            assert_close(masks, path)


@pytest.mark.parametrize("case", ANY_LENGTH)
def test_one_onnx_program_takes_any_number_of_frames(case, tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = checkpoint(case, tmp_path)
    exported(path, "onnx", tmp_path)
    shape = json.loads((tmp_path / "signature.json").read_text())["inputs"]["network"]["spectrum"]["shape"]
    assert shape == [1, 2, 1025, None, 2]
    session = runtime.InferenceSession(tmp_path / "network.onnx")
    # The least; odd at some levels; at some level as many as there are bands (18); more than in the traced example.
    for frames in (16, 17, 18, 37, 72, 147):
        x = spectrum(1025, frames)
        wanted = masks_of_torch(path, x)
        found = session.run(None, {"spectrum": x})[0]
        assert np.abs(found - wanted).max() <= BAR * np.abs(wanted).max(), frames


def test_nothing_is_replaced_unless_asked(tmp_path):
    path = checkpoint("not causal", tmp_path)
    (tmp_path / "network.pt2").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"network\.pt2 exists: choose another folder or --overwrite"):
        export.export(path, "torch", tmp_path, frames=FRAMES)
    assert (tmp_path / "network.pt2").read_bytes() == b"mine"
    with pytest.raises(InputError, match="--frames 7: a network halves the frames"):
        export.export(path, "torch", tmp_path, frames=7, overwrite=True)


def test_a_network_without_bands_is_refused(tmp_path):
    config = preset("music-unet-tiny")
    model = torch_impl.networks.build(config)
    torch_impl.layers.initialise(model, 0)
    own = {name: w.detach().numpy() for name, w in torch_impl.layers.named_weights(model).items()}
    both = {f"{prefix}/{name}": w for prefix in ("model", "ema") for name, w in own.items()}
    checkpoints.write(tmp_path / "model.safetensors", Checkpoint(config, both))
    with pytest.raises(InputError, match="without a band split, and twinsep exports networks with one"):
        export.export(tmp_path / "model.safetensors", "torch", tmp_path)
