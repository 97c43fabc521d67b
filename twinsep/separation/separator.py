"""A model applied to whole songs in memory or in a stream: any length, sample rate and number of channels."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_torch_array, to_device
from array_api_compat import device as device_of

from twinsep import checkpoints
from twinsep.audio.resampling import resample_blocks
from twinsep.checkpoints import Checkpoint, hub
from twinsep.config import PRESETS, SOURCES, Config
from twinsep.errors import InputError
from twinsep.separation.overlap_add import ArrayModel, ChunkGrid, Chunking, stream_model, zip_blocks
from twinsep.utils.backend import twin
from twinsep.utils.progress import ProgressCallback

#: The stem that remains when the other is removed.
COMPLEMENTS = {"vocals": "instrumental", "instrumental": "vocals"}
Stems = dict[str, np.ndarray]


class Separator:
    """A separator of whole songs into stems that add up to the song.

    The last stem is never an estimate: it is the song minus the others. For a model of the instrumental or of the
    vocals it is the instrumental, from which the estimated vocals are subtracted; for a model of all sources the last
    source; for any other model a "residual". So everything the model does not see, such as the band above its
    Nyquist frequency, is kept, and a model that removes nothing returns the song to float32 rounding.

    ``augmented`` averages the estimates for the song, its channels swapped, its polarity inverted, and both: four
    times the work. ``saved`` returns the checkpoint that :meth:`save_pretrained` writes; :func:`load` sets it.
    """

    def __init__(
        self,
        model: ArrayModel,
        config: Config,
        grid: ChunkGrid,
        *,
        augmented: bool = False,
        saved: Callable[[], Checkpoint] | None = None,
    ):
        self.config, self.grid = config, grid
        self.model = _augment(model) if augmented else model
        self._saved = saved
        #: Names of the stems; the last one is the song minus the others.
        self.stems: tuple[str, ...] = stems_of(config)

    @classmethod
    def from_pretrained(cls, folder_or_repository: str | Path, framework: str = "torch", **options: Any) -> Separator:
        """Load a folder that :meth:`save_pretrained` wrote, or such a repository of the Hugging Face hub.

        A repository is fetched by huggingface_hub. For ``options`` and the errors raised see :func:`load`.
        """
        return load(hub.fetch(folder_or_repository), framework, **options)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json``, ``model.safetensors`` and a model card into ``folder``, all or nothing.

        Replaces a saved model there. Raises :class:`InputError`, and changes nothing, for a folder that holds anything
        else or cannot be written.
        """
        if self._saved is None:
            raise InputError("this separator was made from a function and has no weights to save: load a model instead")
        hub.write(folder, self._saved())

    @property
    def sample_rate(self) -> int:
        """The model's sample rate in Hz; songs are resampled to it, and estimates back to the song's rate."""
        return self.config.model.sample_rate

    def names(self, stem: str) -> tuple[str, str]:
        """``stem`` and its complement: "vocals" → ("vocals", "instrumental"), "drums" → ("drums", "no_drums").

        Raises :class:`InputError` for a stem that the model does not estimate.
        """
        return with_complement(stem, self.stems)

    def __call__(
        self, waveform: Any, sample_rate: int | float, *, on_progress: ProgressCallback | None = None
    ) -> dict[str, Any]:
        """Separate ``waveform`` (C, S), C = 1 or 2: stem name → (C, S) of the same library, device and dtype.

        ``waveform`` is a floating-point array of NumPy, PyTorch or JAX at ``sample_rate`` Hz, full scale ±1. Everything
        is computed in float32, without gradients. ``on_progress`` is called with (chunks done, chunks in all) after
        each batch of chunks; what it raises, for example :class:`twinsep.Cancelled`, ends the separation, and the
        separator can be used again. Raises :class:`InputError` for any other input, for values that are not finite, and
        as :meth:`stream` does.
        """
        song = _check_waveform(waveform)
        if not 0 < sample_rate < math.inf or sample_rate != int(sample_rate):
            raise InputError(f"a sample rate of {sample_rate} Hz is invalid: it must be a positive whole number")
        pieces = [stems for _, stems in self.stream([song], song.shape[1], int(sample_rate), on_progress=on_progress)]
        return {
            stem: _as_type_of(np.concatenate([piece[stem] for piece in pieces], 1), waveform) for stem in self.stems
        }

    def stream(
        self,
        blocks: Iterable[np.ndarray],
        frames: int,
        sample_rate: int,
        *,
        on_progress: ProgressCallback | None = None,
    ) -> Iterator[tuple[np.ndarray, Stems]]:
        """Separate a stream in bounded memory: pieces of the song (C, n), each with its stems (C, n).

        ``blocks`` (C, n) hold ``frames`` samples per channel in all, at ``sample_rate`` Hz. A mono song is fed to the
        model as two equal channels, a song of more than two channels in pairs. ``on_progress`` is called with (chunks
        done, chunks in all). Raises :class:`InputError` for estimates that are not finite, and as
        :func:`twinsep.separation.overlap_add.stream_model` does.
        """
        rate = self.sample_rate
        inner_frames = max(1, round(frames * rate / sample_rate))
        song, to_resample = _tee(blocks)
        mixture, to_model = _tee(resample_blocks(to_resample, sample_rate, rate, inner_frames))
        estimates = stream_model(_pair_channels(self.model), to_model, inner_frames, self.grid, progress=on_progress)
        parts = (self._all_but_last(piece, stems) for piece, stems in zip_blocks(mixture, estimates))
        flat = (part.reshape(-1, part.shape[-1]) for part in parts)  # ((stems − 1)·c, n), resampled together
        for piece, resampled in zip_blocks(song, resample_blocks(flat, rate, sample_rate, frames)):
            estimated = resampled.reshape(-1, *piece.shape)  # (stems − 1, c, n)
            yield piece, dict(zip(self.stems, (*estimated, piece - estimated.sum(0)), strict=True))

    def _all_but_last(self, mixture: np.ndarray, estimates: np.ndarray) -> np.ndarray:
        """All stems except the last (stems − 1, C, n) from a piece of the song and the model's estimates."""
        if not np.isfinite(estimates).all():
            raise InputError("the model returned values that are not finite: use another checkpoint")
        stems = dict(zip(self.config.model.stems, estimates, strict=True))
        if "instrumental" in stems:
            stems.setdefault("vocals", mixture - stems["instrumental"])
        return np.stack([stems[stem] for stem in self.stems[:-1]])


