"""A model and how it is applied to whole songs: any length, rate and number of channels."""

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
from twinsep.separation import overlap_add
from twinsep.separation.overlap_add import ArrayModel, Chunking, chunk_samples, zip_blocks
from twinsep.utils.backend import twin
from twinsep.utils.progress import ProgressCallback

#: The stem that is left when another is removed.
COMPLEMENTS = {"vocals": "instrumental", "instrumental": "vocals"}
Stems = dict[str, np.ndarray]


class Separator:
    """Songs to stems that add up to the song.

    One stem is never an estimate of its own: it is the song less the others. Of a model of the instrumental, or of the
    vocals, that is the instrumental, from which what was estimated of the vocals is subtracted; of one of all sources
    the last; of any other a "residual". So what the model does not see, such as all above its own Nyquist frequency, is
    kept, and a model that removes nothing gives the song to float32 rounding. ``augmented`` averages the estimates of
    the song, of its channels swapped, its polarity reversed, and both, at four times the work. ``saved`` gives what
    :meth:`save_pretrained` writes; :func:`load` sets it.
    """

    def __init__(
        self,
        model: ArrayModel,
        config: Config,
        chunking: Chunking,
        *,
        augmented: bool = False,
        saved: Callable[[], Checkpoint] | None = None,
    ):
        self.config, self.chunking = config, chunking
        self.model = _augmented(model) if augmented else model
        self._saved = saved
        targets = config.model.targets
        #: Names of what comes out; the last one is what the others leave of the song.
        self.stems: tuple[str, ...] = (*targets, "residual")
        if set(targets) <= set(COMPLEMENTS):
            self.stems = ("vocals", "instrumental")
        elif set(targets) == set(SOURCES) and not config.model.residual:
            self.stems = targets

    @classmethod
    def from_pretrained(cls, folder_or_repository: str | Path, framework: str = "torch", **options: Any) -> Separator:
        """A folder that :meth:`save_pretrained` wrote, or a repository of the Hugging Face hub with its files, which is
        fetched by huggingface_hub if that is installed. ``options`` and what is raised are those of :func:`load`."""
        return load(hub.fetch(folder_or_repository), framework, **options)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json``, ``model.safetensors`` and a model card into ``folder``, all or nothing.

        A former model there is replaced. Raises :class:`InputError`, what is there being untouched, for a folder with
        anything else in it and for a place that cannot be written to.
        """
        if self._saved is None:
            raise InputError("this separator was made around a function and has no weights to save; load one")
        hub.write(folder, self._saved())

    @property
    def sample_rate(self) -> int:
        """The model's, in Hz; songs of other rates are resampled on the way to it, and estimates on the way back."""
        return self.config.model.sample_rate

    def names(self, wanted: str) -> tuple[str, str]:
        """``wanted`` and what it leaves: "vocals" → ("vocals", "instrumental"), "drums" → ("drums",
        "no_drums"). Raises :class:`InputError` for a stem that the model does not give."""
        if wanted in self.stems:
            rest = COMPLEMENTS.get(wanted, f"no_{wanted}")
        elif wanted == "instrumental" and "vocals" in self.stems:
            rest = "vocals"
        else:
            raise InputError(f"this model gives no stem {wanted!r}; it gives {', '.join(self.stems)}")
        return (wanted, rest)

    def __call__(
        self, waveform: Any, sample_rate: int | float, *, progress: ProgressCallback | None = None
    ) -> dict[str, Any]:
        """The stems by name, each as ``waveform``: (c, s), c 1 or 2, of the same library, device and type.

        ``waveform`` is a NumPy, PyTorch or JAX array of floating point at ``sample_rate`` Hz. All is computed in
        float32 and without gradients. ``progress`` is called with (chunks done, chunks in all). Raises
        :class:`InputError` for anything else, for values that are not finite, and as :meth:`stream` does.
        """
        song = _song(waveform)
        if not 0 < sample_rate < math.inf or sample_rate != int(sample_rate):
            raise InputError(f"a sample rate of {sample_rate} Hz is not possible; give a positive whole number")
        pieces = [stems for _, stems in self.stream([song], song.shape[1], int(sample_rate), progress=progress)]
        return {stem: _like(np.concatenate([piece[stem] for piece in pieces], 1), waveform) for stem in self.stems}

    def stream(
        self, blocks: Iterable[np.ndarray], frames: int, sample_rate: int, *, progress: ProgressCallback | None = None
    ) -> Iterator[tuple[np.ndarray, Stems]]:
        """Pieces of the song, (c, n) as it came, each with its stems (c, n), in bounded memory.

        ``blocks`` (c, n) hold ``frames`` samples a channel in all, at ``sample_rate`` Hz. A single channel is heard as
        two that are equal, and more than two are heard two by two. ``progress`` is called with (chunks done, chunks in
        all). Raises :class:`InputError` for estimates that are not finite, and what :func:`separation.stream` raises.
        """
        rate = self.sample_rate
        inner = max(1, round(frames * rate / sample_rate))
        song, heard = _both(blocks)
        mixture, fed = _both(resample_blocks(heard, sample_rate, rate, inner))
        estimates = overlap_add.stream_model(_of_channels(self.model), fed, inner, self.chunking, progress=progress)
        parts = (self._parts(piece, stems) for piece, stems in zip_blocks(mixture, estimates))
        back = resample_blocks(_flat(parts), rate, sample_rate, frames)
        for piece, flat in zip_blocks(song, back):
            estimated = flat.reshape(-1, *piece.shape)
            yield piece, dict(zip(self.stems, (*estimated, piece - estimated.sum(0)), strict=True))

    def _parts(self, mixture: np.ndarray, estimates: np.ndarray) -> np.ndarray:
        """The stems but the last, (stems − 1, c, n), of a piece of the song and the model's estimates."""
        if not np.isfinite(estimates).all():
            raise InputError("the model gave values that are not numbers; use another checkpoint")
        given = dict(zip(self.config.model.stems, estimates, strict=True))
        if "instrumental" in given:
            given.setdefault("vocals", mixture - given["instrumental"])
        return np.stack([given[stem] for stem in self.stems[:-1]])


