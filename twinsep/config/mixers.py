"""The sequence mixers as configuration: one frozen dataclass each, and one line each in :data:`MIXERS`.

A mixer maps (B, L, D) to (B, L, D): the part that researchers swap. The file of its name in either twin defines what a
kind computes; ``ablations/README.md`` shows how to add one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config=_STRICT)
class Mixer:
    """Base of all mixers: a kind, and the number of passes over a sequence."""

    kind: str

    @property
    def passes(self) -> int:
        """Mixers per block: 2 for a causal mixer in both directions, the second on the flipped sequence; else 1."""
        return 1

    def check(self, d_model: int) -> None:
        """Raise ValueError if this mixer cannot have width D."""


@dataclass(frozen=True, config=_STRICT)
class Causal(Mixer):
    """A mixer that sees only the past; ``directions`` 1 leaves out the second, flipped one."""

    directions: Literal[1, 2] = 2

    @property
    def passes(self) -> int:
        """Mixers per block."""
        return self.directions


@dataclass(frozen=True, config=_STRICT)
class Mamba(Causal):
    """Selective state space model S6 (Gu and Dao 2023, arXiv 2312.00752, algorithm 2)."""

    kind: Literal["mamba"] = "mamba"
    d_state: Positive = 32  # N, states per channel
    expand: Positive = 2  # E/D
    d_conv: Positive = 4  # frames of the causal convolution

    def inner_width(self, d_model: int) -> int:
        """E = expand · D."""
        return self.expand * d_model

    def dt_rank(self, d_model: int) -> int:
        """R = ⌈D/16⌉."""
        return -(-d_model // 16)


@dataclass(frozen=True, config=_STRICT)
class Mamba2(Causal):
    """State space duality, one scalar decay a head (Dao and Gu 2024, arXiv 2405.21060)."""

    kind: Literal["mamba2"] = "mamba2"
    d_state: Positive = 32  # N, states per channel
    expand: Positive = 2  # E/D
    d_conv: Positive = 4  # frames of the causal convolution
    head_dim: Positive = 64  # channels per head

    def inner_width(self, d_model: int) -> int:
        """E = expand · D."""
        return self.expand * d_model

    def head_width(self, d_model: int) -> int:
        """P: ``head_dim``, or E where that is smaller."""
        return min(self.head_dim, self.inner_width(d_model))

    def heads(self, d_model: int) -> int:
        """E / P."""
        return self.inner_width(d_model) // self.head_width(d_model)

    def check(self, d_model: int) -> None:
        """Raise ValueError unless heads divide E."""
        if self.inner_width(d_model) % self.head_width(d_model):
            inner = self.inner_width(d_model)
            raise ValueError(f"mixer.head_dim {self.head_dim} must divide expand · d_model = {inner}, or exceed it")


@dataclass(frozen=True, config=_STRICT)
class Transformer(Mixer):
    """Self-attention with rotary positions (Su et al. 2021, arXiv 2104.09864)."""

    kind: Literal["transformer"] = "transformer"
    rope_base: Annotated[float, Field(gt=1)] = 10_000.0  # base of the rotary frequencies


@dataclass(frozen=True, config=_STRICT)
class LSTM(Causal):
    """One LSTM of hidden size D (Hochreiter and Schmidhuber 1997), as in BSRNN (arXiv 2209.15174)."""

    kind: Literal["lstm"] = "lstm"


@dataclass(frozen=True, config=_STRICT)
class Conv(Mixer):
    """A centred depthwise convolution, then a Linear: the control without recurrence or attention."""

    kind: Literal["conv"] = "conv"
    kernel: Annotated[int, Field(ge=1)] = 31  # frames, odd

    def check(self, d_model: int) -> None:  # noqa: ARG002
        """Raise ValueError for an even kernel."""
        if self.kernel % 2 == 0:
            raise ValueError(f"mixer.kernel {self.kernel} must be odd, to be centred on a frame")


#: kind -> configuration class. A new mixer adds one line here and one in each twin's registry.
MIXERS: dict[str, type[Mixer]] = {
    "mamba": Mamba,
    "mamba2": Mamba2,
    "transformer": Transformer,
    "lstm": LSTM,
    "conv": Conv,
}


def from_mapping(value: Any) -> Any:
    """Build the mixer that a mapping with a ``kind`` describes; anything else is left to pydantic."""
    if not isinstance(value, Mapping):
        return value
    kind = value.get("kind")
    if kind not in MIXERS:
        raise ValueError(f"unknown mixer kind {kind!r}; known: {', '.join(MIXERS)}")
    return TypeAdapter(MIXERS[kind]).validate_python(dict(value))
