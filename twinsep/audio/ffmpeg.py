"""Sound files decoded by PyAV, which carries its own FFmpeg: MP3 and what libsndfile does not know."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from twinsep.audio.source import BLOCK, AudioSource, command, damaged, ends_as_ogg, no_sound, unknown
from twinsep.errors import InputError
from twinsep.utils.files import display_path

#: FFmpeg's names of the formats whose header states the length; of others it is estimated from the size.
_STATES_LENGTH = {"ape", "asf", "avi", "caf", "flac", "flv", "tta", "wav", "wv"}
_SLACK = 8192  # samples by which a stated length may be too long: it is rounded, and may count the encoder's delay
_MP3_SLACK = 2304  # two frames: the encoder's delay and padding, where the header does not tell them
_PADDING = 8192  # samples of silence after the end, at most, where iTunes' tag tells the length
_TIMESCALES = (600, 1000)  # units a second that edit lists of MP4 are rounded to


@contextlib.contextmanager
def open_with_ffmpeg(path: Path, index: int) -> Iterator[AudioSource]:
    """Audio stream ``index`` of a file. Raises :class:`InputError` for what is not sound, has none or is damaged."""
    with _container(path) as container:
        stream = _audio_stream(container, path, index)
        # None: sound of a kind that FFmpeg has no decoder for.
        if stream.codec_context is None or stream.codec_context.name.startswith("mp1"):
            raise unknown(path)  # text in UTF-16 may start like MPEG's Layer I, which nothing writes any more
        frames = _frames(container, stream, path)
        first = next(frames, None)
        if first is None:
            raise no_sound(path) if stream.codec_context.sample_rate else unknown(path)
        rate = first.sample_rate
        length = _mp4_length(path, index, rate) if "mp4" in container.format.name else None
        yield AudioSource(
            path,
            rate,
            first.layout.nb_channels,
            _holds_floats(stream.codec_context.name, first.format.name),
            length,
            length or round((container.duration or 0) / 1e6 * rate),
            _pieces(itertools.chain([first], frames), path),
        )


@contextlib.contextmanager
def _container(path: Path) -> Iterator[Any]:
    import av  # here because most runs never need it

    # Absolute, because "12:30.mp3" would name a protocol; and a playlist must not fetch anything.
    options = {"protocol_whitelist": "file"}
    try:
        container = av.open(str(path.absolute()), metadata_errors="ignore", options=options)
    except (av.FFmpegError, OSError) as error:
        raise unknown(path) from error
    with container:
        yield container


def _audio_stream(container: Any, path: Path, index: int) -> Any:
    streams = container.streams.audio
    if not streams:
        if not container.streams.video and not container.streams.subtitles:  # half of a header, perhaps
            raise unknown(path)
        raise InputError(f"{display_path(path)} holds no sound, only something else: name an audio file")
    if not 0 <= index < len(streams):
        raise InputError(f"{display_path(path)} has {len(streams)} audio streams, none of number {index}")
    return streams[index]


def _frames(container: Any, stream: Any, path: Path) -> Iterator[Any]:
    """The decoded frames of ``stream``; all streams are demuxed, because the stated length is that of the longest."""
    import av

    done, end = 0, 0.0
    try:
        for packet in container.demux():
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != stream.index:
                continue
            if packet.is_corrupt:
                raise damaged(path, "part of it is missing")
            for frame in packet.decode():
                yield frame
                done += frame.samples
    except (av.FFmpegError, OSError) as error:
        raise damaged(path, f"decoding fails after sample {done}") if done else unknown(path) from error
    if done:
        _check_length(container, done / frame.sample_rate, end, frame.sample_rate, path)
    if container.format.name == "ogg" and not ends_as_ogg(path):
        raise damaged(path, "its last page is missing")
    if (there := path.stat().st_size) < (promised := _bytes_promised(path)):
        raise damaged(path, f"{there} of {promised} bytes are there")


def _check_length(container: Any, decoded: float, end: float, rate: int, path: Path) -> None:
    """Raise :class:`InputError` where the header states more seconds than were decoded, or end with a packet."""
    stated = (container.duration or 0) / 1e6
    if container.format.name == "mp3":
        there, is_short = decoded, _counts_frames(mpeg_start(path)) and decoded < stated - _MP3_SLACK / rate
    else:
        there, is_short = end, container.format.name in _STATES_LENGTH and end < stated - _SLACK / rate
    if is_short:
        raise damaged(path, f"{there:.2f} of {stated:.2f} s are there")


def _bytes_promised(path: Path) -> int:
    """How long a Matroska or AVI file says it is; 0 where it does not, as when recorded live, and for others."""
    with path.open("rb") as file:
        head = file.read(1024)
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return 8 + int.from_bytes(head[4:8], "little")
    if not head.startswith(b"\x1a\x45\xdf\xa3"):
        return 0
    start, size = _ebml_size(head, 4)
    if head[start + size :][:4] != b"\x18\x53\x80\x67":  # the segment, which is the rest of the file
        return 0
    start, size = _ebml_size(head, start + size + 4)
    return start + size if size else 0


def _ebml_size(head: bytes, at: int) -> tuple[int, int]:
    """(where an element's content starts, its bytes, or 0 for unknown) from the variable-length size at ``at``."""
    length = 9 - head[at].bit_length()
    unknown_size = (1 << 7 * length) - 1
    size = int.from_bytes(head[at : at + length]) & unknown_size
    return at + length, 0 if size == unknown_size else size


def mpeg_start(path: Path) -> bytes:
    """The first bytes after the ID3 tags of ``path`` where they are MPEG audio (MP3), else none."""
    with path.open("rb") as file:
        while len(tag := file.read(10)) == 10 and tag.startswith(b"ID3"):
            file.seek(sum(byte << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True)), os.SEEK_CUR)
        head = tag + file.read(64)
    is_mpeg = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 6 in (2, 4)
    return head if is_mpeg else b""


