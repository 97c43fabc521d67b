"""Films with another sound: picture and subtitles as they are, and a stem in place of the sound."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twinsep.audio import reading
from twinsep.audio.ffmpeg import start_of_picture
from twinsep.audio.mp4 import AAC_RATES, Encoder, open_container
from twinsep.errors import InputError
from twinsep.utils.files import atomic_path, display_path

#: Extension of a film → FFmpeg's name of the container and the codec of its sound; of others Matroska and FLAC.
_FILMS = {".mp4": ("mp4", "aac"), ".m4v": ("mp4", "aac"), ".mov": ("mov", "aac")}


def film_extension(film: Path) -> str:
    """The extension, without a dot, of a film that gets another sound."""
    return film.suffix.lower().lstrip(".") if film.suffix.lower() in _FILMS else "mkv"


def check_film(film: Path) -> None:
    """Raise :class:`InputError` for a file without a picture."""
    with _open_film(film):
        pass


def replace_sound(film: Path, sound: Path, path: Path, *, overwrite: bool = True) -> None:
    """Write ``film`` with ``sound`` in place of its own, from the start of its picture on, as ``path``.

    Picture and subtitles are copied as they are. The sound is AAC in MP4 and FLAC in Matroska. Raises
    :class:`InputError` for a film without a picture, for a sound or a container that cannot be written, and without
    ``overwrite`` for a file at ``path``.
    """
    form, codec = _FILMS.get(path.suffix.lower(), ("matroska", "flac"))
    with (
        atomic_path(path, overwrite=overwrite) as temporary,
        _open_film(film) as (source, copied),
        reading.open_audio(sound) as samples,
        open_container(path, temporary, form) as target,
    ):
        if codec == "aac" and samples.sample_rate not in AAC_RATES:
            raise InputError(f"cannot write {display_path(path)}: AAC does not take {samples.sample_rate} Hz; resample")
        first = source.streams.audio[0] if source.streams.audio else None
        start = start_of_picture(source, float((first.start_time or 0) * first.time_base) if first else None)
        streams = {stream.index: target.add_stream_from_template(stream) for stream in copied}
        encoder = Encoder(target, codec, samples.sample_rate, samples.channels, start)
        blocks, written = samples.blocks(), start
        for packet in source.demux(copied):
            if packet.dts is None:
                continue
            while written < float(packet.dts * packet.time_base) + 1 and (block := next(blocks, None)) is not None:
                encoder.write(block)
                written += block.shape[1] / samples.sample_rate
            packet.stream = streams[packet.stream_index]
            target.mux(packet)
        for block in blocks:
            encoder.write(block)
        encoder.finish()


@contextlib.contextmanager
def _open_film(film: Path) -> Iterator[tuple[Any, list[Any]]]:
    """An open film, and its streams of picture and subtitles."""
    import av
    from av.stream import Disposition

    try:
        container = av.open(str(film.absolute()), metadata_errors="ignore", options={"protocol_whitelist": "file"})
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{display_path(film)} cannot be opened as a film: leave out --remux") from error
    with container:
        pictures = [video for video in container.streams.video if not video.disposition & Disposition.attached_pic]
        if not pictures:
            raise InputError(f"{display_path(film)} has no picture to put the stems under: leave out --remux")
        yield container, [*pictures, *container.streams.subtitles]
