"""What ``twinsep convert`` does: a checkpoint of the public reference code becomes one of twinsep's.

The reference (github.com/instr-io/ml) saves its state dict and a flat ``config`` with PyTorch; a ``config.json``
beside the file, with sections, wins over that ``config``. The same weights, renamed and with those of the bands
packed, make up our separator with the bands ``reference68`` and the memory alignment ``reference``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from twinsep import checkpoints
from twinsep.checkpoints import Checkpoint, Tensors
from twinsep.checkpoints.pickled import read_torch_file
from twinsep.config import Config, preset
from twinsep.errors import InputError
from twinsep.model.bands import REALS
from twinsep.utils.backend import twin

Shape = tuple[int, ...]

#: The reference's configuration key -> ours of the model.
MODEL = {
    "d_model": "d_model",
    "n_heads": "n_heads",
    "n_encoder_layers": "n_enc",
    "n_bottleneck_layers": "n_bottleneck",
    "n_decoder_layers": "n_dec",
    "sample_rate": "sample_rate",
    "n_fft": "n_fft",
    "hop_length": "hop",
    "use_mid_side": "mid_side",
}
MIXER = ("d_state", "d_conv", "expand")
#: No weight's shape shows these, and the reference has two defaults for each.
REQUIRED = ("n_heads", "hop_length")
#: Keys that change nothing in the forward pass of a Mamba model: its training, and what only Mamba-3 reads.
IGNORED = {
    "dropout", "mamba3_headdim", "mamba3_is_mimo", "mamba3_mimo_rank", "mamba3_chunk_size", "mamba3_is_outproj_norm",
    "mag_weight", "mr_stft_weight", "si_sdr_weight", "spectral_sdr_weight", "band_weight", "batch_size",
    "learning_rate", "weight_decay", "warmup_steps", "max_steps", "gradient_accumulation", "max_grad_norm",
    "save_every_steps", "eval_every_steps", "log_every_steps", "use_amp", "gradient_checkpointing", "num_workers",
    "prefetch_factor", "loss", "training", "data_dir", "data_dirs", "output_dir", "checkpoint_path",
    "experiment_name", "seed",
}  # fmt: skip

#: Our parameter -> the reference's key of band {} and the axis along which bands follow each other; None: a new one.
PACKED: dict[str, tuple[str, int | None]] = {
    "band_split.weight": ("band_split.band_embeds.{}.0.weight", 1),
    "band_split.bias": ("band_split.band_embeds.{}.0.bias", None),
    "band_split.norm": ("band_split.band_embeds.{}.1.weight", None),
    "mask_head.norm": ("band_merge.band_projections.{}.0.weight", None),
    "mask_head.weight1": ("band_merge.band_projections.{}.1.weight", None),
    "mask_head.bias1": ("band_merge.band_projections.{}.1.bias", None),
    "mask_head.weight2": ("band_merge.band_projections.{}.3.weight", 0),
    "mask_head.bias2": ("band_merge.band_projections.{}.3.bias", 0),
}
#: Our part of a name -> the reference's, tried from the first to the last.
RENAMED = (
    ("band_split.embedding", "band_split.band_pos"),
    (".memory.time.attention.", ".cross_attn.intra_cross_attn.cross_attn."),
    (".memory.band.attention.", ".cross_attn.inter_cross_attn.cross_attn."),
    (".memory.time.", ".cross_attn.intra_cross_attn."),
    (".memory.band.", ".cross_attn.inter_cross_attn."),
    (".attention.", ".self_attn."),
    (".time.", ".intra_mamba."),
    (".band.", ".inter_mamba."),
    (".forwards.", ".mamba_fwd."),
    (".backwards.", ".mamba_bwd."),
    (".depthwise.", ".dwconv."),
    (".pointwise.", ".pwconv."),
    (".skip.gate.", ".skip_fusion.gate.0."),
    (".skip.", ".skip_fusion."),
)


def convert(source: Path, out: Path, *, overwrite: bool = False) -> None:
    """Write the checkpoint ``source`` of the reference code as a twinsep checkpoint ``out``.

    Raises :class:`InputError`, with nothing written, for a file that cannot be read or is no such checkpoint, a
    configuration or weights that are not those of a reference model with Mamba, and a place that cannot be written.
    """
    if not source.is_file():
        what = "is a folder, not a checkpoint" if source.is_dir() else "does not exist"
        raise InputError(f"{source}: {what}; give the .pt file that the reference code saved")
    if out.is_dir():
        raise InputError(f"{out} is a folder; give the name of a file")
    if out.exists() and out.samefile(source):
        raise InputError(f"{out} is the checkpoint itself; give another name")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists; give --overwrite to replace it")
    twin("torch")  # says what to install where PyTorch is missing
    saved = read_torch_file(source)
    weights = state_dict(saved, str(source))
    flat, where = flat_config(saved, source)
    config = read_config(flat, where, weights, str(source))
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    tensors = {f"model/{name}": array for name, array in renamed(weights, config, str(source)).items()}
    provenance = {"source": source.name, "sha256": digest}
    checkpoints.write(out, Checkpoint(config, tensors, provenance=provenance))
    Console(stderr=True).print(f"wrote {out}", soft_wrap=True)


def state_dict(saved: Any, where: str) -> Tensors:
    """The weights by the reference's keys, float32; raises :class:`InputError` where one is not an array of such."""
    found = saved.get("model_state_dict", saved.get("model")) if isinstance(saved, Mapping) else None
    if not isinstance(found, Mapping) or not found or not all(isinstance(key, str) for key in found):
        raise InputError(f"{where}: no state dict under model_state_dict or model; not a checkpoint of the reference")
    for key, array in found.items():
        if not isinstance(array, np.ndarray) or array.dtype != np.float32:
            raise InputError(f"{where}: weight {key!r} is no array of floating-point numbers")
    weights = dict(found)
    # DistributedDataParallel and torch.compile wrap the model and put their name for it before every key.
    while {key.partition(".")[0] for key in weights} in ({"module"}, {"_orig_mod"}):
        weights = {key.partition(".")[2]: array for key, array in weights.items()}
    return weights


