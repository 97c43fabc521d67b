"""LSTM (Hochreiter and Schmidhuber 1997), the mixer of BSRNN (arXiv 2209.15174)."""

from __future__ import annotations

from typing import NamedTuple

from jax import Array
from jaxtyping import Float

from jax_impl.layers import Module, parameter
from jax_impl.ops import lstm, lstm_step, zeros
from twinsep.config import BandSplitConfig, mixers
from twinsep.model import initializers


class LSTMState(NamedTuple):
    """Hidden state h and cell c, (b, d) each."""

    h: Array
    c: Array


class LSTM(Module):
    """i, f, g, o = W_ih x_t + b_ih + W_hh h_{t−1} + b_hh;  c_t = σ(f) c_{t−1} + σ(i) tanh(g);  h_t = σ(o) tanh(c_t).

    Parameters have the layouts of torch.nn.LSTM, and its names without the suffix ``_l0``.
    """

    def __init__(self, model: BandSplitConfig):
        assert isinstance(model.mixer, mixers.LSTM)
        d = model.d_model
        self.weight_ih = parameter((4 * d, d), initializers.uniform(d), decay=True)
        self.weight_hh = parameter((4 * d, d), initializers.uniform(d), decay=True)
        self.bias_ih = parameter((4 * d,), initializers.uniform(d))
        self.bias_hh = parameter((4 * d,), initializers.uniform(d))

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Mix a sequence (b, l, d) along its length, from h = c = 0; the type of ``x`` is kept."""
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        return lstm(x, *(w[...] for w in weights)).astype(x.dtype)

    def start(self, batch: int) -> LSTMState:
        """The state before the first frame."""
        h = zeros((batch, self.weight_hh.shape[1]), self.weight_hh[...])
        return LSTMState(h, h)

    def step(self, x: Float[Array, "b d"], state: LSTMState) -> tuple[Float[Array, "b d"], LSTMState]:
        """Mix one frame (b, d), given the state before it; return the state for the next frame too."""
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        state = LSTMState(*lstm_step(x, *state, *(w[...] for w in weights)))
        return state.h, state
