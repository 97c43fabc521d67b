"""A network whose passes replay a CUDA graph: launching its thousands of small kernels takes longer than they run."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ReplayedNetwork:
    """``network`` as a function of a mixture; batches of the first one's shape replay one recording of both passes.

    Weights are read anew at every replay, as the recording holds their addresses. Gradients are buffers that the next
    replay overwrites: use and clear them before it. Other shapes run as usual.
    """

    def __init__(self, network: nn.Module):
        self.network = network
        self.shape: torch.Size | None = None
        self.replay = network

    def __call__(self, mixture: Tensor) -> Tensor:
        """Return the network's output for ``mixture`` (b, 2, s)."""
        if self.shape is None:
            self.shape = mixture.shape
            # Recorded through a module of its own, because recording replaces its `forward`.
            whole = _Whole(self.network)
            self.replay = torch.cuda.make_graphed_callables(whole, (mixture.clone(),), allow_unused_input=True)
        return self.replay(mixture) if mixture.shape == self.shape else self.network(mixture)


class _Whole(nn.Module):
    """A module that does what another one does."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, mixture: Tensor) -> Tensor:
        """Return the network's output."""
        return self.network(mixture)
