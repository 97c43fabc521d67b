"""Awkward songs, made anew each time: {name: (maker, …)}; a maker writes the file at the path it is given."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from ablations.fault_injection import RATE, music

Maker = Callable[[Path], None]


def wave(
    path: Path, waveform: np.ndarray | None = None, *, rate: int = RATE, subtype: str = "PCM_24", container: str = "WAV"
) -> None:
    """Written by libsndfile."""
    samples = music(rate=rate) if waveform is None else waveform
    soundfile.write(path, samples.T, rate, subtype=subtype, format=container)


def coded(
    path: Path, *, container: str, codec: str, rate: int = RATE, channels: int = 2, picture: bool = False
) -> None:
    """Written by PyAV; with ``picture`` beside a video stream."""
    import av

    layout = {1: "mono", 2: "stereo", 6: "5.1"}[channels]
    with av.open(str(path), "w", format=container) as output:
        if picture:
            video = output.add_stream("mpeg4", rate=25)
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        stream = output.add_stream(codec, rate=rate, layout=layout)
        if picture:
            still = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            for packet in (*video.encode(still), *video.encode(None)):
                output.mux(packet)
        samples = np.ascontiguousarray(music(channels, rate=rate), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        fifo = av.AudioFifo()
        fifo.write(frame)
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
        for piece in fifo.read_many(size, partial=True):
            for ready in resampler.resample(piece):
                output.mux(stream.encode(ready))
        output.mux(stream.encode(None))


def video_alone(path: Path) -> None:
    """A film without sound."""
    import av

    with av.open(str(path), "w", format="mp4") as output:
        video = output.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        for packet in (*video.encode(av.VideoFrame(32, 32, "yuv420p")), *video.encode(None)):
            output.mux(packet)


def cut(maker: Maker, keep: float, path: Path) -> None:
    """The first part of a file that was whole."""
    maker(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def content(data: bytes, path: Path) -> None:
    path.write_bytes(data)


def in_an_unknown_codec(path: Path) -> None:
    """Sound that FFmpeg has no decoder for, such as a shop's that is locked to a player."""
    M4A(path)
    path.write_bytes(path.read_bytes().replace(b"mp4a", b"drmx").replace(b"esds", b"free"))


def patched(maker: Maker, places: dict[bytes, tuple[int, bytes]], path: Path) -> None:
    """A file of which some bytes are replaced: {word: (offset from the word, new bytes)}."""
    maker(path)
    data = bytearray(path.read_bytes())
    for word, (offset, new) in places.items():
        place = data.index(word) + offset
        data[place : place + len(new)] = new
    path.write_bytes(data)


def from_a_pipe(path: Path) -> None:
    """A WAV with the placeholders of sox."""
    patched(wave, {b"RIFF": (4, b"\x24\xf0\xff\x7f"), b"data": (4, b"\0\xf0\xff\x7f")}, path)


def of_a_crash(path: Path) -> None:
    """A WAV whose recorder made room for a header and did not come back to fill it in."""
    wave(path)
    data = path.read_bytes()
    place = data.index(b"data")
    room = b"JUNK" + (28).to_bytes(4, "little") + bytes(28)
    room += b"FLLR" + (4096 - place - 52).to_bytes(4, "little") + bytes(4096 - place - 52)
    path.write_bytes(
        data[:4] + (4088).to_bytes(4, "little") + data[8:place] + room + b"data" + bytes(4) + data[place + 8 :]
    )


LONG_NAME = "å" * 120 + ".wav"  # 244 bytes; a system takes 255
M4A = partial(coded, container="ipod", codec="aac")
MP3 = partial(wave, subtype="MPEG_LAYER_III", container="MP3")
OGG = partial(wave, subtype="VORBIS", container="OGG")
FLAC = partial(wave, container="FLAC")

