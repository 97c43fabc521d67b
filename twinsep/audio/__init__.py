"""Reading, writing and resampling sound files; tags and spectrograms. Waveforms are float32 (C, S), full scale ±1."""

from twinsep.audio.reading import AudioInfo, blocks, info, open_audio, read, read_segment, verify
from twinsep.audio.resampling import resample
from twinsep.audio.source import BLOCK, AudioSource
from twinsep.audio.writing import FORMATS, FilePath, Writer, write, writer

__all__ = [
    "BLOCK",
    "FORMATS",
    "AudioInfo",
    "AudioSource",
    "FilePath",
    "Writer",
    "blocks",
    "info",
    "open_audio",
    "read",
    "read_segment",
    "resample",
    "verify",
    "write",
    "writer",
]
