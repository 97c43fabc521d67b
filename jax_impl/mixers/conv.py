"""A wide depthwise convolution and a Linear: the control without recurrence or attention."""

from __future__ import annotations

from jax import Array
from jaxtyping import Float

from jax_impl.layers import DepthwiseConv1d, Linear, Module
from twinsep.config import BandSplitConfig, mixers


class Conv(Module):
    """W depthwise(x) + b, the convolution centred on the frame with zeros outside, without activation."""

    def __init__(self, model: BandSplitConfig):
        mixer = model.mixer
        assert isinstance(mixer, mixers.Conv)
        self.depthwise = DepthwiseConv1d(model.d_model, mixer.kernel, left=mixer.kernel // 2)
        self.pointwise = Linear(model.d_model, model.d_model, bias=True)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Mix a sequence (b, l, d) along its length."""
        return self.pointwise(self.depthwise(x))


class CausalConv(Module):
    """W depthwise(x) + b, the convolution over the frame and the ``kernel`` − 1 before it, without activation."""

    def __init__(self, model: BandSplitConfig):
        mixer = model.mixer
        assert isinstance(mixer, mixers.Conv)
        self.depthwise = DepthwiseConv1d(model.d_model, mixer.kernel, left=mixer.kernel - 1)
        self.pointwise = Linear(model.d_model, model.d_model, bias=True)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Mix a sequence (b, l, d) along its length."""
        return self.pointwise(self.depthwise(x))

    def start(self, batch: int) -> Float[Array, "b j d"]:
        """The state before the first frame: the frames that the convolution reads, zeros."""
        return self.depthwise.start(batch)

    def step(
        self, x: Float[Array, "b d"], past: Float[Array, "b j d"]
    ) -> tuple[Float[Array, "b d"], Float[Array, "b j d"]]:
        """Mix one frame (b, d), given the frames before it; return these for the next frame too."""
        y, past = self.depthwise.step(x, past)
        return self.pointwise(y), past
