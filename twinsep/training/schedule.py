"""Learning rate and decay of the weight average as functions of the step, shared by both twins."""

from __future__ import annotations

import math

from twinsep.config import TrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Learning rate of optimiser step ``step`` (0-based): linear warm-up, then a cosine down to the floor.

    η_t = η · (t+1)/W for t < W, then η · (f + (1−f)·½(1 + cos(π·p))), where p runs from 0 to 1 over the remaining steps
    and f is ``cosine_floor`` (Loshchilov and Hutter 2017, arXiv 1608.03983).
    """
    peak, warmup = config.learning_rate, min(config.warmup_steps, config.steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, config.steps - 1 - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * (config.cosine_floor + (1 - config.cosine_floor) * cosine)


def ema_decay(step: int, config: TrainingConfig) -> float:
    """Decay of the weight average after step ``step`` (0-based): min(decay, (1+t)/(10+t)).

    The ramp lets the average forget the random start, which would otherwise dominate the average of a run of a few
    hundred steps. It is the rule of TensorFlow's ExponentialMovingAverage with ``num_updates``.
    """
    return min(config.ema_decay, (1 + step) / (10 + step))