def _counts_frames(start: bytes) -> bool:
    """Whether the first frame of an MP3 is a Xing or VBRI header that tells how many there are."""
    header_and_side_information = rb".{4}(?:.{2})?(?:.{9}|.{17}|.{32})"
    found = re.match(header_and_side_information + rb"(?:(?:Xing|Info)...(.)|VBRI)", start, re.DOTALL)
    return found is not None and (found[1] is None or bool(found[1][0] & 1))


def _mp4_length(path: Path, index: int, rate: int) -> int:
    """Samples in an MP4, after which comes only the encoder's padding.

    The packets tell them unless the encoder padded the last one. The edit list tells them, but often in units of
    a millisecond, so that the last sound would be lost. Files without one may have a tag of iTunes.
    """
    import av

    first, end = None, 0
    with _container(path) as container:
        stream = container.streams.audio[index]
        try:
            for packet in container.demux(stream):
                if packet.pts is not None:
                    first = packet.pts if first is None else min(first, packet.pts)
                    end = max(end, packet.pts + (packet.duration or 0))
        except (av.FFmpegError, OSError) as error:
            raise damaged(path, "its packets cannot be read") from error
        whole = round((end - (stream.start_time or 0)) * stream.time_base * rate)
        stated = round((stream.duration or 0) * stream.time_base * rate)
        if not stated or abs(stream.duration - (end - (first or 0))) <= 1:  # no edit list cuts anything
            tag = re.fullmatch(r"\s*\w+ \w+ \w+ ([0-9A-F]{16})\b.*", container.metadata.get("iTunSMPB", ""))
            told = int(tag[1], 16) if tag else whole
            return told if 0 <= whole - told <= _PADDING else whole
    rounded = stated in {round(round(stated * unit / rate) * rate / unit) for unit in _TIMESCALES}
    near = abs(whole - stated) <= rate / min(_TIMESCALES) + 1
    return whole if near and (rounded or whole < stated) else stated


def _holds_floats(codec: str, sample_format: str) -> bool:
    return codec.startswith("pcm_f") or (codec == "wavpack" and sample_format.startswith("flt"))


def _pieces(frames: Iterator[Any], path: Path) -> Iterator[np.ndarray]:
    """(C, S) float32 of ``BLOCK`` samples. Raises :class:`InputError` where the rate or the channels change."""
    import av

    first = next(frames)
    kind, channels, done = _kind(first), first.layout.nb_channels, 0
    # Packed, because PyAV makes no array of a planar frame of more than seven channels.
    converter = av.AudioResampler(format="flt", layout=first.layout, rate=first.sample_rate, frame_size=BLOCK)
    for frame in itertools.chain([first], frames, [None]):
        if frame and _kind(frame) != kind:
            change = f"from {kind} to {_kind(frame)} at sample {done}"
            raise InputError(f"{display_path(path)} changes {change}: convert it with {command(path, 'converted.wav')}")
        for part in converter.resample(frame):
            yield part.to_ndarray().reshape(-1, channels).T
        done += frame.samples if frame else 0


def _kind(frame: Any) -> str:
    return f"{frame.sample_rate} Hz, {frame.layout.name}, {frame.format.name}"
