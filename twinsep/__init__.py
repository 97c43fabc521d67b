"""twinsep: a band-split Mamba U-Net that removes vocals from music, implemented in PyTorch and in JAX."""

from typing import TYPE_CHECKING, Any, NamedTuple

from twinsep.errors import Cancelled

if TYPE_CHECKING:
    from twinsep.separation.overlap_add import Chunking
    from twinsep.separation.separator import Separator, load

__all__ = ["GLOSSARY", "Cancelled", "Chunking", "Separator", "Symbol", "load"]


class Symbol(NamedTuple):
    """A symbol of the paper: its letter as an axis in shapes, and its meaning."""

    axis: str
    meaning: str


#: The symbols that code, docstrings and paper share.
GLOSSARY: dict[str, Symbol] = {
    "B": Symbol("b", "batch"),
    "C": Symbol("c", "audio channels, 2"),
    "S": Symbol("s", "samples"),
    "F": Symbol("f", "STFT bins, 1,025"),
    "T": Symbol("t", "STFT frames"),
    "K": Symbol("k", "bands, 72"),
    "D": Symbol("d", "model width"),
    "E": Symbol("e", "inner width of Mamba, 2·D"),
    "N": Symbol("n", "state size"),
    "Δ": Symbol("", "step of the state space model, after softplus"),
}


if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> Any:
        """Import the separator on first use: it takes a while."""
        if name not in ("Chunking", "Separator", "load"):
            raise AttributeError(f"module 'twinsep' has no attribute {name!r}")
        from twinsep.separation import separator

        return getattr(separator, name)
