"""Speech synthesis by the libespeak-ng in the wheel ``espeakng-loader``, called through ctypes.

The library keeps the phase of its oscillators and noise in static variables, which neither ``espeak_ng_SetRandSeed``
nor ``espeak_Terminate`` resets (two thirds of a set of utterances differed when spoken in another order). :func:`speak`
therefore loads the library again for each utterance, which takes 5 ms and makes it a function of its arguments.
"""

from __future__ import annotations

import _ctypes
import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twinsep.errors import InputError

# Values of espeak-ng's speak_lib.h.
_SYNCHRONOUS = 2
_PHONEME_EVENTS = 1
_RATE, _PITCH, _RANGE, _WORD_GAP = 1, 3, 4, 7
_UTF8_END_PAUSE_OFF = 0x1
_PHONEMES_IN_BRACKETS = 0x100
_EVENT_END, _EVENT_PHONEME = 0, 7


class _EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Utterance:
    """Spoken text: ``samples`` (n,) in [−1, 1] at ``rate`` Hz, and the start of each phoneme as (seconds, label)."""

    samples: np.ndarray
    rate: int
    phonemes: tuple[tuple[float, str], ...]


def speak(text: str, voice: str, *, rate: int = 130, pitch: int = 50, pitch_range: int = 20) -> Utterance:
    """Speak ``text`` with ``voice`` (language+variant) at ``rate`` words per minute; pitch and range are 0…99.

    Equal arguments give equal samples in any process and any order. Raises :class:`InputError` if the package
    espeakng-loader is missing or does not have the voice.
    """
    blocks: list[np.ndarray] = []
    phonemes: list[tuple[float, str]] = []

    def receive(wave, count, events) -> int:
        if count > 0 and wave:
            blocks.append(np.ctypeslib.as_array(wave, (count,)).copy())
        index = 0
        while events[index].type != _EVENT_END:
            if events[index].type == _EVENT_PHONEME:
                label = events[index].id.string.decode("utf-8", "replace")
                phonemes.append((events[index].audio_position / 1000, label))
            index += 1
        return 0

    with _library() as (library, sample_rate):
        callback = _Callback(receive)
        library.espeak_SetSynthCallback(callback)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # otherwise the noise is seeded by the clock
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise InputError(f"espeak-ng has no voice {voice!r}: choose one of twinsep.data.synth.lexicon")
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range), (_WORD_GAP, 0)):
            library.espeak_SetParameter(parameter, value, 0)
        data = text.encode() + b"\0"
        flags = ctypes.c_uint(_UTF8_END_PAUSE_OFF | _PHONEMES_IN_BRACKETS)
        library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 0, 0, flags, None, None)
        library.espeak_Synchronize()
    samples = np.concatenate(blocks).astype(np.float64) / 32768 if blocks else np.zeros(0)
    return Utterance(samples, sample_rate, tuple(phonemes))


@contextmanager
def _library() -> Iterator[tuple[ctypes.CDLL, int]]:
    """Load and initialise the library; yield it with its sample rate in Hz, and unload it afterwards."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise InputError("generated songs need the package espeakng-loader; pip install 'twinsep[data]'") from error
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        # Wheels differ in whether the library wants the folder espeak-ng-data or the one above it.
        data = Path(espeakng_loader.get_data_path())
        for folder in (data.parent, data):
            rate = library.espeak_Initialize(_SYNCHRONOUS, 0, str(folder).encode(), _PHONEME_EVENTS)
            if rate > 0:
                break
        else:
            raise InputError(f"espeak-ng found no voices in {data}: reinstall the package espeakng-loader")
        yield library, rate
        library.espeak_Terminate()
    finally:
        _unload(library._handle)


def _unload(handle: int) -> None:
    close = getattr(_ctypes, "dlclose", None) or _ctypes.FreeLibrary  # type: ignore[attr-defined]
    close(handle)
