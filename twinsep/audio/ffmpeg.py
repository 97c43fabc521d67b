"""Decoding with PyAV, which brings its own FFmpeg: MP3 and every format that libsndfile does not know."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twinsep.audio.source import (
    BLOCK,
    AudioSource,
    check_last_ogg_page,
    damaged_error,
    ffmpeg_command,
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
# Formats whose timestamps say when a sound is heard, so that a gap in them is silence.
_TIMED = {_MP4, _MATROSKA, "flv", "mpegts"}
# Seconds. Less is jitter, as FFmpeg's own resampler has it; more is a clock that was set anew.
_SHORTEST_GAP, _LONGEST_GAP = 0.1, 600.0


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
        notes: list[str] = []
        frames = _frames(container, stream, path, notes)
        first = next(frames, None)
        if first is None:
            raise no_sound_error(path) if stream.codec_context.sample_rate else unknown_format_error(path)
        frame = first.frame
        yield AudioSource(
            path,
            frame.sample_rate,
            frame.layout.nb_channels,
            _is_float(stream.codec_context.name, frame.format.name),
            None,
            round((container.duration or 0) / 1e6 * frame.sample_rate),
            _pieces(_samples(itertools.chain([first], frames), path)),
            notes,
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


class _TimedFrame(NamedTuple):
    """A decoded frame, the samples of silence before it, and the number of its samples that are sound."""

    silence: int
    frame: Any
    sound: int


def _frames(container: Any, stream: Any, path: Path, notes: list[str]) -> Iterator[_TimedFrame]:
    """Decode ``stream``; add to ``notes`` where its timestamps leave gaps.

    Raises :class:`InputError` for damage, and at the end if the header states a greater length.
    """
    import av

    name, decoded, rate, end = container.format.name, 0, 0, 0.0
    start = float((stream.start_time or 0) * stream.time_base)
    clock = _Clock(start_of_picture(container, start) if name in _TIMED else start)
    done = 0  # decoded samples and silence
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
                silence = clock.silence(frame, done) if name in _TIMED else 0
                done += silence
                # In MP4 the duration of the last packet leaves out the encoder's padding.
                sound = max(0, round((end - clock.start) * rate) - done) if name == _MP4 else frame.samples
                yield _TimedFrame(silence, frame, min(sound, frame.samples))
                decoded += frame.samples
                done += frame.samples
    except (av.FFmpegError, OSError) as error:
        detail = f"decoding fails after sample {decoded}"
        raise damaged_error(path, detail) if decoded else unknown_format_error(path) from error
    notes += clock.notes(start)
    stated = _stated_seconds(container, stream)
    found = decoded / rate if name == "mp3" and rate else end
    if decoded and found < stated - _TOLERANCES.get(name, _TOLERANCE) / rate:
        raise damaged_error(path, f"{found:.2f} of {stated:.2f} s are there")
    if name == "ogg":
        check_last_ogg_page(path, notes)


def start_of_picture(container: Any, start: float | None) -> float:
    """Start of a film in seconds: of its picture, or of its sound, which begins at ``start``, if that is earlier."""
    from av.stream import Disposition

    pictures = [
        float(video.start_time * video.time_base)
        for video in container.streams.video
        if video.start_time is not None and not video.disposition & Disposition.attached_pic
    ]
    return min([*pictures[:1], *([] if start is None else [start])], default=0.0)


class _Clock:
    """Compares the timestamps of frames with the samples so far, from ``start`` in seconds on."""

    def __init__(self, start: float):
        self.start = self._next = start
        self._gaps: list[tuple[float, float]] = []  # (place, length) in seconds
        self._jumps: list[float] = []

    def silence(self, frame: Any, done: int) -> int:
        """Samples of silence before ``frame``, where ``done`` samples are there."""
        if frame.time is None:
            return 0
        rate = frame.sample_rate
        # Both, because timestamps of live recordings jitter, and drift away from the number of samples.
        late = frame.time - self.start - done / rate
        gap, self._next = frame.time - self._next, frame.time + frame.samples / rate
        if gap > _LONGEST_GAP:
            self._jumps.append(gap)
            self.start += gap
        elif min(late, gap) > _SHORTEST_GAP:
            self._gaps.append((done / rate, late))
            return round(late * rate)
        return 0

    def notes(self, start: float) -> list[str]:
        """Parts of sentences about the gaps, for a sound whose first timestamp is ``start``."""
        found = []
        if self._gaps and not self._gaps[0][0]:
            found.append(f"its sound begins {start - self.start:.2f} s after its picture, which silence fills")
        if gaps := [gap for gap in self._gaps if gap[0]]:
            many = f"{len(gaps)} gaps, {sum(length for _, length in gaps):.2f} s in all and the first"
            one = f"a gap of {gaps[0][1]:.2f} s"
            found.append(f"its sound has {one if len(gaps) == 1 else many} at {gaps[0][0]:.2f} s, filled with silence")
        if self._jumps:
            found.append(f"its timestamps jump by {self._jumps[0]:.0f} s, which is taken for a fault and left out")
        return found


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


def _samples(frames: Iterator[_TimedFrame], path: Path) -> Iterator[np.ndarray]:
    """Samples (s, C) of the frames and of the silence between them.

    Raises :class:`InputError` if the sample rate, the channels or the sample format change.
    """
    import av

    kind, converter, done = "", None, 0
    for silence, frame, sound in frames:
        found = f"{frame.sample_rate} Hz, {frame.layout.name}, {frame.format.name}"
        if converter is None:
            # Packed, because PyAV makes no array from a planar frame with more than seven channels.
            kind, converter = found, av.AudioResampler("flt", frame.layout, frame.sample_rate)
        if found != kind:
            raise InputError(
                f"{display_path(path)} changes from {kind} to {found} at sample {done}: "
                f"convert it with {ffmpeg_command(path, 'converted.wav')}"
            )
        channels = frame.layout.nb_channels
        for start in range(0, silence, BLOCK):
            yield np.zeros((min(BLOCK, silence - start), channels), np.float32)
        samples = np.concatenate([part.to_ndarray().reshape(-1) for part in converter.resample(frame)])
        yield samples.reshape(-1, channels)[:sound]
        done += silence + sound


def _pieces(parts: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Join samples (s, C) to arrays (C, ``BLOCK``), the last one shorter."""
    waiting: list[np.ndarray] = []
    size = 0
    for part in parts:
        waiting.append(part)
        size += len(part)
        if size >= BLOCK:
            joined, size = np.concatenate(waiting), size % BLOCK
            waiting = [joined[len(joined) - size :].copy()]
            for start in range(0, len(joined) - size, BLOCK):
                yield joined[start : start + BLOCK].T
    if size:
        yield np.concatenate(waiting).T
