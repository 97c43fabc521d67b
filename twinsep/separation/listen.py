"""The ``twinsep listen`` command: one stem of a live signal, from a pipe or a sound device to the same."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from threadpoolctl import threadpool_limits

from twinsep.audio.pcm import PCM, Bytes, read_wav_header
from twinsep.config import Config, SampleFormat
from twinsep.errors import InputError
from twinsep.model.stream import Stream
from twinsep.separation.separator import stems_of
from twinsep.utils.backend import twin

#: Seconds between two lines of the meter.
METER_SECONDS = 0.25


@dataclass(frozen=True)
class ListenOptions:
    """Options of the command."""

    checkpoint: Path
    stem: str = "instrumental"
    raw: SampleFormat | None = None  # format of raw samples; None: WAV
    channels: int = 2  # of raw samples
    live: bool = False  # from and to sound devices
    source: str | None = None  # name or number of the sound device to listen to; None: the default one
    sink: str | None = None  # and of the one to play on
    framework: str = "torch"
    device: str = "cpu"


def listen(options: ListenOptions) -> None:
    """Separate what comes until it ends or Ctrl-C is pressed, then say on the standard error how it went.

    Raises :class:`InputError` for a checkpoint that cannot run on a live signal, a stem it does not have, a signal of
    another rate or format, and sound devices that cannot be used.
    """
    if options.channels not in (1, 2):
        raise InputError(f"--channels {options.channels}: raw samples have 1 or 2 channels")
    network = twin(options.framework).load(options.checkpoint, device=options.device)
    stem = StemStream(network.stream(), network.config, options.stem)
    rate = network.config.model.sample_rate
    stem.push(np.zeros((2, 2 * stem.hop), np.float32))  # compiles, before the first block is due
    stem.finish()
    meter = Meter(rate, stem.latency, stem.hop, sys.stderr)
    try:
        # A block is too short for two threads, which wait for each other longer than they compute.
        with threadpool_limits(1):
            if options.live:
                listen_to_devices(stem, rate, options, meter)
            else:
                pcm = None if options.raw is None else PCM(rate, options.channels, options.raw)
                listen_to_pipe(stem, rate, sys.stdin.buffer, sys.stdout.buffer, pcm, meter)
    finally:
        meter.finish()


def listen_to_pipe(stem: StemStream, rate: int, source: Bytes, sink: Bytes, pcm: PCM | None, meter: Meter) -> None:
    """Separate raw samples, stored as ``pcm`` says, or else a WAV file; write the stem in the same form.

    Raises :class:`InputError` unless the WAV file has the ``rate`` of the model, in Hz.
    """
    left = None  # bytes of sound that are still to come, if that is known
    if pcm is None:
        pcm, left = read_wav_header(source)
        if pcm.rate != rate:
            raise InputError(
                f"the standard input has {pcm.rate} Hz and the model {rate}: resample it first, such as by ffmpeg -ar"
            )
        sink.write(pcm.header())

    def write(y: np.ndarray) -> None:
        sink.write(pcm.encode(y if pcm.channels == 2 else y.mean(0, keepdims=True)))
        sink.flush()

    rest = b""
    most = stem.hop * pcm.frame_bytes
    with contextlib.suppress(KeyboardInterrupt), Interruptible(source) as interruptible:  # Ctrl-C ends the signal
        while data := interruptible.read(most if left is None else min(left, most)):
            left = left if left is None else left - len(data)
            data = rest + data
            whole = len(data) - len(data) % pcm.frame_bytes
            samples, rest = pcm.decode(data[:whole]), data[whole:]
            with meter.block(samples):
                y = stem.push(samples if pcm.channels == 2 else samples.repeat(2, 0))
            meter.played(y)
            write(y)
    write(stem.finish())


def listen_to_devices(stem: StemStream, rate: int, options: ListenOptions, meter: Meter) -> None:
    """Separate what one sound device records, and play the stem on another, until Ctrl-C is pressed.

    Raises :class:`InputError` if the extra ``live`` is not installed or the devices cannot be used.
    """
    try:
        import sounddevice
    except ModuleNotFoundError as error:
        raise InputError(
            "--live needs the package sounddevice; install it with: pip install 'twinsep[live]'"
        ) from error
    except OSError as error:  # the package is there, and the library PortAudio is not
        raise InputError(f"--live cannot find the library PortAudio ({error}): install it") from error
    devices = tuple(int(name) if name and name.isdecimal() else name for name in (options.source, options.sink))
    try:
        with sounddevice.Stream(
            samplerate=rate, blocksize=stem.hop, channels=2, dtype="float32", device=devices
        ) as sound:
            sound.write(np.zeros((stem.hop, 2), np.float32))  # what plays while the first block is computed
            while True:
                recorded, overflowed = sound.read(stem.hop)
                with meter.block(recorded.T):
                    y = stem.push(np.ascontiguousarray(recorded.T))
                meter.played(y)
                underflowed = y.shape[1] and sound.write(np.ascontiguousarray(y.T))
                meter.lost += bool(overflowed or underflowed)
    except KeyboardInterrupt:
        pass
    except (sounddevice.PortAudioError, ValueError) as error:
        raise InputError(
            f"the sound devices cannot be used ({error}); `python -m sounddevice` lists those that can"
        ) from error


class Interruptible:
    """A context in which Ctrl-C interrupts the wait for bytes alone, so that what was read is separated and written.

    A second Ctrl-C interrupts whatever runs.
    """

    def __init__(self, source: Bytes):
        # What has come, without waiting for more.
        self._read = getattr(source, "read1", source.read)
        self._asked = self._waiting = False

    def read(self, most: int) -> bytes:
        """Return at least one and at most ``most`` bytes, or none at the end; raises KeyboardInterrupt on Ctrl-C."""
        self._waiting = True
        try:
            if self._asked:
                raise KeyboardInterrupt
            return self._read(most)
        finally:
            self._waiting = False

    def _interrupt(self, *_: Any) -> None:
        if self._waiting or self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def __enter__(self) -> Interruptible:
        self._before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: Any) -> None:
        signal.signal(signal.SIGINT, self._before)


class Meter:
    """Levels, and blocks that took longer than they last: a line on a terminal, and one sentence at the end."""

    def __init__(self, rate: int, latency: int, hop: int, screen: TextIO | io.TextIOBase):
        self.rate, self.latency, self.hop, self.screen = rate, latency, hop, screen
        self.samples = self.blocks = self.late = self.lost = 0
        self.worst = 0.0  # largest time of a block ÷ its length
        self._peaks = [0.0, 0.0]
        self._due = self._began = time.monotonic()
        self._terminal = screen.isatty()

    def block(self, samples: np.ndarray) -> Meter:
        """A context in which a block (channels, n) of the signal is separated."""
        self._length = samples.shape[1]
        self._hear(0, samples)
        return self

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: Any) -> None:
        taken = time.monotonic() - self._began
        self.samples, self.blocks = self.samples + self._length, self.blocks + 1
        # The network computes when a hop is full, for which a shorter block is not to blame.
        ratio = taken * self.rate / max(self._length, self.hop)
        self.late, self.worst = self.late + (ratio > 1), max(self.worst, ratio)

    def played(self, samples: np.ndarray) -> None:
        """Show the levels, after a block of the stem (2, n) is known."""
        self._hear(1, samples)
        if self._terminal and time.monotonic() >= self._due:
            into, out = (20 * np.log10(max(peak, 1e-5)) for peak in self._peaks)
            print(
                f"\rin {into:6.1f} dB  out {out:6.1f} dB  late {self.late}  lost {self.lost} ",
                end="",
                file=self.screen,
                flush=True,
            )
            self._peaks, self._due = [0.0, 0.0], time.monotonic() + METER_SECONDS

    def finish(self) -> None:
        """Say how it went."""
        if self._terminal:
            print(file=self.screen)
        lost = f", {self.lost} lost by the sound devices" if self.lost else ""
        print(
            f"separated {self.samples / self.rate:.1f} s, {1000 * self.latency / self.rate:.0f} ms late; "
            f"{self.late} of {self.blocks} blocks took longer than they last{lost}, the longest {self.worst:.2f} of it",
            file=self.screen,
        )

    def _hear(self, place: int, samples: np.ndarray) -> None:
        self._peaks[place] = max(self._peaks[place], float(np.abs(samples).max(initial=0)))


class StemStream:
    """One stem of a stream: one that the network estimates, or the mixture minus all of these.

    The names are those of :func:`twinsep.separation.separator.stems_of`, such as "vocals" and "instrumental". Raises
    :class:`InputError` for another name.
    """

    def __init__(self, stream: Stream, config: Config, stem: str):
        known = stems_of(config)
        if stem not in known:
            raise InputError(f"this model has no stem {stem!r}: choose from {', '.join(known)}")
        self._stream = stream
        self._index = stream.stems.index(stem) if stem in stream.stems else None
        self._targets = len(config.model.targets)
        self._mixture = np.zeros((2, 0), np.float32)  # as long as the samples whose stems are not yet known
        self.hop, self.latency = stream.hop, stream.latency

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Take the next samples of a mixture (2, n); return those of the stem (2, m). Errors as :meth:`Stream.push`."""
        return self._stem(self._stream.push(samples), samples)

    def finish(self) -> np.ndarray:
        """Return the samples of the stem that are still missing (2, m), and begin again from silence."""
        return self._stem(self._stream.finish(), np.zeros((2, 0), np.float32))

    def _stem(self, stems: np.ndarray, samples: np.ndarray) -> np.ndarray:
        self._mixture = np.concatenate([self._mixture, samples], 1)
        mixture, self._mixture = np.split(self._mixture, [stems.shape[-1]], axis=1)
        return mixture - stems[: self._targets].sum(0) if self._index is None else stems[self._index]
