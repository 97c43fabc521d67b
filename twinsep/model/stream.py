"""A causal network applied to a live signal, block by block."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from twinsep.config import UNetConfig
from twinsep.errors import InputError

#: The next ``hop`` samples of a mixture (2, hop) to ``hop`` samples of the stems (stems, 2, hop); keeps its state.
Advance = Callable[[np.ndarray], np.ndarray]


class Stream:
    """The stems of a signal that comes in blocks of any size, at the model's sample rate.

    ``start`` returns the network from silence on; :meth:`push` gives what the network gives for the whole signal, as
    soon as it is known: at most :attr:`latency` samples later. Memory does not depend on the length of the signal.
    """

    def __init__(self, start: Callable[[], Advance], model: UNetConfig):
        self._start, self._model = start, model
        self._reset()

    def _reset(self) -> None:
        self._advance = self._start()
        self._block = np.zeros((2, self._model.hop), np.float32)
        self._filled = 0  # samples of the block that have come
        self._early = self._model.n_fft - self._model.hop  # samples to leave out, which precede the signal
        self._owed = 0  # samples pushed and not yet returned

    @property
    def latency(self) -> int:
        """Samples that an estimate is late, at most: one window."""
        return self._model.n_fft

    @property
    def hop(self) -> int:
        """Samples after which the network computes again."""
        return self._model.hop

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of the stems along the first axis of the output."""
        return self._model.stems

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Take the next samples of a mixture (2, n), n ≥ 0, float32; return those of the stems (stems, 2, m).

        Raises :class:`InputError`, and takes nothing, for another shape or type, or for values that are not finite,
        which would stay in the state for ever.
        """
        if samples.ndim != 2 or len(samples) != 2 or samples.dtype != np.float32:
            raise InputError(
                f"a stream takes float32 samples of two channels, (2, n), not {samples.dtype} of {samples.shape}"
            )
        if not np.isfinite(samples).all():
            raise InputError("the signal holds NaN or infinite values: replace them")
        found = [np.zeros((len(self.stems), 2, 0), np.float32)]
        self._owed += samples.shape[1]
        while samples.shape[1]:
            taken = min(samples.shape[1], self._model.hop - self._filled)
            self._block[:, self._filled : self._filled + taken] = samples[:, :taken]
            self._filled, samples = self._filled + taken, samples[:, taken:]
            if self._filled == self._model.hop:
                self._filled = 0
                y = self._advance(self._block)
                left_out = min(self._early, self._model.hop)
                self._early -= left_out
                found.append(y[..., left_out:])
        y = np.concatenate(found, -1)
        self._owed -= y.shape[-1]
        return y

    def finish(self) -> np.ndarray:
        """Return the samples of the stems that are still missing (stems, 2, m), and begin again from silence."""
        owed = self._owed
        silence = np.zeros((2, self._model.n_fft), np.float32)
        y = self.push(silence)[..., :owed]
        self._reset()
        return y
