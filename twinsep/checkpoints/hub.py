"""Models in the form of the Hugging Face hub: a folder with ``config.json``, ``model.safetensors`` and a model card."""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from twinsep.checkpoints.native import RECORD, Checkpoint, Tensors
from twinsep.config import from_dict
from twinsep.errors import InputError
from twinsep.utils.files import display_path, os_error_reason

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
MODEL_TYPE = "twinsep"
_SECTIONS = ("model", "loss", "training", "data")
#: Of what is known about the making of a model, what its folder tells.
_ORIGIN = ("framework", "command", "commit", "source", "sha256")


def write(folder: str | Path, made: Checkpoint) -> None:
    """Write the averaged weights, float32 by canonical name, and the configuration with the origin of both.

    All is written into a folder beside ``folder``, synced, and renamed, so that ``folder`` never holds a part of a
    model. A former model there is replaced, but for its model card, which may have been edited. Raises
    :class:`InputError`, what is there being untouched, for a folder with anything else in it and for a place that
    cannot be written to.
    """
    folder = Path(folder).resolve()  # so that a link to a folder stays one
    try:
        card = _kept_card(folder)
        weights = made.weights("ema")
        files = {
            CONFIG: _config(made),
            WEIGHTS: save({n: np.ascontiguousarray(w) for n, w in sorted(weights.items())}, {"format": "pt"}),
            CARD: _card(folder.name, made, weights).encode() if card is None else card,
        }
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name[:40]}.", dir=folder.parent) as temporary:
            _fill(Path(temporary) / "new", files)
            _exchange(Path(temporary) / "new", folder, Path(temporary) / "former")
    except OSError as error:
        raise InputError(f"cannot write {display_path(folder)}: {os_error_reason(error)}") from error


def read(folder: str | Path, *, weights: bool = True) -> Checkpoint:
    """What :func:`write` wrote, the weights under ``model/`` if they are asked for.

    Raises :class:`InputError` for a folder without the two files, a configuration that is not twinsep's or that this
    version does not know, and weights that are cut short or not float32.
    """
    path = Path(folder) / CONFIG
    values = _values(path)
    if values.get("model_type") != MODEL_TYPE:
        raise InputError(
            f"{display_path(path)}: of the model type {values.get('model_type')!r}, not {MODEL_TYPE!r}; {_GIVE}"
        )
    step, origin = values.get("step", 0), values.get("provenance", {})
    if not isinstance(step, int) or not isinstance(origin, dict):
        raise InputError(f"{display_path(path)}: step or provenance is damaged; fetch it again")
    try:
        config = from_dict({name: values[name] for name in _SECTIONS if name in values})
    except InputError as error:
        raise InputError(f"{display_path(path)}: {error}") from error
    tensors = {f"model/{n}": w for n, w in _weights(Path(folder) / WEIGHTS).items()} if weights else {}
    return Checkpoint(config, tensors, step, provenance=origin)


def origin(path: Path, found: Checkpoint) -> dict[str, Any]:
    """How a checkpoint came to be, as it says itself or as the ``run.json`` of its run beside it does."""
    known = dict(found.provenance)
    try:
        record = json.loads((path.parent / RECORD).read_text(encoding="utf-8"))
        if record["hash"] == found.config.hash:
            known |= record
    except (OSError, ValueError, KeyError, TypeError):
        pass  # it is no run's, or of another run: then nothing more is known
    return {key: known[key] for key in _ORIGIN if key in known}