def load(
    path_or_preset: str | Path | None = None,
    framework: str = "torch",
    *,
    device: str = "cpu",
    chunking: Chunking | None = None,
    augmented: bool = False,
) -> Separator:
    """Load a separator of whole songs: the averaged weights of a checkpoint file or of a saved folder.

    By default these are the released weights. For the name of a preset they are drawn from seed 0, or are the published
    ones if the system's package has them. ``framework`` is "torch" or "jax"; for ``chunking`` see
    :class:`twinsep.separation.overlap_add.Chunking`, for ``augmented`` :class:`Separator`. Raises :class:`InputError`
    for a file or folder that is no model, for a framework or device that is not available, and without an argument if
    the installation has no released weights.
    """
    if path_or_preset is None:
        path_or_preset = checkpoints.released_path()
    found = _read_description(path_or_preset)
    grid = (chunking or Chunking()).grid(found.config)
    model = twin(framework).load(path_or_preset, device=device)
    layers, devices = twin(framework, "layers"), twin(framework, "devices")

    def saved() -> Checkpoint:
        weights = {f"model/{name}": _as_numpy(w[...]) for name, w in layers.named_weights(model).items()}
        return replace(found, tensors=weights)

    function = devices.on_numpy(model, devices.find_device(device))
    return Separator(function, found.config, grid, augmented=augmented, saved=saved)


def stems_of(config: Config) -> tuple[str, ...]:
    """The stems of a model, whose last one is the song minus the others."""
    targets = config.model.targets
    if set(targets) <= set(COMPLEMENTS):
        return ("vocals", "instrumental")
    if set(targets) == set(SOURCES) and not config.model.residual:
        return targets
    return (*targets, "residual")


def with_complement(stem: str, stems: tuple[str, ...]) -> tuple[str, str]:
    """``stem`` and the rest of the song, see :meth:`Separator.names`."""
    if stem in stems:
        return stem, COMPLEMENTS.get(stem, f"no_{stem}")
    if stem == "instrumental" and "vocals" in stems:
        return stem, "vocals"
    raise InputError(f"this model has no stem {stem!r}: choose from {', '.join(stems)}")