def flat_config(saved: Mapping[str, Any], source: Path) -> tuple[dict[str, Any], str]:
    """The reference's configuration without sections, and where it is from; raises :class:`InputError` for none."""
    beside = source.with_name("config.json")
    values, where = saved.get("config"), str(source)
    if beside.exists():
        where = str(beside)
        try:
            values = json.loads(beside.read_text())
        except (OSError, ValueError) as error:  # ValueError: not JSON, or not text
            raise InputError(f"{where}: cannot be read as JSON; mend it or move it away") from error
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: no configuration of the reference; write a config.json beside the checkpoint")
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(value if key in ("audio", "model") and isinstance(value, Mapping) else {key: value})
    return flat, where


def read_config(flat: Mapping[str, Any], where: str, weights: Tensors, source: str) -> Config:
    """Our configuration of the reference's; raises :class:`InputError` for what is unknown or not what weights show."""
    for key, value in flat.items():
        if key not in {*MODEL, *MIXER, *IGNORED, "ssm_variant", "chunk_seconds"}:
            raise InputError(f"{where}: unknown key {key!r}; what it changes in the model is not known here")
        if key not in IGNORED and not isinstance(value, str | int | float | None):
            raise InputError(f"{where}: the value of {key!r} is neither a number nor a word")
    variant = flat.get("ssm_variant") or "mamba"
    if str(variant).lower() not in ("mamba", "mamba1"):
        raise InputError(f"{where}: ssm_variant {variant!r} cannot be converted, only mamba can")
    for key in REQUIRED:
        if key not in flat:
            raise InputError(f"{where}: no {key!r}, which no weight shows; write it into a config.json beside the file")
    shown = sizes(weights, source)
    for key, size in shown.items():
        # Bottleneck layers come in pairs, and the reference drops an odd one.
        fitting = (size, size + 1) if key == "n_bottleneck_layers" else (size,)
        if flat.get(key, size) not in fitting:
            raise InputError(f"{where}: {key} is {flat[key]} in the configuration, but the weights show {size}")
    known = {**shown, **flat}
    model: dict[str, Any] = {ours: known[theirs] for theirs, ours in MODEL.items() if theirs in known}
    model["mixer"] = {"kind": "mamba", **{key: known[key] for key in MIXER}}
    # Songs are separated in chunks of the training segment's length.
    training = {"segment_seconds": flat["chunk_seconds"]} if "chunk_seconds" in flat else {}
    try:
        config = preset("reference").override({"model": model, "training": training})
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    check_bands(config, weights, source)
    return config


