"""The ``twinsep convert`` command: convert a checkpoint of the public reference code.

The reference (github.com/instr-io/ml) saves its state dict and a flat ``config`` with PyTorch; a ``config.json`` with
sections beside the file overrides that ``config``. Its weights, renamed and with those of all bands packed into one
array, are the weights of our model with the bands ``reference68`` and the memory alignment ``reference``.
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
from twinsep.checkpoints.initial import unwrap
from twinsep.checkpoints.pickled import read_torch_file
from twinsep.config import Config, preset
from twinsep.errors import InputError
from twinsep.model.features import REALS
from twinsep.utils.backend import twin

Shape = tuple[int, ...]

#: Configuration key of the reference -> field of our ``model`` section.
MODEL_KEYS = {
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
MIXER_KEYS = ("d_state", "d_conv", "expand")
#: A weight that every reference model has.
ANCHOR = "band_split.band_pos"
#: These cannot be inferred from the weights, and the reference has two defaults for each.
REQUIRED_KEYS = ("n_heads", "hop_length")
#: Keys that do not affect the forward pass of a Mamba model: training options, and options of Mamba-3 only.
IGNORED_KEYS = {
    "dropout", "mamba3_headdim", "mamba3_is_mimo", "mamba3_mimo_rank", "mamba3_chunk_size", "mamba3_is_outproj_norm",
    "mag_weight", "mr_stft_weight", "si_sdr_weight", "spectral_sdr_weight", "band_weight", "batch_size",
    "learning_rate", "weight_decay", "warmup_steps", "max_steps", "gradient_accumulation", "max_grad_norm",
    "save_every_steps", "eval_every_steps", "log_every_steps", "use_amp", "gradient_checkpointing", "num_workers",
    "prefetch_factor", "loss", "training", "data_dir", "data_dirs", "output_dir", "checkpoint_path",
    "experiment_name", "seed",
}  # fmt: skip

#: Our parameter -> the reference's key for band {}, and the axis to concatenate bands on (None: stack on a new axis).
PACKED_WEIGHTS: dict[str, tuple[str, int | None]] = {
    "band_split.weight": ("band_split.band_embeds.{}.0.weight", 1),
    "band_split.bias": ("band_split.band_embeds.{}.0.bias", None),
    "band_split.norm": ("band_split.band_embeds.{}.1.weight", None),
    "mask_head.norm": ("band_merge.band_projections.{}.0.weight", None),
    "mask_head.weight1": ("band_merge.band_projections.{}.1.weight", None),
    "mask_head.bias1": ("band_merge.band_projections.{}.1.bias", None),
    "mask_head.weight2": ("band_merge.band_projections.{}.3.weight", 0),
    "mask_head.bias2": ("band_merge.band_projections.{}.3.bias", 0),
}
#: Part of our parameter name -> that of the reference, replaced in this order.
RENAMED_PARTS = (
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

    Raises :class:`InputError`, with nothing written, for a source that is not such a checkpoint, a configuration or
    weights that are not those of a reference model with Mamba, and an ``out`` that exists or cannot be written.
    """
    if not source.is_file():
        what = "is a folder, not a checkpoint" if source.is_dir() else "does not exist"
        raise InputError(f"{source} {what}; choose a .pt file that the reference code saved")
    if out.is_dir():
        raise InputError(f"{out} is a folder; choose the name of a file")
    if out.exists() and out.samefile(source):
        raise InputError(f"{out} is the checkpoint itself; choose another name")
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists; use --overwrite to replace it")
    twin("torch")  # raises with the package to install if PyTorch is missing
    saved = read_torch_file(source)
    weights = read_state_dict(saved, str(source))
    flat, where = read_flat_config(saved, source)
    config = convert_config(flat, where, weights, str(source))
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    tensors = {f"model/{name}": array for name, array in rename_weights(weights, config, str(source)).items()}
    provenance = {"source": source.name, "sha256": digest}
    checkpoints.write(out, Checkpoint(config, tensors, provenance=provenance))
    Console(stderr=True).print(f"wrote {out}", soft_wrap=True)


