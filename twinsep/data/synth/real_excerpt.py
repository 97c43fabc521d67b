"""Six seconds of a real song with its stems, from the package stempeg, which many researchers have installed.

``stempeg`` ships "Falcon 69" by The Easton Ellises (CC BY-NC-SA 3.0) as five AAC streams. The package cannot be
imported without ffmpeg, so its file is located and decoded by PyAV; nothing of it is copied into this repository. The
mixture in the file is mastered and differs from the sum of the stems (by 15 dB), so the sum is used instead.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from twinsep.data.synth.effects import SAMPLE_RATE
from twinsep.data.synth.song import PEAK, Song, mix_down
from twinsep.errors import InputError

#: Name of the track.
TRACK = "The Easton Ellises - Falcon 69"
LICENCE = "CC BY-NC-SA 3.0"
#: Samples removed at each end (50 ms), because the file starts with a click.
CUT = 2205
#: Stream numbers in the file; 0 is the mastered mixture.
_STREAMS = {"drums": 1, "bass": 2, "other": 3, "vocals": 4}


def excerpt() -> Song:
    """Read the excerpt: 263,878 samples (5.98 s) of four stems and their sum.

    Raises :class:`InputError` if the package, its file or one of the streams is missing.
    """
    path = _path()
    stems = {name: _decode(path, stream)[CUT:-CUT] for name, stream in _STREAMS.items()}
    if len({len(stem) for stem in stems.values()}) != 1:
        raise InputError(f"the stems in {path} differ in length; reinstall the package stempeg")
    loudest = float(max(np.abs(x).max() for x in (*stems.values(), sum(stems.values()))))
    return mix_down(stems, min(PEAK, loudest), {"title": TRACK, "licence": LICENCE})


def _path() -> Path:
    """Path of the file in the installed package. Raises :class:`InputError` if it is missing."""
    found = importlib.util.find_spec("stempeg")
    files = sorted(Path(found.origin).parent.glob("data/*.stem.mp4")) if found and found.origin else []
    if not files:
        raise InputError("the real excerpt needs the package stempeg; pip install 'twinsep[data]'")
    return files[0]


def _decode(path: Path, stream: int) -> np.ndarray:
    """Decode audio stream number ``stream`` as float32 (samples, 2)."""
    import av

    with av.open(str(path)) as container:
        streams = container.streams.audio
        if len(streams) <= stream or streams[stream].rate != SAMPLE_RATE:
            raise InputError(f"{path} has no audio stream {stream} at {SAMPLE_RATE} Hz; reinstall the package stempeg")
        blocks = [frame.to_ndarray() for frame in container.decode(streams[stream])]
    return np.concatenate(blocks, axis=1).T.astype(np.float32)