def read_config(path_or_preset: str | Path) -> Config:
    """The configuration of a checkpoint, a saved folder or a preset, without its weights; errors as in :func:`load`."""
    return _read_description(path_or_preset).config


def complement(song: np.ndarray, stems: Stems, stem: str) -> np.ndarray:
    """One stem of a piece of a song, the "mixture", or the song minus another stem: "no_drums", "instrumental"."""
    if stem == "mixture":
        return song
    if stem in stems:
        return stems[stem]
    return song - stems[COMPLEMENTS.get(stem, stem.removeprefix("no_"))]


def _read_description(path_or_preset: str | Path) -> Checkpoint:
    """The checkpoint without its tensors."""
    if isinstance(path_or_preset, str) and path_or_preset in PRESETS:
        return Checkpoint(PRESETS[path_or_preset], {})
    path = Path(path_or_preset)
    found = checkpoints.read(path, prefixes=())
    return replace(found, tensors={}, provenance=hub.origin(path, found))


def _tee(blocks: Iterable[np.ndarray]) -> tuple[Iterator[np.ndarray], Iterator[np.ndarray]]:
    """Two iterators over one stream. ``itertools.tee`` would keep up to 57 blocks that both have read."""
    source = iter(blocks)
    queues: tuple[deque[np.ndarray], deque[np.ndarray]] = (deque(), deque())

    def read(own: deque[np.ndarray]) -> Iterator[np.ndarray]:
        while True:
            if not own:
                block = next(source, None)
                if block is None:
                    return
                for queue in queues:
                    queue.append(block)
            yield own.popleft()

    return read(queues[0]), read(queues[1])


def _check_waveform(waveform: Any) -> np.ndarray:
    """``waveform`` (C, S) as float32 in NumPy; raises :class:`InputError` for anything else."""
    try:
        xp = array_namespace(waveform)
    except TypeError as error:
        raise InputError(
            f"a {type(waveform).__name__} is no waveform: pass an array of NumPy, PyTorch or JAX"
        ) from error
    if not xp.isdtype(waveform.dtype, "real floating"):
        raise InputError(f"a waveform of dtype {waveform.dtype} is not supported: pass floating point, full scale ±1")
    if waveform.ndim != 2 or waveform.shape[0] not in (1, 2) or not waveform.shape[1]:
        shape = tuple(waveform.shape)
        raise InputError(f"a waveform of shape {shape} is not supported: pass (1 or 2 channels, samples)")
    with np.errstate(over="ignore"):  # overflows to infinity, which is refused below
        song = _as_numpy(xp.astype(waveform, xp.float32))
    if not np.isfinite(song).all():
        raise InputError("the waveform holds NaN or infinite values: replace them")
    return song


def _as_numpy(array: Any) -> np.ndarray:
    """``array`` from any device, without gradients."""
    return np.asarray(to_device(array.detach(), "cpu") if is_torch_array(array) else array)


def _as_type_of(stem: np.ndarray, waveform: Any) -> Any:
    xp = array_namespace(waveform)
    return xp.astype(xp.asarray(stem, device=device_of(waveform)), waveform.dtype)


def _pair_channels(model: ArrayModel) -> ArrayModel:
    """A model of (B, 2, S) as one of (B, C, S), any C: channels in pairs, a single last one as two equal ones."""

    def function(x: np.ndarray) -> np.ndarray:
        batch, channels, samples = x.shape
        if channels % 2:
            x = np.concatenate([x, x[:, -1:]], 1)
        y = model(np.ascontiguousarray(x).reshape(-1, 2, samples))  # (b · pairs, stems, 2, s)
        y = np.moveaxis(y.reshape(batch, -1, *y.shape[1:]), 1, 2)  # (b, stems, pairs, 2, s)
        y = y.reshape(batch, y.shape[1], -1, y.shape[-1])  # (b, stems, 2 · pairs, s)
        if channels % 2:
            y = np.concatenate([y[:, :, : channels - 1], y[:, :, channels - 1 :].mean(2, keepdims=True)], 2)
        return y

    return function


def _augment(model: ArrayModel) -> ArrayModel:
    """The mean of the estimates for a song and its mirror images, each mirrored back."""

    def function(x: np.ndarray) -> np.ndarray:
        swapped = np.ascontiguousarray(x[:, ::-1])
        straight = model(x) - model(-x)
        crossed = model(swapped) - model(-swapped)
        return (straight + crossed[:, :, ::-1]) / 4

    return function