def read_state_dict(saved: Any, where: str) -> Tensors:
    """Return the float32 weights by the reference's keys.

    ``where`` opens an error sentence. Raises :class:`InputError` if there are none or one is not floating point.
    """
    names = ("model_state_dict", "model", "state_dict")  # the last is Lightning's
    found = next((saved[name] for name in names if name in saved), None) if isinstance(saved, Mapping) else None
    if not isinstance(found, Mapping) or not found or not all(isinstance(key, str) for key in found):
        raise InputError(
            f"{where}: no state dict under model_state_dict or model or state_dict; not a checkpoint of the reference"
        )
    if ANCHOR not in found:  # wrapped by Lightning, an average, DistributedDataParallel, torch.compile …
        found = unwrap(found, ANCHOR)
    for key, array in found.items():
        if not isinstance(array, np.ndarray) or array.dtype != np.float32:
            raise InputError(f"{where}: weight {key!r} is not a floating-point array")
    return dict(found)


def read_flat_config(saved: Mapping[str, Any], source: Path) -> tuple[dict[str, Any], str]:
    """Return the reference's configuration without sections, and the file it is from.

    Raises :class:`InputError` if there is none.
    """
    beside = source.with_name("config.json")
    values, where = saved.get("config"), str(source)
    if beside.exists():
        where = str(beside)
        try:
            values = json.loads(beside.read_text())
        except (OSError, ValueError) as error:  # ValueError: not JSON, or not text
            raise InputError(f"{where}: cannot be read as JSON; correct it or move it away") from error
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: no configuration of the reference; write a config.json beside the checkpoint")
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(value if key in ("audio", "model") and isinstance(value, Mapping) else {key: value})
    return flat, where


def convert_config(flat: Mapping[str, Any], where: str, weights: Tensors, source: str) -> Config:
    """Convert the reference's configuration ``flat``, read from ``where``, to ours.

    Raises :class:`InputError` for an unknown key, a value of a wrong type, and a size that contradicts the ``weights``,
    which are from ``source``.
    """
    for key, value in flat.items():
        if key not in {*MODEL_KEYS, *MIXER_KEYS, *IGNORED_KEYS, "ssm_variant", "chunk_seconds"}:
            raise InputError(f"{where}: unknown key {key!r}; its effect on the model is not known here")
        if key not in IGNORED_KEYS and not isinstance(value, str | int | float | None):
            raise InputError(f"{where}: the value of {key!r} is neither a number nor a string")
    variant = flat.get("ssm_variant") or "mamba"
    if str(variant).lower() not in ("mamba", "mamba1"):
        raise InputError(f"{where}: ssm_variant {variant!r} cannot be converted, only mamba can")
    for key in REQUIRED_KEYS:
        if key not in flat:
            raise InputError(
                f"{where}: no {key!r}, which the weights do not show; add it to a config.json beside the file"
            )
    shown = infer_sizes(weights, source)
    for key, size in shown.items():
        # Bottleneck layers come in pairs, and the reference drops an odd one.
        fitting = (size, size + 1) if key == "n_bottleneck_layers" else (size,)
        if flat.get(key, size) not in fitting:
            raise InputError(f"{where}: {key} is {flat[key]} in the configuration, but the weights show {size}")
    known = {**shown, **flat}
    model: dict[str, Any] = {ours: known[theirs] for theirs, ours in MODEL_KEYS.items() if theirs in known}
    model["mixer"] = {"kind": "mamba", **{key: known[key] for key in MIXER_KEYS}}
    # Songs are separated in chunks of the training segment's length.
    training = {"segment_seconds": flat["chunk_seconds"]} if "chunk_seconds" in flat else {}
    try:
        config = preset("reference").override({"model": model, "training": training})
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    check_bands(config, weights, source)
    return config


def infer_sizes(weights: Tensors, where: str) -> dict[str, int]:
    """Infer the reference's configuration values from the shapes of its weights."""
    mamba = "enc1.0.dual_path.intra_mamba.mamba_fwd."
    *_, d = weight_shape(weights, ANCHOR, 4, where)
    e, n = weight_shape(weights, f"{mamba}A_log", 2, where)
    *_, d_conv = weight_shape(weights, f"{mamba}conv1d.weight", 3, where)
    return {
        "d_model": d,
        "n_encoder_layers": count_layers(weights, "enc1"),
        "n_decoder_layers": count_layers(weights, "dec1"),
        "n_bottleneck_layers": 2 * count_layers(weights, "bottleneck_mamba"),
        "d_state": n,
        "d_conv": d_conv,
        "expand": e // d,
    }


