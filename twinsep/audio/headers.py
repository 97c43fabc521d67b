"""Headers that state no length or a wrong one, corrected in a view of the file; the file itself is left as it is.

A program that writes into a pipe cannot go back to fill in the sizes, so it leaves placeholders; a recorder that
crashes leaves zeros, or the sizes of its last update. libsndfile takes such numbers at their word. :func:`examine`
finds them in WAV (RIFF, RF64, BW64), AIFF, AU, CAF, W64 and FLAC, and :class:`PatchedFile` presents the file to
libsndfile with a few bytes of the header replaced, so that the sound is read to the end of the file.
"""

from __future__ import annotations

import functools
import io
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

UNFINISHED = "the header of the file was never finished, as if its recorder had crashed; it was read to its end"
# Sizes that programs write for "unknown": sox, mpg123 and espeak 0x7FFFF000, arecord 0x80000000, GStreamer 0x7FFF0000,
# FFmpeg 0xFFFFFFFF, all sometimes less or more by the size of a header.
_PLACEHOLDERS = (range(0x7FFF_0000, 0x8001_0000), range(0xFFFF_FF00, 0x1_0000_0000))
# What may follow the last chunk: tags of MP3 players.
_TRAILERS = (b"TAG", b"APETAGEX", b"ID3", b"LYRICSBEGIN")
_CHUNKS = 1000  # before the sound; more are no sound file
_LEAST_REST = 4096  # bytes after the stated end of the sound, below which they are padding
_W64 = bytes.fromhex("726966662e91cf11a5d628db04c10000")


@dataclass(frozen=True)
class Header:
    """Bytes to replace by offset in the file, and a note for the user."""

    patches: Mapping[int, bytes] = field(default_factory=dict)
    note: str | None = None


