"""Learning rate, weight averaging and loss scaling as functions of the step and its outcome, for both twins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from twinsep.config import TrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Rate of the optimiser step ``step`` (0-based): linear warm-up, then a cosine down to the floor.

    η_t = η · (t+1)/W for t < W, then η · (f + (1−f)·½(1 + cos(π·p))), p running from 0 to 1 over
    the rest (Loshchilov and Hutter 2017, arXiv 1608.03983), f = ``cosine_floor``.
    """
    peak, warmup = config.learning_rate, min(config.warmup_steps, config.steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - 1 - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * (config.cosine_floor + (1 - config.cosine_floor) * cosine)


def ema_decay(step: int, config: TrainingConfig) -> float:
    """Decay of the weight average after step ``step``: min(decay, (1+t)/(10+t)).

    The ramp lets the average forget the random start, without which a run of a few hundred steps
    would average mostly that (the rule of TensorFlow's ExponentialMovingAverage with num_updates).
    """
    return min(config.ema_decay, (1 + step) / (10 + step))


class LossScale(NamedTuple):
    """What float16 gradients are multiplied by so that small ones are not zero (Micikevicius et al. 2018,
    arXiv 1710.03740, section 3.2), and what is counted with it."""

    scale: float = 2.0**16
    #: Steps with finite gradients since the scale last changed.
    good: int = 0
    #: Steps that changed the weights; the others were passed over.
    updates: int = 0

    def after(self, finite: bool) -> LossScale:
        """Half the scale after gradients that overflowed, twice after 2000 steps without."""
        if not finite:
            return LossScale(self.scale / 2, 0, self.updates)
        if self.good + 1 == 2000:
            return LossScale(self.scale * 2, 0, self.updates + 1)
        return LossScale(self.scale, self.good + 1, self.updates + 1)

    def tensors(self) -> dict[str, np.ndarray]:
        """As a checkpoint keeps it."""
        return {f"scaler/{name}": np.array(value) for name, value in self._asdict().items()}

    @classmethod
    def restored(cls, tensors: Mapping[str, np.ndarray]) -> LossScale:
        """From the tensors of a checkpoint."""
        return cls(**{name: tensors[f"scaler/{name}"].item() for name in cls._fields})
