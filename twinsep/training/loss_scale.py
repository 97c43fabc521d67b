"""Loss scaling for float16, for both twins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


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