class PatchedFile(io.RawIOBase):
    """A file for reading, some of whose bytes are replaced."""

    def __init__(self, path: Path, patches: Mapping[int, bytes]):
        super().__init__()
        self._file = path.open("rb")
        self._patches = patches

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` from the current position; return the number of bytes."""
        start = self._file.tell()
        count = self._file.readinto(buffer)
        for offset, new in self._patches.items():
            first, last = max(offset, start), min(offset + len(new), start + count)
            if first < last:
                buffer[first - start : last - start] = new[first - offset : last - offset]
        return int(count)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position; return it."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def examine(path: Path) -> Header:
    """Return the patches by which libsndfile reads ``path`` to its end; none if its header is right or unknown.

    Reads a few bytes per chunk before the sound; a FLAC file without a length is searched for frames once.
    """
    with path.open("rb") as file:
        start = file.read(26)
        size = os.fstat(file.fileno()).st_size
        kind = start[:4], start[8:12]
        try:
            if kind in ((b"RIFF", b"WAVE"), (b"RF64", b"WAVE"), (b"BW64", b"WAVE")):
                return _examine_wav(file, size)
            if kind in ((b"FORM", b"AIFF"), (b"FORM", b"AIFC")):
                return _examine_aiff(file, size)
            if start[:4] == b".snd":
                return _examine_au(file, size)
            if start[:4] == b"caff":
                return _examine_caf(file, size)
        except struct.error:  # the file ends in its header
            return Header()
    if start.startswith(_W64) and int.from_bytes(start[16:24], "little") <= 24:
        return Header(note=UNFINISHED)  # libsndfile reads a W64 to the end of the file whatever its header says
    if start[:4] == b"fLaC" and len(start) == 26 and not int.from_bytes(start[21:26]) & (1 << 36) - 1:
        return _examine_flac(path, start)
    return Header()


# ---------------------------------------------------------------------------- formats


def _examine_wav(file: BinaryIO, size: int) -> Header:
    chunks = _find_chunks(file, 12, b"data", "<4sI")
    if chunks is None:
        return Header()
    place, stated = chunks[b"data"]
    magic, form = _unpack(file, 0, "<4sI")
    if magic != b"RIFF" and stated == 0xFFFF_FFFF and b"ds64" in chunks:
        form, stated = _unpack(file, chunks[b"ds64"][0] + 8, "<QQ")
    if _is_wrong(file, place + 8, stated, 8 + form, size):
        # libsndfile recognises a file that was not closed by these sizes, and takes its length from the file.
        return Header({0: b"RIFF" + struct.pack("<I", 8), place + 4: bytes(4)}, _note(stated))
    # libsndfile does not know BW64, which differs from RF64 in its name and in chunks that it skips.
    return Header({0: b"RF64"}) if magic == b"BW64" else Header()


def _examine_aiff(file: BinaryIO, size: int) -> Header:
    chunks = _find_chunks(file, 12, b"SSND", ">4sI")
    if chunks is None:
        return Header()
    place, stated = chunks[b"SSND"]
    (form,) = _unpack(file, 4, ">I")
    # The chunk begins with eight bytes that are not sound.
    if _is_wrong(file, place + 16, max(0, stated - 8), 8 + form, size):
        return Header({4: bytes(4), place + 4: bytes(4)}, _note(stated - 8))
    return Header()


def _examine_au(file: BinaryIO, size: int) -> Header:
    begin, stated = _unpack(file, 4, ">II")
    if _is_wrong(file, begin, stated, begin + stated, size):
        return Header({8: b"\xff" * 4}, _note(stated))
    return Header()


def _examine_caf(file: BinaryIO, size: int) -> Header:
    chunks = _find_chunks(file, 8, b"data", ">4sQ")
    if chunks is None:
        return Header()
    place, stated = chunks[b"data"]
    # The chunk begins with four bytes that are not sound. CAF has no size of the whole.
    if _is_wrong(file, place + 16, max(0, stated - 4), 0, size):
        return Header({place + 4: struct.pack(">Q", size - place - 12)}, _note(stated - 4))
    return Header()


def _examine_flac(path: Path, start: bytes) -> Header:
    """Patch the total number of samples, without which libsndfile reads neither to the end nor near it."""
    status = path.stat()
    total = _count_flac(path, status.st_size, status.st_mtime_ns)
    field = int.from_bytes(start[21:26]) | total  # its upper four bits belong to the sample size
    return Header({21: field.to_bytes(5)}) if 0 < total < 1 << 36 else Header()


@functools.lru_cache(maxsize=4096)
def _count_flac(path: Path, size: int, modified: int) -> int:  # noqa: ARG001 - they key the cache
    """Samples per channel of a FLAC file by its frames, 0 if it cannot be read."""
    import av

    try:
        with av.open(str(path.absolute()), options={"protocol_whitelist": "file"}) as container:
            stream = container.streams.audio[0]
            ticks = sum(packet.duration or 0 for packet in container.demux(stream))
            return round(ticks * (stream.time_base or 0) * stream.sample_rate)
    except (av.FFmpegError, OSError, IndexError):
        return 0


# ---------------------------------------------------------------------------- sizes


def _is_wrong(file: BinaryIO, begin: int, stated: int, form_end: int, size: int) -> bool:
    """Return True if the sound from byte ``begin`` on goes to the end of the file and not over ``stated`` bytes.

    ``form_end`` is where the header says that the file ends, ``size`` where it does.
    """
    there = size - begin
    if there <= 0:
        return False
    if _is_placeholder(stated) and (stated > there or stated >= _PLACEHOLDERS[1].start):
        return True
    if stated >= there:  # right, or cut short
        return False
    rest = begin + stated + stated % 2
    if stated and (form_end > rest or size - rest < _LEAST_REST):
        return False
    file.seek(rest)
    head = file.read(_LEAST_REST)
    if head.startswith(_TRAILERS) or (stated and not any(head)):
        return False
    # A chunk has a readable name and fits into the file.
    is_chunk = len(head) >= 8 and all(32 <= byte < 127 for byte in head[:4])
    return not (is_chunk and min(_sizes(head)) <= size - rest - 8)


def _sizes(head: bytes) -> tuple[int, int]:
    """The size of the chunk that begins with ``head``, in both byte orders."""
    return struct.unpack_from("<I", head, 4)[0], struct.unpack_from(">I", head, 4)[0]


def _is_placeholder(stated: int) -> bool:
    return stated >= 1 << 62 or any(stated in sizes for sizes in _PLACEHOLDERS)


def _note(stated: int) -> str | None:
    return None if _is_placeholder(stated) else UNFINISHED


def _find_chunks(file: BinaryIO, place: int, last: bytes, form: str) -> dict[bytes, tuple[int, int]] | None:
    """Name → (offset, size) of the chunks from ``place`` to the one named ``last``; None if that is not there."""
    found: dict[bytes, tuple[int, int]] = {}
    header = struct.calcsize(form)
    for _ in range(_CHUNKS):
        file.seek(place)
        content = file.read(header)
        if len(content) < header:
            return None
        name, size = struct.unpack(form, content)
        found[name] = place, size
        if name == last:
            return found
        place += header + size + (size % 2 if header == 8 else 0)  # padded, except in CAF
    return None


def _unpack(file: BinaryIO, place: int, form: str) -> tuple[Any, ...]:
    file.seek(place)
    return struct.unpack(form, file.read(struct.calcsize(form)))
