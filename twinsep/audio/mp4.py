"""Writing MP4 with PyAV: sound in AAC (``.m4a``) and Native Instruments' Stems (``.stem.mp4``).

A file of Stems holds the song as its first stream and each stem as another, and names them in the box ``stem``
(Native Instruments, Stem File Format Specification). The format has four stems; other numbers are written alike.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from twinsep.audio.sink import FilePath, Writer, check_space
from twinsep.errors import InputError
from twinsep.utils.files import atomic_path, display_path

#: Sample rates in Hz that AAC has.
AAC_RATES = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000)
_BITRATE = 128_000  # bit/s for each channel
_LAYOUTS = {1: "mono", 2: "stereo"}
_EXACT = {"fflags": "+bitexact"}  # no version and time of writing, so that equal sound gives equal bytes
_COLORS = ("#009E73", "#D55E00", "#CC79A7", "#56B4E9")


class Encoder:
    """An audio stream of an open container, which begins at ``start`` in seconds."""

    def __init__(self, container: Any, codec: str, sample_rate: int, channels: int, start: float = 0.0):
        import av

        self._container = container
        layout = _LAYOUTS[channels]
        self._stream = container.add_stream(codec, rate=sample_rate, layout=layout)
        if codec == "aac":
            self._stream.bit_rate = _BITRATE * channels
        context = self._stream.codec_context
        if codec == "flac":
            context.format = "s32"  # 24 bits instead of 16
        context.open()
        size = context.frame_size or 1024
        self._resampler = av.AudioResampler(context.format, layout, sample_rate, frame_size=size)
        self._rate, self._layout, self._next = sample_rate, layout, round(start * sample_rate)

    def write(self, block: np.ndarray) -> None:
        """Append samples (C, S)."""
        import av

        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block, np.float32), format="fltp", layout=self._layout)
        frame.sample_rate, frame.pts, frame.time_base = self._rate, self._next, Fraction(1, self._rate)
        self._next += block.shape[1]
        self._mux(frame)

    def finish(self) -> None:
        """Write what the encoder holds back."""
        self._mux(None)
        self._container.mux(self._stream.encode(None))

    def _mux(self, frame: Any) -> None:
        for part in self._resampler.resample(frame):
            self._container.mux(self._stream.encode(part))


class Mp4Writer(Writer):
    """An open ``.m4a``, or one stream of a ``.stem.mp4``, that takes blocks."""

    def __init__(self, path: Path, temporary: Path, container: Any, sample_rate: int, channels: int):
        super().__init__(path, temporary)
        if sample_rate not in AAC_RATES or channels not in _LAYOUTS:
            raise InputError(
                f"cannot write {display_path(path)}: AAC does not take {channels} channels at {sample_rate} Hz; "
                "choose .wav or .flac, or resample"
            )
        self._encoder = Encoder(container, "aac", sample_rate, channels)

    def _encode(self, block: np.ndarray) -> None:
        block = self._clamp(block)
        with _explained(self._path, self._temporary):
            self._encoder.write(block)

    def close(self) -> None:
        """Write what the encoder holds back."""
        with _explained(self._path, self._temporary):
            self._encoder.finish()

    def abandon(self) -> None:
        """Do nothing: the container is closed elsewhere."""


@contextlib.contextmanager
def stem_file(
    path: FilePath,
    sample_rate: int,
    channels: int,
    names: tuple[str, ...],
    *,
    overwrite: bool = True,
    finish: Callable[[Path], None] | None = None,
) -> Iterator[dict[str, Writer]]:
    """Open a file of several streams, each of a name, within a ``with``: name → :class:`Writer`.

    The first name is that of the song, for players without Stems. For ``finish`` and the errors raised see
    :func:`twinsep.audio.writer`.
    """
    path = Path(path)
    with atomic_path(path, overwrite=overwrite) as temporary:
        with open_container(path, temporary, "mp4") as container:
            writers: dict[str, Writer] = {
                name: Mp4Writer(path, temporary, container, sample_rate, channels) for name in names
            }
            yield writers
            for stream in writers.values():
                stream.close()
        _add_names(temporary, names[1:])
        if finish:
            finish(temporary)


@contextlib.contextmanager
def open_container(path: Path, temporary: Path, form: str) -> Iterator[Any]:
    """Open a container for writing into ``temporary``; errors name ``path``."""
    import av

    # By an open file, because the name may not be UTF-8.
    with (
        temporary.open("wb") as file,
        _explained(path, temporary),
        av.open(file, "w", format=form, options=dict(_EXACT)) as container,
    ):
        yield container


@contextlib.contextmanager
def _explained(path: Path, temporary: Path) -> Iterator[None]:
    import av

    try:
        yield
    except av.FFmpegError as error:
        check_space(temporary)
        raise InputError(
            f"cannot write {display_path(path)}: the encoder failed ({error}); choose another format"
        ) from error


def _add_names(path: Path, names: tuple[str, ...]) -> None:
    """Add the box ``moov.udta.stem``; PyAV writes ``moov`` last, so that nothing else moves."""
    content = {
        "mastering_dsp": {"compressor": {"enabled": False}, "limiter": {"enabled": False}},
        "stems": [
            {"name": name.capitalize(), "color": _COLORS[number % len(_COLORS)]} for number, name in enumerate(names)
        ],
        "version": 1,
    }
    text = json.dumps(content).encode()
    with path.open("rb+") as file:
        place = 0
        while (header := file.read(8))[4:] != b"moov":
            size = int.from_bytes(header[:4])
            # A size of 1 stands for one of 64 bits that follows.
            place += int.from_bytes(file.read(8)) if size == 1 else size
            file.seek(place)
        boxes = file.read()
        at = 0
        while at < len(boxes) and boxes[at + 4 : at + 8] != b"udta":
            at += max(8, int.from_bytes(boxes[at : at + 4]))
        # Without metadata there may be no box udta.
        end = at + int.from_bytes(boxes[at : at + 4]) if at < len(boxes) else at + 8
        stem = struct.pack(">I4s", 8 + len(text), b"stem") + text
        udta = struct.pack(">I4s", end - at + len(stem), b"udta") + boxes[at + 8 : end] + stem
        boxes = boxes[:at] + udta + boxes[end:]
        file.seek(place)
        file.write(struct.pack(">I4s", 8 + len(boxes), b"moov") + boxes)