def sizes(weights: Tensors, where: str) -> dict[str, int]:
    """What the shapes say of the reference's configuration."""
    mamba = "enc1.0.dual_path.intra_mamba.mamba_fwd."
    *_, d = shape(weights, "band_split.band_pos", 4, where)
    e, n = shape(weights, f"{mamba}A_log", 2, where)
    *_, d_conv = shape(weights, f"{mamba}conv1d.weight", 3, where)
    layers = {key: count(weights, stage) for key, stage in (("n_encoder_layers", "enc1"), ("n_decoder_layers", "dec1"))}
    layers["n_bottleneck_layers"] = 2 * count(weights, "bottleneck_mamba")
    return {"d_model": d, **layers, "d_state": n, "d_conv": d_conv, "expand": e // d}


def shape(weights: Tensors, key: str, axes: int, where: str) -> Shape:
    """The shape of one weight; raises :class:`InputError` where it is missing, empty or has not so many axes."""
    if key not in weights:
        raise InputError(f"{where}: no weight {key!r}; it belongs to another model")
    found = weights[key].shape
    if len(found) != axes or 0 in found:
        raise InputError(f"{where}: weight {key!r} has shape {found}, the model needs {axes} axes, none empty")
    return found


def count(weights: Tensors, stage: str) -> int:
    """How many indices stand behind ``stage.``."""
    return len({key.removeprefix(f"{stage}.").partition(".")[0] for key in weights if key.startswith(f"{stage}.")})


def check_bands(config: Config, weights: Tensors, where: str) -> None:
    """Raise :class:`InputError` unless the first Linears are as wide as the bands of the configuration's grid."""
    pattern, _ = PACKED["band_split.weight"]
    keys = [pattern.format(k) for k in range(count(weights, "band_split.band_embeds"))]
    shown = [shape(weights, key, 2, where)[1] / REALS for key in keys]
    model, widths = config.model, np.diff(config.model.band_table)[:, 0].tolist()
    grid = f"n_fft {model.n_fft} at {model.sample_rate} Hz"
    if len(shown) != len(widths):
        raise InputError(f"{where}: {grid} makes {len(widths)} bands, but the weights show {len(shown)}")
    for k, (found, width) in enumerate(zip(shown, widths, strict=True)):
        if found != width:
            raise InputError(f"{where}: {grid} makes band {k} {width} bins wide, but the weights show {found:g}")


def renamed(weights: Tensors, config: Config, where: str) -> Tensors:
    """The weights by our names; raises :class:`InputError` naming a key that is missing, extra or of a wrong shape."""
    model = twin("torch", "unet").BandSplitUNet(config)
    own = {name: tuple(weight.shape) for name, weight in twin("torch", "layers").named_parameters(model).items()}
    widths = np.diff(config.model.band_table)[:, 0].tolist()
    wanted = {name: reference_shapes(name, own_shape, widths) for name, own_shape in own.items()}
    checkpoints.check_names(weights, {key: s for shapes in wanted.values() for key, s in shapes.items()}, where)
    for key, array in weights.items():
        if not np.isfinite(array).all():
            raise InputError(f"{where}: weight {key!r} holds values that are not finite numbers")
    return {name: joined(name, [weights[key] for key in shapes]) for name, shapes in wanted.items()}


def reference_shapes(name: str, own: Shape, widths: list[int]) -> dict[str, Shape]:
    """The reference's keys that make up our parameter ``name`` of shape ``own``, in order, with their shapes."""
    if name in PACKED:
        pattern, axis = PACKED[name]
        if axis is None:
            return {pattern.format(k): own[1:] for k in range(len(widths))}
        return {pattern.format(k): (*own[:axis], REALS * w, *own[axis + 1 :]) for k, w in enumerate(widths)}
    # Our bottleneck is one list in which Mamba and attention take turns; the reference has a list of each.
    turns = ("bottleneck_mamba", "bottleneck_attn")
    name = re.sub(r"^bottleneck\.(\d+)", lambda m: f"{turns[int(m[1]) % 2]}.{int(m[1]) // 2}", name)
    for ours, theirs in RENAMED:
        name = name.replace(ours, theirs)
    return {name: own}


def joined(name: str, arrays: list[np.ndarray]) -> np.ndarray:
    """Our parameter ``name`` from the reference's."""
    if name not in PACKED:
        return arrays[0]
    axis = PACKED[name][1]
    return np.stack(arrays) if axis is None else np.concatenate(arrays, axis)
