"""A wide depthwise convolution and a Linear: the control without recurrence or attention."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from torch_impl.layers import DepthwiseConv1d, Linear, Module
from twinsep.config import BandSplitConfig, mixers


class Conv(Module):
    """W depthwise(x) + b, the convolution centred on the frame with zeros outside, without activation."""

    def __init__(self, model: BandSplitConfig):
        super().__init__()
        mixer = model.mixer
        assert isinstance(mixer, mixers.Conv)
        self.depthwise = DepthwiseConv1d(model.d_model, mixer.kernel, left=mixer.kernel // 2)
        self.pointwise = Linear(model.d_model, model.d_model, bias=True)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Mix a sequence (b, l, d) along its length."""
        return self.pointwise(self.depthwise(x))
