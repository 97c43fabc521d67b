"""Decoding with PyAV, which brings its own FFmpeg: MP3 and every format that libsndfile does not know."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from twinsep.audio.source import (
    BLOCK,
    AudioSource,
    damaged_error,
    ffmpeg_command,
    has_last_ogg_page,
    no_sound_error,
    unknown_format_error,
)
from twinsep.errors import InputError
from twinsep.utils.files import display_path

# FFmpeg's names of the formats with the length in the header; for others FFmpeg estimates it from the file's size.
_LENGTH_IN_HEADER = {"ape", "asf", "caf", "flac", "flv", "tta", "wav", "wv"}
_MP4, _MATROSKA = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"
# Samples by which a file may be shorter than stated: lengths are rounded and may include the encoder's delay.
_TOLERANCE = 8192
_TOLERANCES = {"mp3": 2304, _MP4: 2304}


@contextlib.contextmanager
def open_with_ffmpeg(path: Path, index: int) -> Iterator[AudioSource]:
    """Open audio stream ``index`` of a file.

    Raises :class:`InputError` for a file that is not sound, has no such stream, holds no samples or is damaged.
    """
    with _container(path) as container:
        stream = _audio_stream(container, path, index)
        # There is no context if FFmpeg lacks the decoder. UTF-16 text may look like MPEG Layer I, which is extinct.
        if stream.codec_context is None or stream.codec_context.name.startswith("mp1"):
            raise unknown_format_error(path)
        frames = _frames(container, stream, path)
        first = next(frames, None)
        if first is None:
            raise no_sound_error(path) if stream.codec_context.sample_rate else unknown_format_error(path)
        frame = first[0]
        yield AudioSource(
            path,
            frame.sample_rate,
            frame.layout.nb_channels,
            _is_float(stream.codec_context.name, frame.format.name),
            None,
            round((container.duration or 0) / 1e6 * frame.sample_rate),
            _pieces(itertools.chain([first], frames), path),
        )


@contextlib.contextmanager
def _container(path: Path) -> Iterator[Any]:
    import av  # here because most runs never need it

    # Absolute, because "12:30.mp3" would name a protocol; the whitelist keeps playlists from fetching anything.
    options = {"protocol_whitelist": "file"}
    try:
        container = av.open(str(path.absolute()), metadata_errors="ignore", options=options)
    except (av.FFmpegError, OSError) as error:
        raise unknown_format_error(path) from error
    with container:
        yield container


def _audio_stream(container: Any, path: Path, index: int) -> Any:
    streams = container.streams.audio
    if not streams:
        if not container.streams.video and not container.streams.subtitles:  # half of a header, perhaps
            raise unknown_format_error(path)
        raise InputError(f"{display_path(path)} holds no sound, only something else: name an audio file")
    if not 0 <= index < len(streams):
        raise InputError(f"{display_path(path)} has {len(streams)} audio streams, none of number {index}")
    return streams[index]


def _frames(container: Any, stream: Any, path: Path) -> Iterator[tuple[Any, int]]:
    """Decode ``stream``: pairs of a frame and the number of its samples that are sound.

    Raises :class:`InputError` for damage, and at the end if the header states a greater length.
    """
    import av

    name, decoded, rate, end = container.format.name, 0, 0, 0.0
    start = float((stream.start_time or 0) * stream.time_base)
    try:
        for packet in container.demux():  # all streams, because the stated length is that of the longest
            is_ours = packet.stream_index == stream.index
            if packet.pts is not None and (is_ours or name != _MP4):
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if not is_ours:
                continue
            if packet.is_corrupt:
                raise damaged_error(path, "part of it is missing")
            for frame in packet.decode():
                rate = frame.sample_rate
                # In MP4 the duration of the last packet leaves out the encoder's padding.
                sound = max(0, round((end - start) * rate) - decoded) if name == _MP4 else frame.samples
                yield frame, min(sound, frame.samples)
                decoded += frame.samples
    except (av.FFmpegError, OSError) as error:
        detail = f"decoding fails after sample {decoded}"
        raise damaged_error(path, detail) if decoded else unknown_format_error(path) from error
    stated = _stated_seconds(container, stream)
    found = decoded / rate if name == "mp3" and rate else end
    if decoded and found < stated - _TOLERANCES.get(name, _TOLERANCE) / rate:
        raise damaged_error(path, f"{found:.2f} of {stated:.2f} s are there")
    if name == "ogg" and not has_last_ogg_page(path):
        raise damaged_error(path, "its last page is missing")


def _stated_seconds(container: Any, stream: Any) -> float:
    """The length that the header states, in seconds, or 0 if it states none."""
    name = container.format.name
    if name in (_MP4, "avi"):
        # FFmpeg takes AVI's duration from what is there, but counts frames as the header does.
        length = stream.frames if name == "avi" else stream.duration
        return float((length or 0) * stream.time_base)
    is_stated = (
        name in _LENGTH_IN_HEADER
        or (name == _MATROSKA and stream.duration is None)  # the stream has a duration only if FFmpeg estimates it
        or (name == "mp3" and stream.start_time)  # the header that counts the frames states the encoder's delay too
    )
    return (container.duration or 0) / 1e6 if is_stated else 0.0


def _is_float(codec: str, sample_format: str) -> bool:
    return codec.startswith("pcm_f") or (codec == "wavpack" and sample_format.startswith("flt"))


def _pieces(frames: Iterator[tuple[Any, int]], path: Path) -> Iterator[np.ndarray]:
    """Join frames to arrays (C, ``BLOCK``), the last one shorter.

    Raises :class:`InputError` if the sample rate, the channels or the sample format change.
    """
    import av

    kind, converter, done = "", None, 0
    waiting: list[np.ndarray] = []  # (s, c) each
    size = 0
    for frame, sound in frames:
        found = f"{frame.sample_rate} Hz, {frame.layout.name}, {frame.format.name}"
        if converter is None:
            # Packed, because PyAV makes no array from a planar frame with more than seven channels.
            kind, converter = found, av.AudioResampler("flt", frame.layout, frame.sample_rate)
        if found != kind:
            raise InputError(
                f"{display_path(path)} changes from {kind} to {found} at sample {done}: "
                f"convert it with {ffmpeg_command(path, 'converted.wav')}"
            )
        samples = np.concatenate([part.to_ndarray().reshape(-1) for part in converter.resample(frame)])
        waiting.append(samples.reshape(-1, frame.layout.nb_channels)[:sound])  # (s, c)
        size += len(waiting[-1])
        done += sound
        if size >= BLOCK:
            joined, size = np.concatenate(waiting), size % BLOCK
            waiting = [joined[len(joined) - size :].copy()]
            for start in range(0, len(joined) - size, BLOCK):
                yield joined[start : start + BLOCK].T
    if size:
        yield np.concatenate(waiting).T