#: Songs that must come out right.
GOOD: dict[str, Maker] = {
    **{
        f"{rate} Hz.wav": partial(wave, rate=rate)
        for rate in (8000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 88_200, 96_000, 176_400, 192_000)
    },
    **{
        f"mono {rate} Hz.wav": partial(wave, waveform=music(1, rate=rate), rate=rate)
        for rate in (8000, 44_100, 48_000, 192_000)
    },
    **{
        f"{subtype}.wav": partial(wave, subtype=subtype)
        for subtype in ("PCM_U8", "PCM_16", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "MS_ADPCM")
    },
    **{f"{n} samples.wav": partial(wave, waveform=music(samples=n)) for n in (1, 2, 3, 100, 2047, 4096, 4097, 70_000)},
    "1 sample, 8 kHz.wav": partial(wave, waveform=music(1, 1), rate=8000),
    "1 sample, 192 kHz.wav": partial(wave, waveform=music(2, 1), rate=192_000),
    "16 bit.flac": partial(wave, subtype="PCM_16", container="FLAC"),
    "24 bit 96 kHz.flac": partial(wave, waveform=music(2, 9000, 96_000), rate=96_000, container="FLAC"),
    "vorbis.ogg": OGG,
    "vorbis mono.ogg": partial(wave, waveform=music(1), subtype="VORBIS", container="OGG"),
    "stereo.mp3": MP3,
    "mono 22 kHz.mp3": partial(
        wave, waveform=music(1, rate=22_050), rate=22_050, subtype="MPEG_LAYER_III", container="MP3"
    ),
    "apple.m4a": M4A,
    "apple mono.m4a": partial(coded, container="ipod", codec="aac", channels=1),
    "stream.aac": partial(coded, container="adts", codec="aac"),
    "speech.opus": partial(coded, container="opus", codec="libopus", rate=48_000),
    "film.mp4": partial(coded, container="mp4", codec="aac", picture=True),
    "film.mkv": partial(coded, container="matroska", codec="aac", picture=True),
    "raw.mkv": partial(coded, container="matroska", codec="pcm_s16le"),
    "web.webm": partial(coded, container="webm", codec="libopus", rate=48_000),
    "mac.aiff": partial(wave, container="AIFF"),
    "sony.w64": partial(wave, container="W64"),
    "large.rf64": partial(wave, container="RF64"),
    "mac.caf": partial(wave, container="CAF"),
    "misnamed.mp3": FLAC,  # what it is decides, not what it is called
    "silence.wav": partial(wave, waveform=np.zeros((2, 9000))),
    "full scale.wav": partial(wave, waveform=np.sign(music()), subtype="FLOAT"),
    "beyond full scale.wav": partial(wave, waveform=5 * music(), subtype="FLOAT"),
    "dc.wav": partial(wave, waveform=np.full((2, 9000), 0.5)),
    "tiny.wav": partial(wave, waveform=1e-39 * music(), subtype="FLOAT"),
    "one channel silent.wav": partial(wave, waveform=music() * [[1], [0]]),
    "новая песня ♥ 歌.wav": wave,
    "two\nlines.wav": wave,
    LONG_NAME: wave,
    "-rf.wav": wave,
    " spaces . and . dots .wav": wave,
    "[bold]markup {stem} %s.wav": wave,
    "LOUD.WAV": wave,
    "no extension": wave,
    "from a pipe.wav": from_a_pipe,
    "of a crash.wav": of_a_crash,
    "streamed.flac": partial(patched, FLAC, {b"fLaC": (22, bytes(4))}),
}

#: Songs that cannot be separated → what the sentence says.
BAD: dict[str, tuple[Maker, str]] = {
    "empty.wav": (partial(content, b""), "is empty"),
    "text.wav": (partial(content, b"no sound here, but words enough to look like something\n" * 50), "cannot be read"),
    "random.mp3": (partial(content, np.random.default_rng(1).bytes(5000)), "cannot be read"),
    "zeros.flac": (partial(content, bytes(3000)), "cannot be read"),
    "picture.mp3": (partial(content, b"\x89PNG\r\n\x1a\n" + bytes(500)), "cannot be read as sound|holds no sound"),
    "header.wav": (partial(wave, waveform=np.zeros((2, 0))), "0 samples"),
    "cut.wav": (partial(cut, wave, 0.5), "damaged or cut short"),
    "cut.flac": (partial(cut, FLAC, 0.5), "damaged or cut short"),
    "cut.mp3": (partial(cut, MP3, 0.5), "damaged or cut short"),
    "cut.m4a": (partial(cut, M4A, 0.5), "cannot be read|damaged or cut short"),
    "cut.ogg": (partial(cut, OGG, 0.6), "damaged or cut short"),
    "nan.wav": (partial(wave, waveform=np.full((2, 5000), np.nan), subtype="FLOAT"), "NaN or infinite"),
    "late nan.wav": (
        partial(wave, waveform=np.concatenate([music(samples=90_000), [[np.nan], [0]]], 1), subtype="FLOAT"),
        "NaN or infinite",
    ),
    "infinite.wav": (partial(wave, waveform=np.full((2, 5000), np.inf), subtype="FLOAT"), "NaN or infinite"),
    "surround.wav": (partial(wave, waveform=music(6)), "6 channels"),
    "surround.m4a": (partial(coded, container="ipod", codec="aac", channels=6), "6 channels"),
    "slow.wav": (partial(wave, rate=4000), "4000 Hz"),
    "fast.wav": (partial(wave, rate=384_000), "384000 Hz"),
    "silent film.mp4": (video_alone, "holds no sound"),
    "locked.m4a": (in_an_unknown_codec, "cannot be read|holds no sound"),
    "missing.wav": (lambda _: None, "does not exist"),
    "dangling.wav": (lambda path: path.symlink_to("nowhere"), "does not exist"),
    "pipe.wav": (os.mkfifo, "not a regular file"),
    "two\nlines bad.wav": (partial(content, b"nothing"), "cannot be read"),
}