def load(
    path_or_preset: str | Path,
    framework: str = "torch",
    *,
    device: str = "cpu",
    segment: float | None = None,
    overlap: float = 0.25,
    shifts: int = 1,
    batch: int = 1,
    augmented: bool = False,
) -> Separator:
    """A separator of whole songs around the averaged model of a checkpoint file or of a folder that
    :meth:`Separator.save_pretrained` wrote, or around a preset's, whose weights are drawn from seed 0.

    ``framework`` is "torch" or "jax", ``segment`` the seconds of a chunk, by default those of a training example; for
    ``overlap``, ``shifts`` and ``batch`` see :class:`twinsep.separation.Chunking`, for ``augmented``
    :class:`Separator`. Raises :class:`InputError` for a file or a folder that is no model, options that are not
    possible, and a framework or a device that is not there.
    """
    found = _found(path_or_preset)
    config = found.config
    chunking = Chunking(chunk_samples(config, segment), overlap, shifts, batch)
    model, layers = twin(framework).load(path_or_preset, device=device), twin(framework, "layers")
    devices = twin(framework, "devices")

    def saved() -> Checkpoint:
        weights = {f"model/{name}": _as_numpy(w[...]) for name, w in layers.named_parameters(model).items()}
        return replace(found, tensors=weights)

    return Separator(
        devices.on_numpy(model, devices.find_device(device)), config, chunking, augmented=augmented, saved=saved
    )


def _found(path_or_preset: str | Path) -> Checkpoint:
    """What is to be loaded, but for its weights."""
    if isinstance(path_or_preset, str) and path_or_preset in PRESETS:
        return Checkpoint(PRESETS[path_or_preset], {})
    path = Path(path_or_preset)
    found = checkpoints.read(path, prefixes=())
    return replace(found, tensors={}, provenance=hub.origin(path, found))