def weight_shape(weights: Tensors, key: str, axes: int, where: str) -> Shape:
    """Return the shape of a weight; raise :class:`InputError` if it is missing, empty or not of ``axes`` axes."""
    if key not in weights:
        raise InputError(f"{where}: no weight {key!r}; it belongs to another model")
    found = weights[key].shape
    if len(found) != axes or 0 in found:
        raise InputError(f"{where}: weight {key!r} has shape {found}, the model needs {axes} axes of at least 1")
    return found


def count_layers(weights: Tensors, stage: str) -> int:
    """Count the layers of a stage: the different indices that follow ``stage.`` in the keys."""
    return len({key.removeprefix(f"{stage}.").partition(".")[0] for key in weights if key.startswith(f"{stage}.")})


def check_bands(config: Config, weights: Tensors, where: str) -> None:
    """Raise :class:`InputError` unless the weights' band widths are those of the configuration's bands."""
    pattern, _ = PACKED_WEIGHTS["band_split.weight"]
    keys = [pattern.format(k) for k in range(count_layers(weights, "band_split.band_embeds"))]
    shown = [weight_shape(weights, key, 2, where)[1] / REALS for key in keys]
    model, widths = config.model, np.diff(config.model.band_table)[:, 0].tolist()
    grid = f"n_fft {model.n_fft} at {model.sample_rate} Hz"
    if len(shown) != len(widths):
        raise InputError(f"{where}: {grid} makes {len(widths)} bands, but the weights show {len(shown)}")
    for k, (found, width) in enumerate(zip(shown, widths, strict=True)):
        if found != width:
            raise InputError(f"{where}: {grid} makes band {k} {width} bins wide, but the weights show {found:g}")


def rename_weights(weights: Tensors, config: Config, where: str) -> Tensors:
    """Return the weights by our names, packed by bands.

    Raises :class:`InputError` for a key that is missing, extra, of a wrong shape or not finite.
    """
    model = twin("torch", "networks").build(config)
    own = {name: tuple(weight.shape) for name, weight in twin("torch", "layers").named_parameters(model).items()}
    widths = np.diff(config.model.band_table)[:, 0].tolist()
    wanted = {name: reference_shapes(name, own_shape, widths) for name, own_shape in own.items()}
    checkpoints.check_names(weights, {key: s for shapes in wanted.values() for key, s in shapes.items()}, where)
    for key, array in weights.items():
        if not np.isfinite(array).all():
            raise InputError(f"{where}: weight {key!r} holds values that are not finite")
    return {name: join_bands(name, [weights[key] for key in shapes]) for name, shapes in wanted.items()}


def reference_shapes(name: str, own: Shape, widths: list[int]) -> dict[str, Shape]:
    """Return the reference's keys for our parameter ``name`` of shape ``own``, in order of bands, with their shapes.

    ``widths`` are the bands' numbers of bins.
    """
    if name in PACKED_WEIGHTS:
        pattern, axis = PACKED_WEIGHTS[name]
        if axis is None:
            return {pattern.format(k): own[1:] for k in range(len(widths))}
        return {pattern.format(k): (*own[:axis], REALS * w, *own[axis + 1 :]) for k, w in enumerate(widths)}
    # Our bottleneck is one list that alternates Mamba and attention; the reference has a list of each.
    turns = ("bottleneck_mamba", "bottleneck_attn")
    name = re.sub(r"^bottleneck\.(\d+)", lambda m: f"{turns[int(m[1]) % 2]}.{int(m[1]) // 2}", name)
    for ours, theirs in RENAMED_PARTS:
        name = name.replace(ours, theirs)
    return {name: own}


def join_bands(name: str, arrays: list[np.ndarray]) -> np.ndarray:
    """Join the reference's arrays for our parameter ``name``, one for each band if it is packed."""
    if name not in PACKED_WEIGHTS:
        return arrays[0]
    axis = PACKED_WEIGHTS[name][1]
    return np.stack(arrays) if axis is None else np.concatenate(arrays, axis)
