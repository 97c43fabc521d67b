"""Models as folders in the layout of the Hugging Face hub: ``config.json``, ``model.safetensors``, ``README.md``.

``huggingface_hub.ModelHubMixin`` is not used: as a base class it would make a network client a dependency of every
installation, and it writes in place, so that an interrupted save leaves half a model.
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from twinsep.checkpoints.native import RECORD, STATISTICS, Checkpoint, Tensors
from twinsep.config import from_dict
from twinsep.errors import InputError
from twinsep.utils.files import display_path, os_error_reason

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_SECTIONS = ("model", "loss", "training", "data")
#: Entries of a checkpoint's provenance, or of its ``run.json``, that ``config.json`` keeps.
_ORIGIN = ("framework", "command", "commit", "source", "sha256")
_HINT = "choose a folder that save_pretrained wrote"
_CARD = """---
{licence}library_name: twinsep
pipeline_tag: audio-to-audio
---

# {name}

A band-split U-Net for music source separation, in PyTorch and JAX: {targets} at {rate:,} Hz, mixer {mixer},
{parameters:,} parameters. {origin}

```python
import twinsep

separator = twinsep.Separator.from_pretrained("{name}")
stems = separator(waveform, sample_rate)  # (channels, samples) in, the same shape for each stem out
```
"""


def write(folder: str | Path, checkpoint: Checkpoint) -> None:
    """Save the averaged weights (float32, canonical names), the configuration with its origin, and a model card.

    The files are written to a temporary folder, which is then renamed to ``folder``. A model already there is replaced,
    except for its model card, which may have been edited. Raises :class:`InputError`, leaving ``folder`` as it was, if
    it holds anything else or cannot be written.
    """
    folder = Path(folder).resolve()  # replace the folder that a link points to, not the link
    try:
        card = _existing_card(folder)
        config = {
            "model_type": "twinsep",
            "version": version("twinsep"),
            **checkpoint.config.to_dict(),
            "step": checkpoint.step,
            "provenance": checkpoint.provenance,
        }
        weights = {name: np.ascontiguousarray(w) for name, w in sorted(checkpoint.weights("ema").items())}
        files = {
            CONFIG: (json.dumps(config, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode(),
            WEIGHTS: save(weights, {"format": "pt"}),
            CARD: card or _new_card(folder.name, checkpoint, weights),
        }
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name[:40]}.", dir=folder.parent) as temporary:
            new, old = Path(temporary) / "new", Path(temporary) / "old"
            new.mkdir()
            for name, content in files.items():
                with (new / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            if folder.exists():
                folder.rename(old)
            try:
                new.rename(folder)
            except BaseException:
                if old.exists():
                    old.rename(folder)
                raise
    except OSError as error:
        raise InputError(f"cannot write {display_path(folder)}: {os_error_reason(error)}") from error


def read(folder: str | Path, *, weights: bool = True) -> Checkpoint:
    """Read a folder that :func:`write` wrote, its tensors under ``model/``; without them if ``weights`` is False.

    Raises :class:`InputError` for a missing file, a configuration of another library or version, and weights that are
    truncated or not float32.
    """
    path = Path(folder) / CONFIG
    values = _read_config(path)
    step, provenance = values.get("step", 0), values.get("provenance", {})
    if not isinstance(step, int) or not isinstance(provenance, dict):
        raise InputError(f"{display_path(path)}: step or provenance is damaged; fetch it again")
    try:
        config = from_dict({name: values[name] for name in _SECTIONS if name in values})
    except InputError as error:
        raise InputError(f"{display_path(path)}: {error}") from error
    tensors = {f"model/{name}": w for name, w in _read_weights(path.with_name(WEIGHTS)).items()} if weights else {}
    return Checkpoint(config, tensors, step, provenance=provenance)


def origin(path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return how a checkpoint was made: its own provenance, and its run's ``run.json`` if that lies beside ``path``."""
    known = dict(checkpoint.provenance)
    try:
        record = json.loads((path.parent / RECORD).read_text(encoding="utf-8"))
        if record["hash"] == checkpoint.config.hash:
            known |= record
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no record, or another run's
    return {key: known[key] for key in _ORIGIN if key in known}


def fetch(folder_or_repository: str | Path) -> Path:
    """Return the folder, or download a repository of the hub and return its local folder.

    Raises :class:`InputError` for a file, and for a repository if huggingface_hub is missing or cannot download it.
    """
    path, name = Path(folder_or_repository), display_path(folder_or_repository)
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{name} is a file, not a folder; twinsep.load reads checkpoint files")
    try:
        client = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise InputError(f"{name} is no folder; to load it from the hub: pip install huggingface_hub") from error
    try:
        return Path(client.snapshot_download(str(folder_or_repository), allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # network, hub and name fail with exceptions of many classes
        reason = display_path((str(error) or type(error).__name__).strip().splitlines()[0])
        raise InputError(f"{name} is no folder, and its download failed ({reason}); check name and network") from error


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        runs = path.parent / "best.safetensors"
        advice = f"choose {display_path(runs)}" if runs.is_file() else f"{_HINT}, or a checkpoint file"
        raise InputError(f"{display_path(path.parent)} holds no {CONFIG}; {advice}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{display_path(path)}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{display_path(path)}: not JSON; fetch it again") from error
    if not isinstance(values, dict) or values.get("model_type") != "twinsep":
        raise InputError(f"{display_path(path)}: not the configuration of a twinsep model; {_HINT}")
    return values


def _read_weights(path: Path) -> Tensors:
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118
                if (dtype := file.get_slice(name).get_dtype()) != "F32":
                    raise InputError(f"{display_path(path)}: weight {name!r} is of type {dtype}, not F32; convert it")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{display_path(path)}: cannot be read as safetensors ({error}); fetch it again") from error


def _existing_card(folder: Path) -> bytes | None:
    """Return the model card of the model saved in ``folder``; raise :class:`InputError` if it holds anything else."""
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if names:
        if not {CONFIG, WEIGHTS} <= names <= {CONFIG, WEIGHTS, CARD}:
            raise InputError(f"{display_path(folder)} holds other files; choose a new or empty folder")
        _read_config(folder / CONFIG)
    return (folder / CARD).read_bytes() if CARD in names else None


def _new_card(name: str, checkpoint: Checkpoint, weights: Tensors) -> bytes:
    known, model = checkpoint.provenance, checkpoint.config.model
    if "source" in known:
        origin = f"Converted from `{known['source']}`, SHA-256 `{known.get('sha256')}`."
    elif checkpoint.step:
        origin = f"Trained for {checkpoint.step:,} steps on the songs in `{checkpoint.config.data.root}`."
    else:
        origin = "Not trained: these are initial weights."
    return _CARD.format(
        licence="" if "source" in known else "license: mit\n",  # converted weights keep their authors' licence
        name=name,
        targets=", ".join(model.targets),
        rate=model.sample_rate,
        mixer=model.mixer_kind,
        parameters=sum(w.size for name, w in weights.items() if not name.endswith(STATISTICS)),
        origin=origin,
    ).encode()