def _both(blocks: Iterable[np.ndarray]) -> tuple[Iterator[np.ndarray], Iterator[np.ndarray]]:
    """A stream twice, as ``itertools.tee`` gives it; that keeps up to 57 blocks which both have read."""
    source = iter(blocks)
    waiting: tuple[deque[np.ndarray], deque[np.ndarray]] = (deque(), deque())

    def branch(own: deque[np.ndarray]) -> Iterator[np.ndarray]:
        while True:
            if not own:
                block = next(source, None)
                if block is None:
                    return
                for each in waiting:
                    each.append(block)
            yield own.popleft()

    return branch(waiting[0]), branch(waiting[1])


def complement(song: np.ndarray, stems: Stems, stem: str) -> np.ndarray:
    """One stem of a piece of the song, also one that is the song less another: "no_drums", "instrumental"."""
    if stem in stems:
        return stems[stem]
    return song - stems[COMPLEMENTS.get(stem, stem.removeprefix("no_"))]


def _song(waveform: Any) -> np.ndarray:
    """``waveform`` (c, s) as float32 in NumPy, checked."""
    try:
        xp = array_namespace(waveform)
    except TypeError as error:
        raise InputError(
            f"a {type(waveform).__name__} is no waveform; give an array of NumPy, PyTorch or JAX"
        ) from error
    if not xp.isdtype(waveform.dtype, "real floating"):
        raise InputError(f"a waveform of {waveform.dtype} is not possible; give floating point, full scale at 1")
    if waveform.ndim != 2 or waveform.shape[0] not in (1, 2) or not waveform.shape[1]:
        raise InputError(
            f"a waveform of shape {tuple(waveform.shape)} is not possible; give (1 or 2 channels, samples)"
        )
    with np.errstate(over="ignore"):  # infinite then, and refused
        song = _as_numpy(xp.astype(waveform, xp.float32))
    if not np.isfinite(song).all():
        raise InputError("the waveform holds values that are NaN or infinite; replace them")
    return song


def _as_numpy(array: Any) -> np.ndarray:
    """Without gradients, from any device."""
    return np.asarray(to_device(array.detach(), "cpu") if is_torch_array(array) else array)


def _like(stem: np.ndarray, waveform: Any) -> Any:
    xp = array_namespace(waveform)
    return xp.astype(xp.asarray(stem, device=device_of(waveform)), waveform.dtype)


def _flat(parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """(stems, c, n) as (stems · c, n), to be resampled together."""
    for piece in parts:
        yield piece.reshape(-1, piece.shape[-1])


def _of_channels(model: ArrayModel) -> ArrayModel:
    """A model of (b, 2, s) as one of (b, c, s), any c: pairs of channels, and a single last one as two equal ones."""

    def function(x: np.ndarray) -> np.ndarray:
        batch, channels, samples = x.shape
        if channels % 2:
            x = np.concatenate([x, x[:, -1:]], 1)
        y = model(np.ascontiguousarray(x).reshape(-1, 2, samples))  # (b · pairs, stems, 2, s)
        y = np.moveaxis(y.reshape(batch, -1, *y.shape[1:]), 1, 2)  # (b, stems, pairs, 2, s)
        y = y.reshape(batch, y.shape[1], -1, y.shape[-1])
        if channels % 2:
            y = np.concatenate([y[:, :, : channels - 1], y[:, :, channels - 1 :].mean(2, keepdims=True)], 2)
        return y

    return function


def _augmented(model: ArrayModel) -> ArrayModel:
    """The mean of what the model makes of a song and of its mirror images, each turned back."""

    def function(x: np.ndarray) -> np.ndarray:
        swapped = np.ascontiguousarray(x[:, ::-1])
        straight = model(x) - model(-x)
        crossed = model(swapped) - model(-swapped)
        return (straight + crossed[:, :, ::-1]) / 4

    return function