def fetched(folder_or_repository: str | Path) -> Path:
    """The folder itself, or one that holds the files of that repository of the hub.

    Raises :class:`InputError` for a name that is no folder, where huggingface_hub is not installed or gives none.
    """
    path = Path(folder_or_repository)
    if path.is_dir():
        return path
    name = display_path(folder_or_repository)
    if path.exists():
        raise InputError(f"{name} is a file, not a folder; twinsep.load reads checkpoint files")
    try:
        hub = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise InputError(
            f"{name} is no folder here; give one, or to fetch it from the hub: pip install huggingface_hub"
        ) from error
    try:
        return Path(hub.snapshot_download(str(folder_or_repository), allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # of the network, of the hub, of the name: each of its own kind
        said = display_path((str(error) or type(error).__name__).strip().splitlines()[0])
        raise InputError(
            f"{name} is no folder here, and the hub did not give it ({said}); check name and network"
        ) from (error)


# ---------------------------------------------------------------------------- reading

_GIVE = "give a folder that save_pretrained wrote"


def _values(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{display_path(path.parent)}: holds no {path.name}; {_GIVE}, or a checkpoint file") from error
    except OSError as error:
        raise InputError(f"{display_path(path)}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{display_path(path)}: not JSON; fetch it again") from error
    if not isinstance(values, dict):
        raise InputError(f"{display_path(path)}: not a configuration; {_GIVE}")
    return values


def _weights(path: Path) -> Tensors:
    if not path.is_file():
        raise InputError(f"{display_path(path.parent)}: holds no {path.name}; {_GIVE}")
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118
                if (kind := file.get_slice(name).get_dtype()) != "F32":
                    raise InputError(f"{display_path(path)}: weight {name!r} is of type {kind}, not F32; convert it")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{display_path(path)}: not a whole safetensors file ({error}); fetch it again") from error


# ---------------------------------------------------------------------------- writing


def _kept_card(folder: Path) -> bytes | None:
    """The model card of the former model at ``folder``; raises :class:`InputError` where there is anything else."""
    if not folder.is_dir():
        if folder.exists():
            raise InputError(f"{display_path(folder)} is a file; give the name of a folder")
        return None
    names = {path.name for path in folder.iterdir()}
    if names and not _is_model(folder, names):
        raise InputError(
            f"{display_path(folder)} holds other files than a saved model's; give a new or an empty folder"
        )
    return (folder / CARD).read_bytes() if CARD in names else None


def _is_model(folder: Path, names: set[str]) -> bool:
    try:
        return {CONFIG, WEIGHTS} <= names <= {CONFIG, WEIGHTS, CARD} and (
            _values(folder / CONFIG).get("model_type") == MODEL_TYPE
        )
    except InputError:
        return False


def _fill(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir()
    for name, content in files.items():
        with (folder / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def _exchange(new: Path, folder: Path, former: Path) -> None:
    """Rename ``new`` to ``folder``, and what was there to ``former``; on any failure it is there again."""
    if not folder.exists():
        new.rename(folder)
        return
    folder.rename(former)
    try:
        new.rename(folder)
    except BaseException:
        former.rename(folder)
        raise


def _config(made: Checkpoint) -> bytes:
    values = {
        "model_type": MODEL_TYPE,
        "version": version("twinsep"),
        **made.config.to_dict(),
        "step": made.step,
        "provenance": made.provenance,
    }
    return (json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _card(name: str, made: Checkpoint, weights: Tensors) -> str:
    model = made.config.model
    # The licence of another's weights is not ours to give.
    licence = "" if "source" in made.provenance else "license: mit\n"
    return _CARD.format(
        licence=licence,
        name=name,
        targets=", ".join(model.targets),
        rate=model.sample_rate,
        mixer=model.mixer.kind,
        parameters=sum(w.size for w in weights.values()),
        origin=_story(made),
    )


def _story(made: Checkpoint) -> str:
    known = made.provenance
    if "source" in known:
        return f"Converted from `{known['source']}`, SHA-256 `{known.get('sha256')}`."
    if not made.step:
        return "Not trained: these are initial weights."
    trained = f"Trained for {made.step:,} steps on the songs in `{made.config.data.root}`."
    return f"{trained} Made by `{known['command']}`, commit `{known.get('commit')}`." if "command" in known else trained


_CARD = """---
{licence}library_name: twinsep
pipeline_tag: audio-to-audio
---

# {name}

A band-split U-Net that takes songs apart, in PyTorch and JAX: {targets} at {rate:,} Hz, mixer {mixer}, {parameters:,}
parameters. {origin}

```python
import twinsep

separator = twinsep.Separator.from_pretrained("{name}")
stems = separator(waveform, sample_rate)  # (channels, samples) in, the same of each stem out
```
"""
