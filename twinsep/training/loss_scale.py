"""Dynamic loss scaling for float16, shared by both twins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

#: Steps with finite gradients after which the scale doubles.
GROWTH_INTERVAL = 2000


class LossScale(NamedTuple):
    """Factor of the float16 loss, so that small gradients do not underflow to zero, and its counters.

    Source: Micikevicius et al. 2018, arXiv 1710.03740, section 3.2.
    """

    scale: float = 2.0**16
    #: Steps with finite gradients since the scale last changed.
    good: int = 0
    #: Steps that changed the weights; steps whose gradients overflowed are skipped.
    updates: int = 0

    def after(self, finite: bool) -> LossScale:
        """Return the scale after a step: halved if gradients overflowed, doubled after GROWTH_INTERVAL finite steps."""
        if not finite:
            return LossScale(self.scale / 2, 0, self.updates)
        if self.good + 1 == GROWTH_INTERVAL:
            return LossScale(self.scale * 2, 0, self.updates + 1)
        return LossScale(self.scale, self.good + 1, self.updates + 1)

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the tensors that a checkpoint stores, each a scalar."""
        return {f"scaler/{name}": np.array(value) for name, value in self._asdict().items()}

    @classmethod
    def restored(cls, tensors: Mapping[str, np.ndarray]) -> LossScale:
        """Restore the scale from the tensors of a checkpoint."""
        return cls(**{name: tensors[f"scaler/{name}"].item() for name in cls._fields})
